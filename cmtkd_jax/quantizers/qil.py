"""QIL: quantization interval learning (Jung et al., CVPR 2019).

The interval of activations starts at the levels of HWGQ's grid for as many bits. That of weights has the step of that
grid, although QIL has one level less, and one at 0. QIL's own start is not known.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base, hwgq


def transform(magnitude, center, distance, gamma=None):
  """Transformer of a magnitude to [0, 1]: values below the interval are pruned, those above it clipped.

      t = clip((|x| - (c - d)) / (2 d), 0, 1)^gamma;   0 below c - d, 1 above c + d

  Args:
    magnitude: |x|, float32 >= 0, any shape.
    center, distance: c and d, float32 scalars; d > 0.
    gamma: number or float32 scalar, > 0; None for 1, without a power.

  Returns:
    float32, shape of `magnitude`, in [0, 1].

  Source: QIL eq. (3).
  """
  # The reciprocal is written out, and no product is added to anything: a compiler could fuse the two, and the codes
  # must be the same wherever they are computed.
  t = base.clip((magnitude - (center - distance)) * (1 / (2 * distance)), 0, 1)
  if gamma is None:
    return t
  inside = (t > 0) & (t < 1)  # elsewhere t^gamma = t, and its slopes have no limit
  return jnp.where(inside, jnp.where(inside, t, 0.5) ** gamma, t)


@dataclasses.dataclass(frozen=True)
class _Interval(base.Quantizer):
  gradient_scale: float = option(0.01, "factor on the interval's gradients; of no effect with adamw and lamb", above=0)
  learned = ('center', 'distance')

  def _init(self, top):
    """An interval from 0 to `top`."""
    half = jnp.maximum(top, base.SMALLEST) / 2
    return {'center': half, 'distance': half}

  def _interval(self, parameters):
    scaled = {name: base.scale_gradient(parameters[name], np.float32(self.gradient_scale)) for name in self.learned}
    # Below 0, a distance or gamma would take values out of [0, 1], and codes out of their range.
    return scaled | {name: base.ste_maximum(scaled[name]) for name in scaled if name != 'center'}


@dataclasses.dataclass(frozen=True)
class Weight(_Interval):
  """Weights on the levels 0, +-1/q, .., +-1: w_hat = sign(w) round(q t(|w|)) / q, q = 2^(b-1) - 1; t: `transform`.

  Gradients: straight through the rounding, so those of sign(w) t(|w|), for c, d (and gamma) times `gradient_scale`,
  which stands for their smaller learning rate. learn_gamma: whether gamma is trained (the paper; others found that
  unstable) or 1. Source: QIL eqs. (1)-(4).
  """

  learn_gamma: bool = option(False, 'whether gamma is trained')
  bit_widths = tuple(range(2, base.MAX_BITS + 1))

  @property
  def learned(self):
    return ('center', 'distance', 'gamma') if self.learn_gamma else ('center', 'distance')

  def init(self, x):
    q = 2 ** (self.bits - 1) - 1
    return self._init(q * hwgq.WEIGHT_STEP[self.bits - 1] * jnp.sqrt(jnp.mean(jnp.square(x)))) | (
      {'gamma': jnp.float32(1)} if self.learn_gamma else {}
    )

  def quantize(self, x, parameters):
    q = 2 ** (self.bits - 1) - 1
    return base.QTensor(jnp.round(q * self.surrogate(x, parameters)).astype(jnp.int32), np.float32(1 / q))

  def surrogate(self, x, parameters):
    return jnp.sign(x) * transform(jnp.abs(x), **self._interval(parameters))


@dataclasses.dataclass(frozen=True)
class Activation(_Interval):
  """Activations on the levels 0, 1/n, .., 1: x_hat = round(n t(x)) / n for x > 0, else 0; n = 2^b - 1, gamma = 1.

  Gradients: straight through the rounding, for c and d times `gradient_scale`. Source: QIL eqs. (5), (6).
  """

  def init(self, x):
    n = 2**self.bits - 1
    return self._init(n * hwgq.activation_step(self.bits, step='optimal') * base.half_gaussian_deviation(x))

  def quantize(self, x, parameters):
    n = 2**self.bits - 1
    return base.QTensor(jnp.round(n * self.surrogate(x, parameters)).astype(jnp.int32), np.float32(1 / n))

  def surrogate(self, x, parameters):
    # Left of 0 nothing is transformed, also where c < d.
    return jnp.where(x > 0, transform(x, **self._interval(parameters)), 0)
