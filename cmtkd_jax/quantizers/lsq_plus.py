"""LSQ+: learned steps and, for activations, a learned offset (Bhalgat et al., CVPR Workshops 2020)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base, lsq

FUNCTIONS = {'relu': jax.nn.relu, 'swish': jax.nn.swish, 'identity': lambda x: x}
_SAMPLES = 4096  # values of the first batch, from which step and offset start


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """LSQ's weights with another start.

      s = max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1),  then `lsq.fake_quantize` on the signed grid

  Source: LSQ+ section 3.2.1.
  """

  learned = ('step',)
  bit_widths = tuple(range(2, base.MAX_BITS + 1))

  def init(self, x):
    mean, spread = jnp.mean(x), 3 * jnp.std(x)
    step = jnp.maximum(jnp.abs(mean - spread), jnp.abs(mean + spread)) / 2 ** (self.bits - 1)
    return {'step': jnp.where(step > base.SMALLEST, step, 1.0)}

  def quantize(self, x, parameters):
    return lsq.quantize(x, parameters['step'], self.bits, signed=True)

  def fake_quantize(self, x, parameters):
    return lsq.fake_quantize(x, parameters['step'], self.bits, True, lsq.gradient_scale(x, self.bits, signed=True))


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """Activations on 2^b evenly spaced levels, of which the lowest is a learned offset.

      x_hat = s round(clip((f(x) - o) / s, 0, n)) + o,  n = 2^b - 1

  function: f, the activation function itself, which other quantizers are: 'relu', 'swish' or 'identity'. Swish falls
    until x = -1.28; with about 3 bits and more its codes do, too, and the network cannot be exported.
  Gradients: dx_hat/ds as in LSQ with f(x) - o, dx_hat/do = 1[outside], both times 1 / sqrt(features n);
  dx_hat/df = 1[inside]. Step and offset start from the least squared error on a sample of the first batch, among 50
  ends of the levels and 11 offsets. Source: LSQ+ eqs. (3)-(6).
  """

  function: str = option(
    'relu', "f, the activation function itself; 'swish' cannot be exported from about 3 bits", choices=tuple(FUNCTIONS)
  )
  learned = ('step', 'offset')

  def init(self, x):
    x = FUNCTIONS[self.function](x).reshape(-1)
    if x.size > _SAMPLES:  # drawn: every n-th value could be those of one channel
      x = x[np.random.default_rng(0).integers(x.size, size=_SAMPLES, dtype=np.int32)]
    low, high, n = jnp.min(x), jnp.max(x), 2**self.bits - 1

    def error(part):
      step, offset = _grid(low, high, part, n)
      return jnp.mean(jnp.square(step * jnp.round(jnp.clip((x - offset) / step, 0, n)) + offset - x))

    parts = np.stack(np.meshgrid(np.linspace(0, 1, 11), np.linspace(0.02, 1, 50)), -1).reshape(-1, 2).astype(np.float32)
    step, offset = _grid(low, high, jnp.asarray(parts)[jnp.argmin(jax.vmap(error)(parts))], n)
    return {'step': step, 'offset': offset}

  def quantize(self, x, parameters):
    n, step = 2**self.bits - 1, base.magnitude(parameters['step'])
    ratio = (FUNCTIONS[self.function](x) - parameters['offset']) * (1 / step)
    return base.QTensor(jnp.round(jnp.clip(ratio, 0, n)).astype(jnp.int32), step, 0.0, parameters['offset'])

  def surrogate(self, x, parameters):
    n = 2**self.bits - 1
    step, offset = (base.scale_gradient(parameters[name], base.step_gradient_scale(x, n)) for name in self.learned)
    step = base.magnitude(step)
    ratio = (FUNCTIONS[self.function](x) - offset) * (1 / step)
    return step * base.ste_round(base.clip(ratio, 0, n)) + offset


def _grid(low, high, part, n):
  """(step, offset) of the grid over parts [2] of the range left and right of 0; it includes 0 even if `low` > 0."""
  start = jnp.minimum(low, 0) * part[0]
  return jnp.maximum((high * part[1] - start) / n, base.SMALLEST), start
