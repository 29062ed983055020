"""DoReFa-Net: weights through tanh, activations clipped to [0, 1] (Zhou et al., 2016)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from cmtkd_jax.quantizers import base


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """Weights on 2^b levels from -1 to 1; 1 bit: +-E|w|, one scale per layer.

      r     = tanh(w) / (2 max|tanh w|) + 1/2
      w_hat = 2 round(n r) / n - 1,  n = 2^b - 1
      1 bit:  w_hat = sign(w) E|w|,  sign(0) = 1

  Gradient: that of 2 r - 1; 1 bit: the identity. Source: DoReFa-Net eqs. (6), (8), (9).
  """

  def quantize(self, x, parameters=None):
    if self.bits == 1:
      return base.QTensor((x >= 0).astype(jnp.int32), 2 * jnp.mean(jnp.abs(x)), 0.5)
    n = 2**self.bits - 1
    codes = jnp.round(n * (self.surrogate(x, parameters) * 0.5 + 0.5))
    return base.QTensor(codes.astype(jnp.int32), jnp.float32(2 / n), n / 2)

  def surrogate(self, x, parameters):
    if self.bits == 1:
      return x
    tanh = jnp.tanh(x)
    return tanh / jnp.maximum(jnp.max(jnp.abs(tanh)), base.SMALLEST)


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """Activations on 2^b levels from 0 to 1: x_hat = round(n clip(x, 0, 1)) / n, n = 2^b - 1.

  Gradient: g * 1[0 < x < 1]. Source: DoReFa-Net eq. (11).
  """

  def quantize(self, x, parameters=None):
    n = 2**self.bits - 1
    return base.QTensor(jnp.round(n * jnp.clip(x, 0, 1)).astype(jnp.int32), np.float32(1 / n))

  def surrogate(self, x, parameters):
    return base.clip(x, 0, 1)
