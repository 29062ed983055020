"""EWGS: rounding whose gradient is scaled element by element (Lee, Kim, Ham, CVPR 2021)."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def discretize(x, n, delta):
  """Rounds to the n + 1 levels 0, 1/n, .., 1.

      x_q = round(n x) / n,   dL/dx = g (1 + delta sign(g) (x - x_q)),  g = dL/dx_q

  A gradient that pushes a value over the next threshold is enlarged, one that holds it back is made smaller.

  Args:
    x: float32 in [0, 1], any shape.
    n: number of steps, int.
    delta: >= 0; 0 is the straight-through estimator.

  Source: EWGS eqs. (3), (5).
  """
  return jnp.round(x * n) / n


def _discretize_backward(n, delta, error, g):
  del n
  return (g * (1 + delta * jnp.sign(g) * error),)


discretize.defvjp(lambda x, n, delta: (discretize(x, n, delta), x - discretize(x, n, delta)), _discretize_backward)


@dataclasses.dataclass(frozen=True)
class _Interval(base.Quantizer):
  """An interval between learned bounds, rounded by `discretize`.

  The paper also derives delta from the Hessian, epoch by epoch; its fixed value is 1e-3.
  """

  delta: float = option(1e-3, 'how strongly `discretize` scales gradients')
  learned: ClassVar[tuple[str, ...]] = ('lower', 'upper')

  def _normalize(self, x, lower, upper):
    return base.clip((x - lower) * (1 / base.ste_maximum(upper - lower)), 0, 1)

  def _bounds(self, parameters, factor):
    return (base.scale_gradient(parameters[name], factor) for name in ('lower', 'upper'))


@dataclasses.dataclass(frozen=True)
class Weight(_Interval):
  """Weights between learned bounds l and u on 2^b levels from -|a| to |a|, with a learned scale a.

      w_n = clip((w - l) / (u - l), 0, 1),  w_hat = |a| (2 x_q(w_n) - 1),  x_q: `discretize`, n = 2^b - 1

  Gradients: through `discretize`; for l and u times 1 / sqrt(N n), since all parameters here share one optimizer and
  the paper's have Adam at 1e-5. The scale is the paper's of the convolution's output. start: its start, in units of
  E|w| / E|w_hat|; the published code starts where the mean magnitude of the output is kept, which is at about 3.2 of
  them, since activations become codes in [0, 1], too. Source: EWGS sections 3.2, 4.1.
  """

  start: float = option(1.0, 'start of the scale, in units of E|w| / E|w_hat|', above=0)
  learned = ('lower', 'upper', 'scale')

  def init(self, x):
    reach = 3 * jnp.maximum(jnp.std(x), base.SMALLEST)
    parameters = {'lower': -reach, 'upper': reach, 'scale': jnp.float32(1)}
    ratio = jnp.mean(jnp.abs(x)) / jnp.maximum(jnp.mean(jnp.abs(self.fake_quantize(x, parameters))), base.SMALLEST)
    return parameters | {'scale': jnp.where(ratio > 0, self.start * ratio, self.start)}

  def quantize(self, x, parameters):
    n = 2**self.bits - 1
    codes = jnp.round(n * self._normalize(x, parameters['lower'], parameters['upper']))
    return base.QTensor(codes.astype(jnp.int32), jnp.abs(parameters['scale']) * np.float32(2 / n), n / 2)

  def surrogate(self, x, parameters):
    n = 2**self.bits - 1
    normal = self._normalize(x, *self._bounds(parameters, np.float32(1 / math.sqrt(x.size * n))))
    return jnp.abs(parameters['scale']) * (2 * discretize(normal, n, self.delta) - 1)


@dataclasses.dataclass(frozen=True)
class Activation(_Interval):
  """Activations, after a ReLU, between learned bounds on the 2^b levels 0, 1/n, .., 1.

      x_n = clip((relu(x) - l) / (u - l), 0, 1),  x_hat = x_q(x_n),  x_q: `discretize`, n = 2^b - 1

  Gradients: through `discretize`; for l and u times 1 / sqrt(features n). The bounds start at the least value and at
  three standard deviations of the Gaussian whose magnitudes would have this spread. Source: EWGS sections 3.2, 4.1.
  """

  def init(self, x):
    x = jax.nn.relu(x)
    lower = jnp.min(x)
    upper = 3 / math.sqrt(1 - 2 / math.pi) * jnp.std(x)
    return {'lower': lower, 'upper': jnp.where(upper - lower > base.SMALLEST, upper, lower + 1)}

  def quantize(self, x, parameters):
    n = 2**self.bits - 1
    codes = jnp.round(n * self._normalize(jax.nn.relu(x), parameters['lower'], parameters['upper']))
    return base.QTensor(codes.astype(jnp.int32), np.float32(1 / n))

  def surrogate(self, x, parameters):
    n = 2**self.bits - 1
    return discretize(
      self._normalize(jax.nn.relu(x), *self._bounds(parameters, base.step_gradient_scale(x, n))), n, self.delta
    )
