"""The networks that a run releases: they are evaluated, kept as the best, exported, and used by other runs.

They are the trained ones themselves, unless the configuration asks for their average or for other statistics of the
batch normalizations.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from cmtkd_jax.training import build
from cmtkd_jax.training.step import SAMPLING, parts_of

_STATISTICS = 'batch_stats'
_KEY = 2**31 - 4  # a stream of the run's key that no step uses


class Release:
  """Function of the train state that returns the variables of the networks to evaluate and save.

  is_apart: whether they are others than those of the train state, so that checkpoints hold both.
  """

  def __init__(self, plan):
    config = plan.config
    self._averages, self._batches = plan.averaging.weight is not None, config.bn_reestimation
    self._loader, self._frozen = plan.dataset.train, plan.method.frozen
    if self._batches:
      # With momentum 0, a normalization keeps the statistics of the last part that it saw. Of several groups it would
      # keep the mean of their variances, without the variance between them: so there is one group, and more parts.
      same = config.copy_and_resolve_references()
      same.model.bn_momentum, same.model.bn_groups = 0.0, 1
      add = functools.partial(
        add_batch,
        method=build.method_of(same, plan.dataset.num_classes, plan.teachers),
        augment=plan.dataset.augment,
        seed=config.seed,
        parts=config.grad_accum_steps * config.model.bn_groups,
      )
      self._add = jax.jit(add, out_shardings=plan.sharding)
      self._result = jax.jit(Statistics.result, out_shardings=plan.sharding)

  @property
  def is_apart(self):
    return self._averages or bool(self._batches)

  def __call__(self, state, show=lambda text: None):
    """Returns `{'params': ..., collections}`; `show` shows the user how far it is, called often."""
    variables = self.without_measuring(state)
    if not self._batches:
      return variables
    total = Statistics.start(variables.get(_STATISTICS, {}))
    for i, batch in enumerate(itertools.islice(self._loader.batches(0), self._batches)):
      show(f'measuring the statistics of batch normalizations: batch {i + 1}/{self._batches}')
      before, total = total, self._add(total, variables, i, batch)
      jax.block_until_ready(before)  # no more than two batches wait for the device
    kept = {name: tree for name, tree in variables.get(_STATISTICS, {}).items() if name in self._frozen}
    return variables | {_STATISTICS: self._result(total) | kept}

  def without_measuring(self, state):
    """Returns the variables without measuring statistics: a process that is asked to stop may not have the time."""
    return state.average if self._averages else state.variables

  def tree(self, state, variables=None):
    """Returns what a checkpoint of `state` holds, with these released `variables`, or those `without_measuring`."""
    if not self.is_apart:
      return state.to_tree()
    return state.to_tree(self.without_measuring(state) if variables is None else variables)


class Statistics(NamedTuple):
  """Mean and variance of the rows of several equally large batches, from those of each batch.

      mean = E_b[mean_b],  var = E_b[var_b] + E_b[(mean_b - mean)^2]

  batches: their number, float32 scalar.
  average, spread: the collection of statistics, averaged over batches, and its sums of squares around that.

  Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (PreciseBN); sums of Welford 1962.
  """

  batches: jax.Array
  average: Any
  spread: Any

  @classmethod
  def start(cls, statistics):
    """Returns the statistics of no batches, in the structure of `statistics`."""
    zeros = jax.tree.map(jnp.zeros_like, statistics)
    return cls(jnp.float32(0), zeros, zeros)

  def add(self, statistics):
    """Returns the statistics with one more batch, whose own are `statistics`."""
    batches = self.batches + 1
    average = jax.tree.map(lambda a, x: a + (x - a) / batches, self.average, statistics)
    spread = jax.tree.map(
      lambda s, x, old, new: s + (x - old) * (x - new), self.spread, statistics, self.average, average
    )
    return Statistics(batches, average, spread)

  def result(self):
    """Returns the collection for all batches together."""
    average, spread = traverse_util.flatten_dict(self.average), traverse_util.flatten_dict(self.spread)
    for path in average:
      if path[-1] == 'var':
        average[path] += spread[*path[:-1], 'mean'] / self.batches
    return traverse_util.unflatten_dict(average)


def add_batch(total, variables, index, batch, *, method, augment, seed, parts=1):
  """Returns `total`, a `Statistics`, with what every batch normalization measures on one more batch.

  Args:
    total: of the batches before.
    variables: of all networks.
    index: number of the batch, which decides its augmentation.
    batch: as that of `train_step`.
    method: a `methods.Method` whose normalizations have neither momentum nor groups.
    augment, seed: as those of training.
    parts: into how many parts, as `parts_of` cuts them, the batch is normalized.
  """
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _KEY), index)
  images = augment(key, batch['image'])
  collections = [name for name in variables if name != 'params']

  def add(total, part):
    images, key = part
    views = jnp.stack([images] * method.views) if method.views > 1 else images
    _, changed = method.apply(variables, views, train=True, mutable=collections, rngs={'sampling': key})
    return total.add(changed.get(_STATISTICS, {})), None

  keys = jax.random.split(jax.random.fold_in(key, SAMPLING), parts)
  return jax.lax.scan(add, total, (parts_of(images, parts, 0), keys))[0]
