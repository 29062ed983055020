"""LQW and CAQ: trained levels of weights, steps of activations for most channels (Hoang et al., IJCAI 2020).

A reading of the abstract of Hoang, Do, Nguyen, Cheung, "Direct Quantization for Training Highly Accurate Low Bit-width
Deep Neural Networks", IJCAI 2020 (arXiv 2012.13762), and not the authors' code, which is not public. The abstract says
that quantized weights are updated directly, through levels that minimize the cost function by gradient descent, and
that activation quantizers minimize the quantization errors of the majority of channels, instead of those of a few
channels with high variance. It has no formulas: those below are the plainest that fit. What it leaves open is an
option, or is named where it is chosen.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base, hwgq


@jax.custom_vjp
def look_up(levels, codes):
  """Value of each code: levels[code], or levels[c, code] in channel c.

  Gradient: each level receives the sum of those of its values. It is summed by comparisons, in a fixed order, where the
  transpose of an index would add in any order on a GPU.

  Args:
    levels: float32 [n] or [C, n].
    codes: int32 [..., C], in [0, n).

  Returns:
    float32, shape of `codes`.
  """
  return base.dequantize(base.QTensor(codes, np.float32(1), levels=levels))


def _look_up_backward(residuals, g):
  levels, codes = residuals
  axes = base.reduction_axes(codes, per_channel=levels.ndim == 2)
  # One level after another: 2^b copies of the weights may not fit into memory.
  sums = jax.lax.map(
    lambda k: jnp.sum(jnp.where(codes == k, g, 0), axes).reshape(levels.shape[:-1]), jnp.arange(levels.shape[-1])
  )
  return jnp.moveaxis(sums, 0, -1), None


look_up.defvjp(lambda levels, codes: (look_up(levels, codes), (levels, codes)), _look_up_backward)


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """LQW: weights on 2^b levels l_k which the loss trains, in units s of the layer's weights.

      w_hat = s l_k,  k: nearest of the levels in ascending order to w / s;  s = std w, or 1 for unit='one'

  Gradients: dw_hat/dw = 1, unmasked; dw_hat/dl_k = s where w has code k and 0 elsewhere, times the factor of
  `gradient`: 'mean', 1 / (number of its weights); 'sum', 1, so that a level receives the sum of its weights' gradients,
  with which 1-bit weights fail to train.
  Nothing goes through s. Levels are float32 [2^b], or [C, 2^b] with per_channel, and start as the best uniform grid for
  Gaussian weights. They may pass each other: codes follow their order.

  Chosen here: the nearest level, real weights that choose it, the unit, the start.
  Source: the abstract, see above.
  """

  unit: str = option('std', "of the levels: the layer's standard deviation, or 1", choices=('std', 'one'))
  gradient: str = option('mean', 'how a level combines the gradients of its weights', choices=('mean', 'sum'))
  per_channel: bool = option(False, 'own levels for each output channel')
  learned = ('levels',)

  def init(self, x):
    levels = (np.arange(2**self.bits) - (2**self.bits - 1) / 2) * hwgq.WEIGHT_STEP[self.bits - 1]
    levels = jnp.asarray(levels, jnp.float32) * (1 if self.unit == 'std' else self._deviation(x))
    return {'levels': jnp.tile(levels, (x.shape[-1], 1)) if self.per_channel else levels}

  def quantize(self, x, parameters):
    s, levels = self._scale(x), jnp.sort(parameters['levels'], -1)
    ratio = x * (1 / s)  # the reciprocal is written out, as in hwgq.py
    nearest = base.nearest_level_by_channel if self.per_channel else base.nearest_level
    return base.QTensor(nearest(ratio, levels), s, levels=levels)

  def surrogate(self, x, parameters):
    coded = jax.lax.stop_gradient(self.quantize(x, parameters))
    levels = jnp.sort(parameters['levels'], -1)
    if self.gradient == 'mean':
      _, count_of = jax.vjp(lambda levels: look_up(levels, coded.codes), coded.levels)
      (count,) = count_of(jnp.ones_like(x))
      levels = base.scale_gradient(levels, 1 / jnp.maximum(count, 1))
    value = coded.scale * look_up(levels, coded.codes)
    return x + (value - jax.lax.stop_gradient(value))

  def _scale(self, x):
    return self._deviation(x) if self.unit == 'std' else jnp.float32(1)

  def _deviation(self, x):
    return jnp.maximum(jnp.std(x), base.SMALLEST)


def channel_weights(x, weighting):
  """What the error of each channel counts for, from its mean square m_c = E max(x, 0)^2.

      'relative': 1 / m_c;   'clipped': 1 / max(m_c, median of m);   'equal': 1 / mean of m

  m_c is the variance around 0, a value that every quantizer here has. Around its mean, a nearly constant channel has
  almost none, and its weight would dominate all others. A channel without positive values counts 0.

  Args:
    x: float32 [..., C].
    weighting: 'relative', 'clipped' or 'equal'.

  Returns:
    float32 [C].
  """
  m = jnp.mean(jnp.square(jax.nn.relu(x)), base.reduction_axes(x, per_channel=True))
  alive = m > base.SMALLEST**2
  reference = {
    'relative': m,
    'clipped': jnp.maximum(m, jnp.median(m)),
    'equal': jnp.broadcast_to(jnp.mean(m), m.shape),
  }[weighting]
  return jnp.where(alive, 1 / jnp.where(alive, reference, 1), 0)


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """CAQ: activations, after a ReLU, on the levels 0, d, .., n d, with the step d of least error over channels.

      x_hat = d round(clip(x / d, 0, n)),  n = 2^b - 1
      d = argmin sum_c a_c E_c (max(x, 0) - d code)^2 = sum_c a_c E_c max(x, 0) code / sum_c a_c E_c code^2

  with the codes of the step before, as LQ-Nets fits its bases, and a_c as `channel_weights` has them: 'relative', each
  channel's error relative to its variance; 'clipped', the same, but a variance below the median counts as the median;
  'equal', the plain squared error, which the channels with high variance rule. The step in use is the average
  of all fits with falling weights, v_t = (1 - m) / (1 - m^t) * sum_i m^(t-i) d_i. It starts at the best step for a
  Gaussian channel with the mean deviation of all channels, which is also the fit to a batch whose codes are all 0.

  Gradient: g * 1[0 < x < n d]; the loss does not move d. The state holds d in 'step' and t in 'updates'.

  Chosen here: one uniform step a layer, the weighting, the squared error, the running average, the mask.
  Source: the abstract, see above.
  """

  weighting: str = option(
    'relative', "of the channels' errors, see `channel_weights`", choices=('relative', 'clipped', 'equal')
  )
  momentum: float = option(0.9, 'm, weight of earlier batches in the running average of fits', least=0, below=1)
  fitted = ('step', 'updates')

  def init(self, x):
    return {'step': self._start(x), 'updates': jnp.float32(0)}

  def quantize(self, x, parameters):
    d, n = jnp.maximum(parameters['step'], base.SMALLEST), 2**self.bits - 1
    return base.QTensor(jnp.round(jnp.clip(x * (1 / d), 0, n)).astype(jnp.int32), d)

  def surrogate(self, x, parameters):
    top = (2**self.bits - 1) * jnp.maximum(parameters['step'], base.SMALLEST)
    return base.mask_gradient((x > 0) & (x < jax.lax.stop_gradient(top)), x)

  def update(self, x, parameters):
    updates, fitted = parameters['updates'] + 1, self.fit(x, parameters)
    return {'step': base.running_average(parameters['step'], fitted, updates, self.momentum), 'updates': updates}

  def fit(self, x, parameters):
    """Returns the step, float32, that explains `x` best given its codes under `parameters`."""
    codes = self.quantize(x, parameters).codes.astype(jnp.float32)
    mean = lambda y: jnp.mean(y, base.reduction_axes(x, per_channel=True))
    a = channel_weights(x, self.weighting)
    squares = jnp.sum(a * mean(jnp.square(codes)))
    fitted = jnp.sum(a * mean(jax.nn.relu(x) * codes)) / jnp.where(squares > 0, squares, 1)
    return jnp.where(squares > 0, jnp.maximum(fitted, base.SMALLEST), self._start(x))

  def _start(self, x):
    deviation = base.half_gaussian_deviation(x, base.reduction_axes(x, per_channel=True))
    start = np.float32(hwgq.activation_step(self.bits, step='optimal')) * jnp.mean(deviation)
    return jnp.where(start > base.SMALLEST, start, 1.0)
