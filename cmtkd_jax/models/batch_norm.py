"""Batch normalization whose variance keeps its digits however large the mean is."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def _per_channel(values, x):
  """[C] -> [1, ..., 1, C], of the rank of x."""
  return values.reshape((1,) * (x.ndim - 1) + values.shape)


@functools.partial(jax.jit, static_argnames='epsilon')  # traced once for all layers of the same shape
def normalize(x, scale, bias, epsilon):
  """Normalizes x [..., C] over all axes but the last; returns y, the mean [C] and the variance [C], all float32.

      y = (x - mean) / sqrt(var + epsilon) * scale + bias,  var = mean((x - mean)^2)

  The mean comes first, since mean(x^2) - mean^2 loses all digits where the mean is large. No gradient flows through
  the mean and the variance that are returned. Its gradient is written out, since autodiff of the second pass would
  make the step slower.

  Args:
    x: [..., C], of any float type.
    scale, bias: [C], float32.
    epsilon: added to the variance, > 0.

  Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
  """
  return _normalize(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x, scale, bias, epsilon):
  return _with_residuals(x, scale, bias, epsilon)[0]


def _with_residuals(x, scale, bias, epsilon):
  axes = tuple(range(x.ndim - 1))
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axes)
  centered = wide - _per_channel(mean, x)
  var = jnp.mean(jnp.square(centered), axes)
  inverse = jax.lax.rsqrt(var + epsilon)
  y = centered * _per_channel(inverse * scale, x) + _per_channel(bias, x)
  return (y, mean, var), (x, scale, mean, inverse)


def _gradients(epsilon, residuals, gradients):
  """dL/dx = scale / sqrt(var + epsilon) * (g - mean(g) - n mean(g n)), n = (x - mean) / sqrt(var + epsilon)."""
  x, scale, mean, inverse = residuals
  g, axes, rows = gradients[0], tuple(range(x.ndim - 1)), x.size // x.shape[-1]
  centered = x.astype(jnp.float32) - _per_channel(mean, x)
  bias_gradient, scale_gradient = jnp.sum(g, axes), jnp.sum(g * centered, axes) * inverse
  x_gradient = _per_channel(inverse * scale, x) * (
    g - _per_channel(bias_gradient / rows, x) - centered * _per_channel(inverse * scale_gradient / rows, x)
  )
  return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


_normalize.defvjp(_with_residuals, _gradients)


class BatchNorm(nn.Module):
  """Batch normalization of [..., C] over all axes but the last, in float32; the variables are those of `nn.BatchNorm`.

  groups: with more than one, each of so many equal parts of consecutive rows has its own statistics. With as many
  groups as devices it is what a device computes on its own, without communication. The running statistics follow the
  mean over the groups.
  """

  groups: int = 1
  momentum: float = 0.9
  affine: bool = True
  epsilon: float = 1e-5
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x, train):
    features = x.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, features)
    var = self.variable('batch_stats', 'var', jnp.ones, features)
    scale = self.param('scale', self.scale_init, features, jnp.float32) if self.affine else jnp.ones(features)
    bias = self.param('bias', nn.initializers.zeros, features, jnp.float32) if self.affine else jnp.zeros(features)
    if not train:
      slope = jax.lax.rsqrt(var.value + self.epsilon) * scale
      return (x.astype(jnp.float32) - _per_channel(mean.value, x)) * _per_channel(slope, x) + _per_channel(bias, x)
    if self.groups == 1 or self.is_initializing():  # a network may be built from one row
      y, batch_mean, batch_var = normalize(x, scale, bias, self.epsilon)
    else:
      parts = x.reshape(self.groups, -1, *x.shape[1:])
      y, means, variances = jax.vmap(lambda part: normalize(part, scale, bias, self.epsilon))(parts)
      y, batch_mean, batch_var = y.reshape(x.shape), jnp.mean(means, 0), jnp.mean(variances, 0)
    if not self.is_initializing():
      mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
      var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
    return y
