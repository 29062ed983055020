"""TWN: ternary weight networks (Li, Zhang, Liu, 2016). Weights only."""

import dataclasses

import jax.numpy as jnp

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """Weights on the levels -alpha, 0, alpha, which take 2 bits.

      D = t E|w|,  alpha = mean of |w| over |w| > D

  threshold: t, 0.7, in a later revision of the paper 0.75. per_channel: D and alpha for each output channel instead of
  the layer. Gradient: the identity. Source: TWN eqs. (3), (6).
  """

  threshold: float = option(0.7, 't, in units of E|w|', above=0)
  per_channel: bool = option(False, 'threshold and scale for each output channel')
  bit_widths = (2,)

  def quantize(self, x, parameters=None):
    axes, magnitude = base.reduction_axes(x, self.per_channel), jnp.abs(x)
    above = magnitude > base.broadcast_to_channels(self.threshold * jnp.mean(magnitude, axes), x)
    alpha = jnp.sum(jnp.where(above, magnitude, 0), axes) / jnp.maximum(jnp.sum(above, axes), 1).astype(jnp.float32)
    codes = jnp.where(above, jnp.sign(x), 0).astype(jnp.int32) + 1
    return base.QTensor(codes, base.broadcast_to_channels(alpha, x), 1.0)

  def surrogate(self, x, parameters):
    return x
