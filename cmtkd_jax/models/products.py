"""Convolutions and matrix products of quantized tensors, which are exact wherever both sides are levels.

Accelerators multiply in bfloat16 (TPU) or TF32 (GPU), which merge the values of 6- to 8-bit grids. Levels fit both, so
where both sides are on uniform grids their levels are multiplied and summed in float32, and the two scales follow:

    y = s_x s_w sum l_x l_w,   exact up to the last two roundings while |sum| < 2^24 u

with the unit u of the sum: 1, halved for each side whose levels are halves, such as those of HWGQ's weights. Its
gradient is that of the product of the values. Source: Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2.2, whose integers are levels here.
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
  if all(isinstance(side, Quantized) and side.level is not None for side in (x, kernel)) and x.scale.size == 1:
    return _product_of_levels(multiply, dtype, x, kernel).astype(dtype)
  return multiply(values(x).astype(dtype), _stored(values(kernel), dtype), preferred_element_type=None)


def _stored(kernel, dtype):
  """`kernel` as `dtype`, which a TPU then keeps: it would read float32 again for the product and for its gradient."""
  return jax.lax.optimization_barrier(kernel.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product_of_levels(multiply, dtype, x, kernel):
  return _forward(multiply, dtype, x, kernel)[0]


def _forward(multiply, dtype, x, kernel):
  levels = x.level.astype(dtype), _stored(kernel.level, dtype)
  y = multiply(*levels, preferred_element_type=jnp.float32) * (x.scale.reshape(()) * kernel.scale)
  return y, (*levels, x.scale, kernel.scale)


def _backward(multiply, dtype, residuals, g):
  """Gradients of the values, value = scale * level; each scale is applied where it needs no extra pass over a map."""
  x_level, kernel_level, *scales = residuals
  x_scale, kernel_scale = scales
  after = kernel_scale.size == 1  # for one scale per channel, the kernel is scaled before the product
  kernel = kernel_level if after else (kernel_level * kernel_scale).astype(dtype)
  _, gradients_of = jax.vjp(functools.partial(multiply, preferred_element_type=None), x_level, kernel)
  x_gradient, kernel_gradient = (gradient.astype(jnp.float32) for gradient in gradients_of(g.astype(dtype)))
  gradients = x_gradient * kernel_scale.reshape(()) if after else x_gradient, x_scale.reshape(()) * kernel_gradient
  return tuple(
    Quantized(gradient, jnp.zeros_like(gradient), jnp.zeros_like(scale))
    for gradient, scale in zip(gradients, scales, strict=True)
  )


_product_of_levels.defvjp(_forward, _backward)
