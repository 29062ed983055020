"""N2UQ: learned thresholds, equidistant outputs (Liu et al., CVPR 2022).

Its blocks also have an RPReLU before each quantizer, which belongs to the backbone and is left out here.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base

RANGE = 2.0  # of the outputs of the activation quantizer
SMALLEST_WIDTH = 1e-3


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """Weights on 2^b equidistant levels from -alpha_c to alpha_c, ends included.

      alpha_c = gamma mean|w_c|,  gamma = (2^b - 1) / 2^(b-1)
      w_hat   = alpha_c (2 round(n (clip(w / alpha_c, -1, 1) + 1) / 2) / n - 1),  n = 2^b - 1

  Gradient, unmasked: 'identity', g; 'published', g / alpha_c, as the authors' code has it. Their Adam hardly sees the
  factor, SGD does. Source: N2UQ section 3.3.
  """

  gradient: str = option('identity', "'published' divides it by alpha_c", choices=('identity', 'published'))

  def _alpha(self, x):
    magnitude = jnp.mean(jnp.abs(x), base.reduction_axes(x, per_channel=True))
    alpha = (2**self.bits - 1) / 2 ** (self.bits - 1) * jnp.maximum(magnitude, base.SMALLEST)
    return base.broadcast_to_channels(alpha, x)

  def quantize(self, x, parameters=None):
    n, alpha = 2**self.bits - 1, self._alpha(x)
    codes = jnp.round(n / 2 * (jnp.clip(x / alpha, -1, 1) + 1))
    return base.QTensor(codes.astype(jnp.int32), alpha * np.float32(2 / n), n / 2)

  def surrogate(self, x, parameters):
    return x if self.gradient == 'identity' else x / jax.lax.stop_gradient(self._alpha(x))


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """Activations that step from one equidistant output to the next at learned thresholds.

      T_i   = t_0 + a_1 + .. + a_(i-1) + a_i / 2,  i = 1 .. n = 2^b - 1
      x_hat = s_2 * 2 / n * #{i: s_1 x > T_i}

  Gradient: that of the ramps which rise by 2 / n over each width a_i, flat outside. It reaches the start t_0, the
  widths, floored at 1e-3, and the scales s_1 and s_2, times 1 / sqrt(features n) each, since all parameters here share
  one optimizer, where the paper's have Adam. Source: N2UQ eqs. (4)-(8). Up to 4 bits.
  """

  learned = ('start', 'segments', 'input_scale', 'output_scale')
  bit_widths = (1, 2, 3, 4)

  def init(self, x):
    n = 2**self.bits - 1
    return {
      'start': jnp.float32(0),
      'segments': jnp.full(n, RANGE / n, jnp.float32),
      'input_scale': jnp.float32(1),
      'output_scale': jnp.float32(1),
    }

  def quantize(self, x, parameters):
    segments = jnp.maximum(parameters['segments'], SMALLEST_WIDTH)
    thresholds = parameters['start'] + jnp.cumsum(segments) - segments / 2
    codes = jnp.searchsorted(thresholds, parameters['input_scale'] * x, side='left', method='compare_all')
    return base.QTensor(codes.astype(jnp.int32), parameters['output_scale'] * np.float32(RANGE / len(segments)))

  def surrogate(self, x, parameters):
    n = len(parameters['segments'])
    factor = base.step_gradient_scale(x, n)
    start, segments, input_scale, output_scale = (
      base.scale_gradient(parameters[name], factor) for name in self.learned
    )
    segments = base.ste_maximum(segments, SMALLEST_WIDTH)
    left = start + jnp.cumsum(segments) - segments
    ramps = sum(base.clip((input_scale * x - left[i]) / segments[i], 0, 1) for i in range(n))
    # The output's scale multiplies the steps themselves, not the ramps.
    steps = self.quantize(x, parameters).codes.astype(jnp.float32)
    return output_scale * np.float32(RANGE / n) * base.ste(steps, ramps)
