"""Run by runtime/test_distributed.py, as one process or as several: what batches hold, and the state after some steps.

python -m tests.distributed_probe DIRECTORY [--coordinator_address=... --num_processes=... --process_id=...]
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax.runs.checkpoint import Checkpoints
from cmtkd_jax.runtime import distributed
from cmtkd_jax.training import build, optimizer
from cmtkd_jax.training.evaluate import Evaluator
from cmtkd_jax.training.step import initial_state, train_step
from tests import tiny_main  # noqa: F401  the network


def own_rows(array):
  """What this process's devices hold of a batch: [[first row, values], ...]."""
  return sorted(
    [shard.index[0].start or 0, np.asarray(shard.data).ravel().tolist()] for shard in array.addressable_shards
  )


def main():
  directory, *given = sys.argv[1:]
  coordinator, processes, process = (argument.partition('=')[2] for argument in given)
  distributed.initialize(distributed.Cluster(coordinator, int(processes), int(process)))
  directory, me = pathlib.Path(directory), jax.process_index()
  config = config_lib.default()
  config_lib.smoke(config, 8, channels=1)
  config.model.width, config.method.cmtkd.teacher_bits = 4 / 64, (4,)
  mesh = build.make_mesh()
  replicated = build.replicated(mesh)
  labels = {}
  for on_device in ('yes', 'no'):
    config.data.on_device = on_device
    dataset = build.load_data(config, mesh)
    stream = dataset.train.batches(2)  # the last batch of an epoch and the first of the next
    labels[on_device] = [own_rows(next(stream)['label']) for _ in range(2)]
    stream.close()
  config.data.on_device = 'yes'
  dataset = build.load_data(config, mesh)
  method = build.create_method(config, dataset.num_classes)
  parts = dict(method=method, optimizer=optimizer.create(config, method, lambda step: 0.01), augment=dataset.augment)
  stream = dataset.train.batches(0)
  batch = next(stream)
  state = jax.jit(functools.partial(initial_state, **parts, seed=0), out_shardings=replicated)({}, batch)
  state, metrics = jax.jit(functools.partial(train_step, **parts), out_shardings=replicated)(state, batch)
  results = Evaluator(method, dataset, replicated).evaluate({'params': state.params, **state.model_state})
  with Checkpoints(directory / 'checkpoints') as checkpoints:
    checkpoints.save(1, state.to_tree(), {'step': 1})
  if me == 0:
    arrays = traverse_util.flatten_dict(jax.device_get(state.to_tree()['variables']), sep='/')
    np.savez(directory / 'state.npz', **arrays)
  (directory / f'process{me}.json').write_text(
    json.dumps(
      {
        'labels': labels,
        'metrics': {k: float(v) for k, v in metrics.items()},
        'results': results,
        'processes': jax.process_count(),
        'texts': distributed.texts_of_all('é' * me),
        'devices': jax.device_count(),
      }
    )
  )


if __name__ == '__main__':
  main()
