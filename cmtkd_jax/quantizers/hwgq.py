"""HWGQ: half-wave Gaussian activations, mid-rise Gaussian weights (Cai et al., CVPR 2017; EdMIPS, CVPR 2020).

Sources: Cai, He, Sun, Vasconcelos, CVPR 2017 (activations, 1-bit weights); Cai and Vasconcelos, EdMIPS, CVPR 2020
(weights, rounding of activations). CMT-KD eq. (3). Both assume batch normalization right before the activation
quantizer, so that its input is close to N(0, 1) and the step can be a constant.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base

# Steps by bit-width 1..8. The optimal ones minimize E (x - q(x))^2 for x ~ N(0, 1).
WEIGHT_STEP = (1.595769, 0.995687, 0.586019, 0.335201, 0.188139, 0.104063, 0.056868, 0.030762)
ACTIVATION_STEP = {
  # Rounding to nearest: the published table ends at 4 bits, the optimal steps continue it.
  ('nearest', 'published'): (0.799, 0.538, 0.3217, 0.185, 0.105488, 0.057261, 0.030870, 0.016528),
  ('nearest', 'optimal'): (1.224006, 0.650770, 0.353411, 0.193249, 0.105488, 0.057261, 0.030870, 0.016528),
  # First threshold at zero: every positive value goes to at least the first level.
  ('zero_threshold', 'published'): (0.799, 0.538, 0.3217, 0.185, 0.102984, 0.056584, 0.030691, 0.016482),
  ('zero_threshold', 'optimal'): (0.797885, 0.538812, 0.321729, 0.184243, 0.102984, 0.056584, 0.030691, 0.016482),
}
_SMALLEST_SCALE = 1e-12  # an all-zero tensor has no standard deviation to scale by


def activation_step(bits, scheme='nearest', step='published'):
  """Returns the step D of the half-wave quantizer in units of the pre-activation's standard deviation, a float.

  Raises:
    ValueError: there is no such bit-width, scheme or step.
  """
  base.check_bits(bits)
  if (scheme, step) not in ACTIVATION_STEP:
    raise ValueError(f'scheme={scheme!r}, step={step!r}: there are {", ".join(map(str, ACTIVATION_STEP))}')
  return ACTIVATION_STEP[scheme, step][bits - 1]


def quantize_activation(x, bits, scheme='nearest', step='published'):
  """Codes of the half-wave quantizer.

  nearest:         code = round(clip(x / D, 0, n)), half to even
  zero_threshold:  code = 0 for x <= 0, else clip(ceil(x / D - 1/2), 1, n)
  with n = 2^b - 1.

  Args:
    x: float32, any shape, in units of its standard deviation (batch normalization comes right before).
    bits: 1..8.
    scheme: 'nearest' (EdMIPS) or 'zero_threshold' (the original HWGQ).
    step: 'published' or 'optimal', see `ACTIVATION_STEP`.

  Returns:
    `QTensor` with codes in 0..n and scale D.

  Raises:
    ValueError: there is no such bit-width, scheme or step.

  Source: EdMIPS, HWGQ; CMT-KD eq. (3).
  """
  d, n = activation_step(bits, scheme, step), 2**bits - 1
  # The reciprocal is written out: compilers may or may not replace a division by a constant with it, and the codes
  # must be the same wherever they are computed.
  ratio = x * np.float32(1 / d)
  if scheme == 'nearest':
    codes = jnp.round(jnp.clip(ratio, 0, n))
  else:
    # ceil(ratio - 1/2), without a sum that compilers may or may not fuse with the product.
    codes = jnp.where(x > 0, jnp.clip(jnp.floor(jnp.ceil(2 * ratio) / 2), 1, n), 0)
  return base.QTensor(codes.astype(jnp.int32), jnp.float32(d))


def fake_quantize_activation(x, bits, scheme='nearest', step='published'):
  """Half-wave quantization: q(x) = D * code(x), see `quantize_activation`.

  Gradient (straight-through, clipped): g * 1[0 <= x <= n D]; 1[0 < x <= n D] for 'zero_threshold'.

  Args, errors and source: as `quantize_activation`. Returns float32 of x's shape with values in {0, D, .., n D}.
  """
  return Activation(bits, scheme, step).fake_quantize(x)


def weight_scale(w, bits, per_channel=False, binary_scale='std'):
  """Scale s of the mid-rise grid: s = c_b * std(w), unbiased; or s = 2 mean|w| for 1 bit and 'mean_abs'.

  Args:
    w: float32 [..., C], output channel last.
    bits: 1..8.
    per_channel: one scale per channel instead of one per tensor.
    binary_scale: 'std' (EdMIPS) or 'mean_abs' (HWGQ, XNOR-Net); read at 1 bit only. With both, w = 0 becomes -s / 2,
      as halves are rounded to even in EdMIPS; HWGQ and XNOR-Net have sign(0) = 1.

  Returns:
    float32 scalar or [C], positive also for an all-zero tensor.

  Raises:
    ValueError: there is no such bit-width.
  """
  base.check_bits(bits)
  axes = base.reduction_axes(w, per_channel)
  if bits == 1 and binary_scale == 'mean_abs':
    scale = 2 * jnp.mean(jnp.abs(w), axes)
  else:
    count = w.size // (w.shape[-1] if per_channel else 1)
    scale = np.float32(WEIGHT_STEP[bits - 1]) * jnp.std(w, axes, ddof=1 if count > 1 else 0)
  return jnp.maximum(scale, _SMALLEST_SCALE)


def quantize_weight(w, bits, per_channel=False, binary_scale='std'):
  """Codes of the mid-rise quantizer, which has no zero level.

  code = clip(ceil(w / s), 1 - 2^(b-1), 2^(b-1)) + 2^(b-1) - 1,   value = s * (code - (2^(b-1) - 1/2))

  Args and errors: as `weight_scale`. Source: EdMIPS. Returns `QTensor` with codes in 0..2^b - 1.
  """
  s = base.broadcast_to_channels(weight_scale(w, bits, per_channel, binary_scale), w)
  half = 2 ** (bits - 1)
  # The reciprocal: as above. EdMIPS has round(w / s + 1/2), whose result differs at odd multiples of s only. Compilers
  # may or may not round its product before the sum.
  codes = jnp.clip(jnp.ceil(w * (1 / s)), 1 - half, half) + (half - 1)
  return base.QTensor(codes.astype(jnp.int32), s, half - 0.5)


def fake_quantize_weight(w, bits, per_channel=False, binary_scale='std'):
  """Mid-rise quantization: values s * {+-1/2, +-3/2, .., +-(2^(b-1) - 1/2)}; 1 bit gives +-0.798 std(w).

  Gradient: the identity, unclipped, nothing through s (EdMIPS, HWGQ).

  Args, errors and source: as `quantize_weight`. Returns float32 of w's shape.
  """
  return Weight(bits, per_channel, binary_scale).fake_quantize(w)


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """HWGQ's activations: from 0 up in constant steps that suit the positive half of a Gaussian.

  See `fake_quantize_activation`.
  """

  scheme: str = option('nearest', "'zero_threshold' is the original HWGQ", choices=('nearest', 'zero_threshold'))
  step: str = option('published', 'between levels, see `ACTIVATION_STEP`', choices=('published', 'optimal'))

  def quantize(self, x, parameters=None):
    return quantize_activation(x, self.bits, self.scheme, self.step)

  def surrogate(self, x, parameters):
    top = np.float32((2**self.bits - 1) * activation_step(self.bits, self.scheme, self.step))
    passes = (x >= 0) if self.scheme == 'nearest' else (x > 0)
    return base.mask_gradient(passes & (x <= top), x)


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """HWGQ's weights: mid-rise levels scaled by the standard deviation.

  See `fake_quantize_weight`.
  """

  per_channel: bool = option(False, 'one scale for each output channel')
  binary_scale: str = option('std', 'what 1-bit weights are scaled by', choices=('std', 'mean_abs'))

  def quantize(self, x, parameters=None):
    return quantize_weight(x, self.bits, self.per_channel, self.binary_scale)

  def surrogate(self, x, parameters):
    return x
