"""Time of a training step of every run of a table, relative to its first one; needs an idle machine.

Run: python benchmarks/step_time.py --config=benchmarks/quantizers_resnet8.py [--steps=20] [--out=FILE.json]

Images are generated, of the configured size; runs of trained teachers are left out. Each run's step is compiled, warmed
up, and timed in rounds over all runs, so that a slow minute does not hit one run alone; the median counts.
"""

import functools
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
from absl import app, flags
from ml_collections import config_flags

from cmtkd_jax import config as config_lib
from cmtkd_jax.runs import provenance
from cmtkd_jax.training import build, optimizer
from cmtkd_jax.training.step import initial_state, initial_state_options, jit_train_step

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A table of runs, or one configuration.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Timed steps of each run.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_ROUND = 5  # steps between two runs


class Timed:
  """One run, compiled and warmed up, and the times of its steps in seconds."""

  def __init__(self, config):
    size, channels = config.data.image_size, len(config.data.mean)
    config.data.name = f'generated:{size}x{size}x{channels}:10:{2 * config.batch_size}'
    dataset = build.load_data(config, build.make_mesh())
    method = build.create_method(config, dataset.num_classes)
    parts = dict(method=method, optimizer=optimizer.create(config, method, lambda step: 1e-3), augment=dataset.augment)
    self.batch = next(dataset.train.batches(0))
    self.state = jax.jit(
      functools.partial(initial_state, {}, **parts, seed=0), compiler_options=initial_state_options()
    )(self.batch)
    begin = time.perf_counter()
    self.step = jit_train_step(None, **parts).lower(self.state, self.batch).compile()
    self.compile_time, self.times = time.perf_counter() - begin, []
    self.run(2)
    self.times.clear()

  def run(self, steps):
    """Times `steps` steps."""
    for _ in range(steps):
      begin = time.perf_counter()
      self.state, metrics = self.step(self.state, self.batch)
      jax.block_until_ready(metrics)
      self.times.append(time.perf_counter() - begin)


def main(argv):
  del argv
  config = _CONFIG.value
  runs = {name: config_lib.derive(config, config.table.runs[name].to_dict()) for name in config.table.runs}
  timed = {}
  for name, run in (runs or {'run': config_lib.derive(config, {})}).items():
    if not run.teacher_workdirs:
      timed[name] = Timed(run)
      print(f'compiled {name} in {timed[name].compile_time:.1f} s', flush=True)
  for _ in range(-(-_STEPS.value // _ROUND)):
    for one in timed.values():
      one.run(_ROUND)
  median = {name: statistics.median(one.times) for name, one in timed.items()}
  reference = median.get('full_precision', next(iter(median.values())))
  rows = {
    name: {
      'seconds': seconds,
      'relative': seconds / reference,
      'fastest': min(timed[name].times),
      'compile_seconds': timed[name].compile_time,
    }
    for name, seconds in median.items()
  }
  for name, row in sorted(rows.items(), key=lambda item: item[1]['seconds']):
    print(f'{name:28}{1e3 * row["seconds"]:10.1f} ms{row["relative"]:8.2f} x')
  if _OUT.value:
    about = {
      'command': ' '.join(['python', *sys.argv]),
      'commit': provenance.commit(),
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'cpus': os.cpu_count(),
      'jax': jax.__version__,
      'steps': _STEPS.value,
      'batch_size': config.batch_size,
    }
    with open(_OUT.value, 'w') as file:
      json.dump(about | {'runs': rows}, file, indent=1)


if __name__ == '__main__':
  app.run(main)
