"""Convolutions and matrix products of quantized tensors, which are exact wherever both sides are levels.

Accelerators multiply in bfloat16 (TPU) or TF32 (GPU), which merge the values of 6- to 8-bit grids. Levels fit both, so
where both sides are on uniform grids their levels are multiplied and summed in float32, and the two scales follow:

    y = s_x s_w sum l_x l_w,   exact up to the last two roundings while the sum stays below 2^24

Its gradient is that of the product of the values. Source: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2.2, whose integers are levels here.
"""

import functools

import jax
import jax.numpy as jnp

from cmtkd_jax.quantizers import Quantized


def values(x):
  """Returns the array itself, or what the levels of a `Quantized` stand for."""
  return x.value if isinstance(x, Quantized) else x


def flatten(x):
  """Views `x` [B, ...], an array or a `Quantized`, as [B, features]."""
  if isinstance(x, Quantized):
    return Quantized(flatten(x.value), None if x.level is None else flatten(x.level), x.scale)
  return x.reshape(x.shape[0], -1)


def product(multiply, x, kernel, dtype):
  """Returns `multiply(x, kernel)`, a convolution or a matrix product, computed in `dtype`.

  Args:
    multiply: function (x, kernel, preferred_element_type) of arrays, linear in both; the last axis of the result is the
      last axis of the kernel.
    x: an array [B, ...], or `Quantized`; its levels are used where it has one scale for all of it.
    kernel: an array [..., features], or `Quantized`, with one scale or one a feature.
    dtype: of the operands and of the result; sums of levels are float32.

  Returns:
    [B, ..., features], of type `dtype`.
  """
  both = (x, kernel)
  if all(isinstance(side, Quantized) and side.level is not None for side in both) and x.scale.size == 1:
    return _product_of_levels(multiply, dtype, *both).astype(dtype)
  return multiply(*(values(side).astype(dtype) for side in both), preferred_element_type=None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product_of_levels(multiply, dtype, x, kernel):
  return _forward(multiply, dtype, x, kernel)[0]


def _forward(multiply, dtype, x, kernel):
  levels = x.level.astype(dtype), kernel.level.astype(dtype)
  scale = x.scale.reshape(())
  y = multiply(*levels, preferred_element_type=jnp.float32) * (scale * kernel.scale)
  return y, (levels[0], scale, kernel.value.astype(dtype), x.scale, kernel.scale)


def _backward(multiply, dtype, residuals, g):
  """Gradients of the values. Scales are where arrays are small: a scaled copy of g would be a pass over a map."""
  x_level, x_scale, kernel_value, *scales = residuals
  g = g.astype(dtype)
  _, of_x = jax.vjp(lambda x: multiply(x, kernel_value, preferred_element_type=None), x_level)
  _, of_kernel = jax.vjp(lambda kernel: multiply(x_level, kernel, preferred_element_type=None), kernel_value)
  (x_gradient,), (kernel_gradient,) = of_x(g), of_kernel(g)
  gradients = x_gradient.astype(jnp.float32), x_scale * kernel_gradient.astype(jnp.float32)
  return tuple(
    Quantized(gradient, jnp.zeros_like(gradient), jnp.zeros_like(scale))
    for gradient, scale in zip(gradients, scales, strict=True)
  )


_product_of_levels.defvjp(_forward, _backward)
