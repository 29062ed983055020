"""The networks that leave training: what is evaluated, kept as best, exported and handed on.

They are the trained ones themselves, unless the configuration asks for their average or for other statistics of the
batch normalizations.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import traverse_util

from cmtkd_jax.training import build

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
      # Without momentum, the running statistics are those of the last batch.
      same = config.copy_and_resolve_references()
      same.model.bn_momentum = 0.0
      method = build.create_method(same, plan.dataset.num_classes, plan.teachers)
      self._statistics = jax.jit(
        functools.partial(batch_statistics, method=method, augment=plan.dataset.augment, seed=config.seed),
        out_shardings=plan.sharding,
      )
      self._combine = jax.jit(combine_statistics, out_shardings=plan.sharding)

  @property
  def is_apart(self):
    return self._averages or bool(self._batches)

  def __call__(self, state):
    """Returns `{'params': ..., collections}`."""
    variables = state.average if self._averages else state.variables
    if not self._batches:
      return variables
    batches = itertools.islice(self._loader.batches(0), self._batches)
    parts = [self._statistics(variables, i, batch) for i, batch in enumerate(batches)]
    kept = {name: tree for name, tree in variables.get(_STATISTICS, {}).items() if name in self._frozen}
    return variables | {_STATISTICS: self._combine(parts) | kept}


def batch_statistics(variables, index, batch, *, method, augment, seed):
  """Returns the mean and variance that every batch normalization has on one batch, augmented as in training.

  Args:
    variables: of all networks.
    index: number of the batch, which decides its augmentation.
    batch: as that of `train_step`.
    method: a `methods.Method` whose normalizations have no momentum.
    augment, seed: as those of training.
  """
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _KEY), index)
  images = augment(key, batch['image'])
  if method.views > 1:
    images = jnp.stack([images] * method.views)
  collections = [name for name in variables if name != 'params']
  _, changed = method.apply(variables, images, train=True, mutable=collections, rngs={'sampling': key})
  return changed.get(_STATISTICS, {})


def combine_statistics(parts):
  """Returns the statistics of all batches together, from those of equally large ones.

      mean = E_b[mean_b],  var = E_b[var_b] + E_b[(mean_b - mean)^2]

  Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (PreciseBN).
  """
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
  flat = traverse_util.flatten_dict(stacked)
  combined = {}
  for path, values in flat.items():
    combined[path] = jnp.mean(values, axis=0)
    if path[-1] == 'var':
      means = flat[*path[:-1], 'mean']
      combined[path] += jnp.mean(jnp.square(means - jnp.mean(means, axis=0)[None]), axis=0)
  return traverse_util.unflatten_dict(combined)
