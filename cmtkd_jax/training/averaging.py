"""Averages of the networks over training: EMA and SWA, which are one update with another weight.

    average_t = average_{t-1} + w_t (network_t - average_{t-1})

Parameters, running statistics and fitted quantizer values are averaged alike. Until it begins, w_t = 1 and the average
is the network itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmtkd_jax.config import durations
from cmtkd_jax.errors import UserError


class Averaging(NamedTuple):
  """The average that a run keeps; without `weight` it keeps none.

  weight: function of the number of finished steps, int32 -> w_t, a float32 scalar in [0, 1].
  """

  weight: Callable | None = None

  def init(self, variables):
    """Returns the average before the first step, `()` where none is kept."""
    return () if self.weight is None else jax.tree.map(jnp.copy, variables)

  def update(self, average, variables, step):
    """Returns the average after `step` steps, of networks whose variables are then `variables`."""
    if self.weight is None:
      return ()
    w = self.weight(step)
    # What does not change, such as a frozen teacher, keeps its bits.
    return jax.tree.map(lambda a, x: jnp.where(w == 1, x, a + w * (x - a)), average, variables)


def ema_weight(step, start, decay):
  """w_t of the exponential moving average that begins after `start` steps.

      w_t = 1 - min(decay, (1 + n) / (10 + n)),  n = t - start;  1 before

  It starts fast, so that the first networks are soon forgotten.

  Source: Polyak and Juditsky 1992; the start is that of tf.train.ExponentialMovingAverage with `num_updates`.
  """
  n = jnp.asarray(step - start, jnp.float32)
  return jnp.where(n < 0, 1.0, 1 - jnp.minimum(decay, (1 + n) / (10 + n)))


def swa_weight(step, start, every):
  """w_t of the mean of the networks after steps start, start + every, start + 2 every, ...

      w_t = 1 / (n + 1) at the n-th of them, n = 0, 1, ...;  0 in between;  1 before

  Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, algorithm 1.
  """
  since = step - start
  count = jnp.asarray(since // every + 1, jnp.float32)
  return jnp.where(since < 0, 1.0, jnp.where(since % every == 0, 1 / jnp.maximum(count, 1), 0.0))


def create(config, total_steps, **sizes):
  """Returns the `Averaging` of `config.averaging`; sizes: as for `durations.parse`.

  Raises:
    UserError: a field is not a duration, or lies outside of the training of `total_steps` steps.
  """
  options = config.averaging
  if options.name == 'none':
    return Averaging()
  start = durations.parse_one(options.start, 'config.averaging.start', **sizes)
  if start >= total_steps:
    raise UserError(
      f'config.averaging.start={options.start!r} does not lie before the end of training, step {total_steps}; lower it'
    )
  if options.name == 'ema':
    return Averaging(lambda step: ema_weight(step, start, options.decay))
  every = durations.parse_one(options.every, 'config.averaging.every', **sizes)
  if not every:
    raise UserError(f"config.averaging.every={options.every!r} must be above 0; give '1 epochs'")
  start = start or every  # the network before the first step has learned nothing
  if start > total_steps:
    raise UserError(
      f'config.averaging.every={options.every!r}: the first network to average would be that of step {start}, after '
      f'the end of training, step {total_steps}; shorten it'
    )
  return Averaging(lambda step: swa_weight(step, start, every))
