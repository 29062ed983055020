"""LQ-Nets: levels spanned by a basis that is fitted to the data at every step, QEM (Zhang et al., ECCV 2018)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base

RIDGE = 1e-4  # pulls the fitted basis to the old one, which decides where the data leave a coefficient open
_QUARTILE = 0.6745  # of |x| for x ~ N(0, 1): half of the values lie below


def sorted_levels(basis, binary):
  """Returns the ascending levels [..., 2^K] of `basis` [..., K], and the signs or bits [..., 2^K, K] that make each."""
  level = jnp.einsum('nk,...k->...n', binary, basis, precision='highest')
  order = jnp.argsort(level, axis=-1)
  return jnp.take_along_axis(level, order, axis=-1), binary[order]


def fit_basis(x, codes, factors, basis):
  """Basis that explains `x` best in the sense of least squares, given what each value is coded as.

      v = (B^T B / N + r I)^-1 (B^T x / N + r v_old),  B: row e of `factors` for each value

  Args:
    x: float32 [N].
    codes: int32 [N], in [0, 2^K).
    factors: e for each code, float32 [2^K, K].
    basis: v_old, float32 [K].

  Returns:
    float32 [K].

  Source: LQ-Nets eq. (9). r = 1e-4: the published code adds it to sums, not to means, and for weights only; here it
  keeps the system of activations solvable, too. Weights agree with that code to 4e-5, activations to 1e-3.
  """

  def of_code(k):  # counts, since a float32 sum of products loses digits with millions of values
    return jnp.sum(codes == k, dtype=jnp.int32).astype(jnp.float32), jnp.sum(jnp.where(codes == k, x, 0))

  count, total = jax.lax.map(of_code, jnp.arange(len(factors), dtype=jnp.int32))
  weighted = (factors * (count / x.size)[:, None]).T
  gram = jnp.matmul(weighted, factors, precision='highest') + RIDGE * jnp.eye(len(basis))
  projection = jnp.matmul(factors.T, total / x.size, precision='highest') + RIDGE * basis
  return jnp.linalg.solve(gram, projection)


@dataclasses.dataclass(frozen=True)
class _Basis(base.Quantizer):
  """A basis that follows its fits f_1, f_2, .. of all steps so far, as their average with falling weights.

      v_t = (1 - m) / (1 - m^t) * sum_i m^(t-i) f_i,   i = 1..t

  The initial basis codes the first step; the first fit then replaces it, v_1 = f_1. This is the published code's
  average: TensorFlow's `assign_moving_average` removes the bias towards a start at zero, and so removes the start.

  The state holds v_t in 'basis' and t in 'updates'.
  """

  momentum: float = option(0.9, 'm, weight of earlier batches in the running average of fits', least=0, below=1)
  fitted = ('basis', 'updates')

  def _binary(self, low):
    """All 2^K rows of K factors that are 1, or `low`."""
    bits = (np.arange(2**self.bits)[:, None] >> np.arange(self.bits)) & 1
    return jnp.asarray(np.where(bits, 1, low), jnp.float32)

  def _follow(self, parameters, fitted):
    """The state after one more fit."""
    updates = parameters['updates'] + 1
    return {'basis': base.running_average(parameters['basis'], fitted, updates, self.momentum), 'updates': updates}


@dataclasses.dataclass(frozen=True)
class Weight(_Basis):
  """Weights on the 2^K levels v_c . e, e in {-1, 1}^K, with a fitted basis v_c for each output channel; K = b.

  Each weight takes its nearest level. Gradient: the identity. The basis starts from the deviation of all weights, where
  the authors' code has that of He's initialization. Source: LQ-Nets section 3.
  """

  def init(self, x):
    start = _QUARTILE * jnp.maximum(jnp.std(x), base.SMALLEST) / 2 ** (self.bits - 1)
    basis = start * 2.0 ** jnp.arange(self.bits, dtype=jnp.float32)
    return {'basis': jnp.tile(basis, (x.shape[-1], 1)), 'updates': jnp.float32(0)}

  def quantize(self, x, parameters):
    levels, _ = sorted_levels(parameters['basis'], self._binary(-1))
    return base.QTensor(base.nearest_level_by_channel(x, levels), jnp.float32(1), levels=levels)

  def surrogate(self, x, parameters):
    return x

  def update(self, x, parameters):
    basis = parameters['basis']
    _, factors = sorted_levels(basis, self._binary(-1))
    by_channel = lambda a: a.reshape(-1, a.shape[-1]).T
    codes = by_channel(self.quantize(x, parameters).codes)
    return self._follow(parameters, jax.vmap(fit_basis)(by_channel(x), codes, factors, basis))


@dataclasses.dataclass(frozen=True)
class Activation(_Basis):
  """Activations, after a ReLU, on the 2^K levels v . e, e in {0, 1}^K, with one fitted basis v a layer; K = b.

  Gradient: g * 1[0 < x <= top level]. Source: LQ-Nets section 3.
  """

  def init(self, x):
    basis = 2 * _QUARTILE / (2**self.bits - 1) * 2.0 ** jnp.arange(self.bits, dtype=jnp.float32)
    return {'basis': basis, 'updates': jnp.float32(0)}

  def quantize(self, x, parameters):
    levels, _ = sorted_levels(parameters['basis'], self._binary(0))
    return base.QTensor(base.nearest_level(jax.nn.relu(x), levels), jnp.float32(1), levels=levels)

  def surrogate(self, x, parameters):
    levels, _ = sorted_levels(parameters['basis'], self._binary(0))
    return base.mask_gradient((x > 0) & (x <= levels[-1]), x)

  def update(self, x, parameters):
    basis = parameters['basis']
    _, factors = sorted_levels(basis, self._binary(0))
    codes = self.quantize(x, parameters).codes.reshape(-1)
    return self._follow(parameters, fit_basis(jax.nn.relu(x).reshape(-1), codes, factors, basis))
