"""The 2-D convolution of every layer, and its gradients.

On a CPU they take the forms of `cpu_convolution` or `cpu_depthwise`. Which form is taken is decided when a program is
lowered, so that programs for TPU and GPU hold the convolution alone. Both are traced once for all layers of the same
shapes.

Shapes: x [B, H, W, C], kernel [k, k, C / groups, F], y and its gradient g [B, H', W', F].
"""

import functools

import jax

from cmtkd_jax.models import cpu_convolution, cpu_depthwise


@functools.partial(jax.jit, static_argnames=('stride', 'padding', 'preferred_element_type', 'groups'))
def convolve(x, kernel, stride, padding, preferred_element_type=None, groups=1):
  """Cross-correlation with zero padding: y[h, w] = sum_ij x[s h + i - p, s w + j - p] kernel[i, j].

  Args:
    x: [B, H, W, C]; kernel: [k, k, C / groups, F], of the same type.
    stride, padding: s and p, >= 1 and >= 0.
    preferred_element_type: of the sums and of the result; None for that of x.
    groups: parts of the channels and, in the same order, of the features: each feature sees its own part alone.

  Returns:
    [B, (H + 2 p - k) // s + 1, .., F].
  """
  return _convolve(x, kernel, stride, padding, preferred_element_type, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(x, kernel, stride, padding, preferred_element_type, groups):
  plain = functools.partial(_plain(stride, padding, groups), preferred_element_type=preferred_element_type)
  if (forms := _forms(kernel, groups)) is None:
    return plain(x, kernel)
  on_cpu = functools.partial(forms.forward, plain=plain, stride=stride, padding=padding, sums=preferred_element_type)
  return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _forms(kernel, groups):
  """The module of forms for a CPU; None for groups of several channels or features, which have none."""
  if groups == 1:
    return cpu_convolution
  return cpu_depthwise if kernel.shape[2:] == (1, groups) else None


def _plain(stride, padding, groups):
  """The convolution as XLA has it, a function (x, kernel)."""
  return functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=cpu_convolution.DIMENSIONS,
    feature_group_count=groups,
  )


def _backward(stride, padding, preferred_element_type, groups, operands, g):
  x, kernel = operands
  convolution = _plain(stride, padding, groups)
  of_x = lambda x, kernel, g: jax.vjp(lambda x: convolution(x, kernel), x)[1](g)[0]
  of_kernel = lambda x, kernel, g: jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](g)[0]
  args = (x, kernel, g.astype(x.dtype))
  if (forms := _forms(kernel, groups)) is None:
    return of_x(*args), of_kernel(*args)
  x_on_cpu = functools.partial(forms.gradient_of_x, plain=of_x, stride=stride, padding=padding)
  kernel_on_cpu = functools.partial(forms.gradient_of_kernel, plain=of_kernel, stride=stride, padding=padding)
  return (
    jax.lax.platform_dependent(*args, cpu=x_on_cpu, default=of_x),
    jax.lax.platform_dependent(*args, cpu=kernel_on_cpu, default=of_kernel),
  )


_convolve.defvjp(lambda x, kernel, *settings: (_convolve(x, kernel, *settings), (x, kernel)), _backward)
