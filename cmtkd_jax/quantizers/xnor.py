"""XNOR-Net and its binary weights, BWN (Rastegari et al., ECCV 2016): 1 bit.

XNOR-Net also multiplies each convolution's output by a map K, the box-filtered mean |x| of its input. That map belongs
to the convolution, not to the activation, and is left out here, as in most later binary networks.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """Weights of one bit with a scale for each output channel.

      w_hat = alpha_c sign(w),  alpha_c = mean|w| of output channel c,  sign(0) = 1

  Gradient: 'paper', g * (1/N + alpha_c 1[|w| <= 1]) with N weights a channel; 'identity', g, as HWGQ has it.
  Source: XNOR-Net section 3.1.
  """

  gradient: str = option('paper', "'identity' as in HWGQ", choices=('paper', 'identity'))
  bit_widths = (1,)

  def quantize(self, x, parameters=None):
    return base.QTensor((x >= 0).astype(jnp.int32), 2 * base.broadcast_to_channels(_magnitude(x), x), 0.5)

  def surrogate(self, x, parameters):
    if self.gradient == 'identity':
      return x
    slope = x.shape[-1] / x.size + jnp.where(jnp.abs(x) <= 1, base.broadcast_to_channels(_magnitude(x), x), 0)
    return jax.lax.stop_gradient(slope) * x


def _magnitude(w):
  return jnp.mean(jnp.abs(w), base.reduction_axes(w, per_channel=True))


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """Activations of one bit: x_hat = sign(x), sign(0) = 1.

  Gradient: g * 1[|x| <= 1]. Source: XNOR-Net section 3.2.
  """

  bit_widths = (1,)

  def quantize(self, x, parameters=None):
    return base.QTensor((x >= 0).astype(jnp.int32), jnp.float32(2), 0.5)

  def surrogate(self, x, parameters):
    return base.mask_gradient(jnp.abs(x) <= 1, x)
