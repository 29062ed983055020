"""APoT: levels that are sums of powers of two, under a learned clip (Li, Dong, Wang, ICLR 2020)."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base


@functools.cache
def magnitudes(bits):
  """Returns the 2^bits ascending levels from 0 to 1, float32.

  Each is a sum of terms p_1 + .. + p_m, normalized, and each term is 0 or one of three powers of two. With bits = 2 m,
  term j takes its exponents at j, m + j, 2 m + j. If bits is odd, one more term is 0 or 2^-(2 m + 1), and the last
  exponent of each other term grows by one. bits = 1: the levels 0 and 1.

  Source: APoT eqs. (5), (8) with k = 2; the odd widths are the authors' code.
  """
  m, odd = divmod(bits, 2)
  terms = [[0, *(2.0 ** -(i * m + j + (odd if i == 2 else 0)) for i in range(3))] for j in range(1, m + 1)]
  if odd:
    terms.append([0, 2.0 ** -(2 * m + 1)])
  sums = np.sort([sum(choice) for choice in itertools.product(*terms)])
  return (sums / sums[-1]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """Standardized weights on additive powers of two of both signs and 0, up to the learned clip a.

      v = (w - mean w) / std w,  w_hat = a P(clip(v / a, -1, 1)),  P: nearest of +-`magnitudes(b - 1)`

  2 bits: the levels -a, 0, a. Gradients: of v as if P were the identity, masked by 1[|v| < a] (2 bits: unmasked);
  dw_hat/da = P - v / a inside, sign(v) outside; mean and standard deviation are differentiated too.
  Source: APoT sections 2.2, 2.3; Algorithm 1.
  """

  init_clip: float = option(3.0, 'where the clip starts, in standard deviations', above=0)
  learned = ('clip',)
  bit_widths = tuple(range(2, base.MAX_BITS + 1))

  def init(self, x):
    return {'clip': jnp.float32(self.init_clip)}

  def quantize(self, x, parameters):
    a = base.magnitude(parameters['clip'])
    positive = magnitudes(self.bits - 1)
    levels = jnp.asarray(np.concatenate([-positive[:0:-1], positive]))
    centered, deviation = _center(x)
    return base.QTensor(base.nearest_level(_ratio(centered, deviation, a), levels), a, levels=levels)

  def surrogate(self, x, parameters):
    a, (centered, deviation) = base.magnitude(parameters['clip']), _center(x)
    ratio = _ratio(centered, deviation, a)
    value = a * base.ste(_projected(self, x, parameters), base.clip(ratio, -1, 1))
    if self.bits > 2:
      return value
    outside = jnp.abs(ratio) >= 1  # where only the clip has a gradient so far
    v = centered * (1 / deviation)
    return value + jnp.where(outside, v - jax.lax.stop_gradient(v), 0)


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """Activations on additive powers of two from 0 to the learned clip a: x_hat = a P(clip(x / a, 0, 1)).

  P: nearest of `magnitudes(b)`. Gradients: dx_hat/dx = 1[0 < x < a]; dx_hat/da = P - x / a inside, 1 above.
  Source: APoT eqs. (4), (6).
  """

  init_clip: float = option(6.0, 'where the clip starts', above=0)
  learned = ('clip',)

  def init(self, x):
    return {'clip': jnp.float32(self.init_clip)}

  def quantize(self, x, parameters):
    a = base.magnitude(parameters['clip'])
    levels = jnp.asarray(magnitudes(self.bits))
    return base.QTensor(base.nearest_level(x * (1 / a), levels), a, levels=levels)

  def surrogate(self, x, parameters):
    a = base.magnitude(parameters['clip'])
    return a * base.ste(_projected(self, x, parameters), base.clip(x * (1 / a), 0, 1))


def _center(w):
  """(w - mean w, std w)."""
  centered = w - jnp.mean(w)
  variance = jnp.sum(jnp.square(centered)) * np.float32(1 / max(1, w.size - 1))
  return centered, jnp.sqrt(jnp.maximum(variance, base.SMALLEST**2))


def _ratio(centered, deviation, clip):
  # v / a as one product with one reciprocal: compilers may or may not merge two products, and the codes must be the
  # same wherever they are computed. So is the reciprocal of a constant above.
  return centered * (1 / (deviation * clip))


def _projected(quantizer, x, parameters):
  """P of the clipped ratio, a constant."""
  coded = quantizer.quantize(jax.lax.stop_gradient(x), {'clip': jax.lax.stop_gradient(parameters['clip'])})
  return coded.levels[coded.codes]
