"""Speed of CMT-KD's compiled train step, beside plain networks, a PyTorch version, and itself with parts left out.

Run: python benchmarks/train_step.py --preset=cifar100 --dtype=bfloat16 --out=FILE.json     (writes FILE.md beside it)

Presets are the package's configurations; a step is its `train_step`, augmentation and metrics included, on one batch of
uint8 images that lies on the device. Every variant is compiled and warmed up; then they take turns, so that a slow
minute hits all alike: a repeat is a number of steps in a row that nothing waits for but their end. Ratios are medians
over the repeats, each against CMT-KD in the same repeat: on a CPU of CPU time, which other jobs disturb less than wall
time, best with --one_core; on an accelerator of wall time. The operations of a
step are those of its convolutions and dense layers, counted from their shapes: forward, and twice that for the
gradients of weights and inputs (the images' is left out). They are set against what this device reaches on one large
matrix product or convolution of the same type. PyTorch runs in a process of its own on the same device, from
`torch_cmtkd.py`. Variants that fail are listed as not run, with the reason. At the end CMT-KD's step is profiled, and
the time of its operations summed by part (see `operations.py`).
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch wants its part of the device

import flax
import jax
import jax.numpy as jnp
import numpy as np
import operations
import optax

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses
from cmtkd_jax.data import splits
from cmtkd_jax.methods.base import MultiNetwork, peer_networks, student_network
from cmtkd_jax.models import bit_table
from cmtkd_jax.runs import provenance
from cmtkd_jax.runtime import allocator
from cmtkd_jax.training import build, optimizer
from cmtkd_jax.training.step import initial_state, initial_state_options, jit_train_step

WARM_UP = 3  # steps
_PROFILED = 5  # steps at most
LEARNING_RATE = 1e-3


def small(config):
  """Compiles and runs on a CPU in seconds: for trying this file out."""
  config.model.name, config.model.width, config.data.image_size = 'resnet8', 1.0, 16
  config.method.cmtkd.teacher_bits = (4, 8)


def resnet8(config):
  """What the studies on a CPU train, on images of CIFAR."""
  config.model.name, config.model.width = 'resnet8', 1.0


CAN_BIND = hasattr(os, 'sched_setaffinity')  # macOS has no way to bind a process to a core

# Name -> (config, classes, batch size, steps a repeat, whether images are cropped on the device, changes).
PRESETS = {
  'cifar100': ('cifar100_resnet18', 100, 256, 20, True, lambda config: None),
  'imagenet': ('imagenet_resnet18', 1000, 128, 10, False, lambda config: None),
  'resnet8': ('cifar100_resnet18', 10, 128, 5, True, resnet8),
  'small': ('cifar100_resnet18', 100, 16, 5, True, small),
}


class Apart(MultiNetwork):
  """Networks that train in one step and never meet: a cross entropy each."""

  def loss(self, outputs, labels):
    """Returns (sum of the cross entropies, each of them)."""
    terms = {f'{name}/cross_entropy': losses.cross_entropy(z, labels) for name, z in outputs.logits.items()}
    return sum(terms.values()), terms


def apart(config, classes):
  """The networks of `config.method.cmtkd`, without anything that connects them."""
  peers = peer_networks(config, config.method.cmtkd.teacher_bits, 'method.cmtkd.teacher_bits', classes)
  return Apart((student_network(config, classes), *peers), None)


def full_precision(config):
  config.student.weight_bits = config.student.activation_bits = 32
  config.method.cmtkd.teacher_bits = (32,) * len(config.method.cmtkd.teacher_bits)


# Name -> (what it is, changes to the configuration, the method it makes).
OURS = {
  'cmtkd': ('CMT-KD', {}, build.create_method),
  'plain': ('as many full-precision networks', full_precision, apart),
  'without_quantizers': ('CMT-KD in full precision', full_precision, build.create_method),
  'without_attention': ('CMT-KD without attention loss', {'feature_loss.name': 'none'}, build.create_method),
  'without_mutual': ('CMT-KD, mutual loss weighted 0', {'method.cmtkd.beta': 0.0}, build.create_method),
  'without_augmentation': ('CMT-KD without augmentation', {'data.augment': 'none'}, build.create_method),
  'trivial_augment': ('CMT-KD with TrivialAugment', {'data.trivial_augment': True}, build.create_method),
  'without_fusion': ('the quantized networks apart', {}, apart),
}
# Name -> (what it is, module, mode).
TORCH = {
  'torch_eager': ('CMT-KD, PyTorch', 'cmtkd', 'eager'),
  'torch_compile': ('CMT-KD, PyTorch, torch.compile', 'cmtkd', 'default'),
  'torch_graphs': ("CMT-KD, PyTorch, torch.compile 'reduce-overhead'", 'cmtkd', 'reduce-overhead'),
  'torch_plain': ('as many full-precision networks, PyTorch, torch.compile', 'plain', 'default'),
}


def clocks():
  """Wall time and the CPU time of all threads of this process, in seconds."""
  return time.perf_counter(), time.process_time()


class Ours:
  """A variant in JAX: compiled and warmed up."""

  def __init__(self, name, config, classes, crops, batch):
    _, changes, create = OURS[name]
    if callable(changes):
      changes(config)
    else:
      config.update_from_flattened_dict(changes)
    config_lib.check(config)
    data, method = config.data, create(config, classes)
    augment_fn, _ = splits.transforms(data, crops)
    parts = dict(
      method=method, optimizer=optimizer.create(config, method, lambda step: LEARNING_RATE), augment=augment_fn
    )
    self.flops = train_flops(method, batch['image'].shape)
    self.batch = batch
    begin = time.perf_counter()
    self.state = jax.block_until_ready(
      jax.jit(functools.partial(initial_state, {}, **parts, seed=0), compiler_options=initial_state_options())(batch)
    )
    self.initial_seconds, begin = time.perf_counter() - begin, time.perf_counter()
    self.step = jit_train_step(None, **parts).lower(self.state, batch).compile()
    self.compile_seconds = time.perf_counter() - begin
    self.run(WARM_UP)

  def run(self, steps):
    """Returns (wall time, CPU time) of a step in seconds, the mean of `steps` in a row."""
    begin = clocks()
    for _ in range(steps):
      self.state, metrics = self.step(self.state, self.batch)
    loss = float(jax.block_until_ready(metrics)['loss'])
    seconds = tuple((after - before) / steps for before, after in zip(begin, clocks()))
    if not np.isfinite(loss):
      raise RuntimeError(f'the loss is {loss}')
    return seconds

  def about(self):
    """What was found when it was compiled."""
    memory, cost = self.step.memory_analysis(), self.step.cost_analysis() or {}
    planned = memory and (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
    )
    return {
      'initial_state_seconds': self.initial_seconds,
      'compile_seconds': self.compile_seconds,
      'memory': planned,
      'flops': self.flops,
      'flops_of_the_compiler': cost.get('flops'),
      'bytes_of_the_compiler': cost.get('bytes accessed'),
    }


class FailedError(Exception):
  """Why something failed in the other process."""


class Torch:
  """A variant in PyTorch: compiled and warmed up in the other process."""

  def __init__(self, name, connection, config, classes, batch):
    _, kind, mode = TORCH[name]
    self.name, self.connection = name, connection
    method = apart(config, classes) if kind == 'plain' else build.create_method(config, classes)
    self.flops = train_flops(method, batch['image'].shape)
    widths = (32,) * (1 + len(config.method.cmtkd.teacher_bits))
    self.found = self.ask('prepare', widths if kind == 'plain' else kind, mode, WARM_UP)

  def ask(self, task, *arguments):
    """Returns what the other process answers; raises `FailedError` if that is why it could not."""
    self.connection.send((task, self.name, *arguments))
    answer = self.connection.recv()
    if isinstance(answer, str):
      raise FailedError(answer)
    return answer

  def run(self, steps):
    """Returns (wall time, CPU time) of a step in seconds, the mean of `steps` in a row."""
    return self.ask('run', steps)

  def about(self):
    """What was found when it was prepared."""
    return self.found | {'flops': self.flops}


def torch_process(config, classes, batch):
  """Starts the process that answers for PyTorch; returns (process, connection)."""
  import torch_cmtkd

  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe()
  arrays = (np.asarray(batch['image']), np.asarray(batch['label']))
  process = context.Process(target=torch_cmtkd.serve, args=(theirs, config.to_dict(), classes, *arrays), daemon=True)
  process.start()
  theirs.close()
  return process, ours


def train_flops(method, shape):
  """Floating-point operations of a step on images [B, H, W, C]: two a multiply-accumulate."""
  rows = bit_table.collect(method, shape[1:])
  of_images = sum(row.macs for row in rows if row.layer.endswith('stem/conv'))
  return 2 * shape[0] * (3 * sum(row.macs for row in rows) - of_images)


def roofline(dtype):
  """Operations a second of one large matrix product, and of one convolution, at their best of several repeats."""
  gpu = jax.default_backend() != 'cpu'
  n, batch = (8192, 256) if gpu else (1024, 8)
  ones = lambda *shape: jax.random.normal(jax.random.key(0), shape, dtype)
  convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  cases = {
    'matmul': (jnp.matmul, ones(n, n), ones(n, n), 2 * n**3),
    'convolution': (convolve, ones(batch, 16, 16, 256), ones(3, 3, 256, 256), 2 * batch * 16**2 * 9 * 256**2),
  }
  found = {}
  for name, (function, a, b, flops) in cases.items():
    compiled = jax.jit(function)
    compiled(a, b).block_until_ready()
    times = []
    for _ in range(5):
      begin = time.perf_counter()
      for _ in range(10):
        result = compiled(a, b)
      result.block_until_ready()
      times.append((time.perf_counter() - begin) / 10)
    found[name] = flops / min(times)
  return found


def cpu_model():
  """What the processor calls itself, '' where the system does not say."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor()


def environment(options):
  """What the figures hold for."""
  versions = {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'optax': optax.__version__,
  }
  try:
    import torch

    versions['torch'] = torch.__version__
  except ImportError:
    pass
  return {
    'device': jax.devices()[0].device_kind,
    'platform': jax.default_backend(),
    'cpu': cpu_model(),
    'cpus': len(os.sched_getaffinity(0)) if CAN_BIND else os.cpu_count(),
    'load': os.getloadavg()[0],
    'versions': versions,
    'commit': provenance.commit() or options.commit,
    'command': ' '.join(['python', *sys.argv]),
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
  }


def render(report):
  """The report as Markdown."""
  about, batch = report['about'], report['batch']
  peak = max(report['roofline'].values())
  clock = report['clock']
  lines = [
    f'**Train step, preset {report["preset"]}, {report["dtype"]}, batch {batch}**, on {about["device"]}; '
    f'{about["cpus"]} cores of {about["cpu"] or "an unnamed CPU"}, load at the start {about["load"]:.1f}; '
    f'jax {about["versions"]["jax"]}, torch {about["versions"].get("torch", "-")}, commit {about["commit"] or "?"}',
    '',
    f'`{about["command"]}`',
    '',
    f'| step | ms, median (fastest - slowest repeat) | CPU ms | {clock} / CMT-KD, median (least - most) | images/s '
    '| of the roofline | memory, MiB | compiled in, s |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for row in report['variants'].values():
    if row.get('seconds') and 'not_run' not in row:
      wall = statistics.median(row['seconds'])
      ms = [1e3 * x for x in (wall, min(row['seconds']), max(row['seconds']))]
      memory = f'{row["memory"] / 2**20:,.0f}' if row['memory'] else '-'
      cpu_ms = 1e3 * statistics.median(row['cpu_seconds'])
      ratios = paired_ratios(report, row)
      ratio = f'{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})' if ratios else '-'
      lines.append(
        f'| {row["title"]} | {ms[0]:.1f} ({ms[1]:.1f} - {ms[2]:.1f}) | {cpu_ms:.1f} '
        f'| {ratio} | {batch / wall:,.0f} | {100 * row["flops"] / wall / peak:.0f} % | {memory} '
        f'| {row["compile_seconds"]:.0f} |'
      )
    else:
      lines.append(f'| {row["title"]} | not run: {row.get("not_run", "not yet")} | | | | | | |')
  measured = ', '.join(f'{name} {value / 1e12:.2f}' for name, value in report['roofline'].items())
  lines += [
    '',
    f"Roofline, TFLOP/s: {measured}. Memory: the compiled plan of a JAX step, the allocator's peak of a "
    'PyTorch step on a GPU.',
    '',
  ]
  if 'parts' in report:
    lines += [
      'Shares of the time of all operations of CMT-KD, profiled; fused ones count for their convolution, else '
      'for the last in them:',
      '',
      operations.render(report['parts']),
      '',
    ]
  return '\n'.join(lines)


def paired_ratios(report, row):
  """Returns `row`'s time over that of CMT-KD, repeat by repeat; [] where CMT-KD was not run."""
  field = 'cpu_seconds' if report['clock'] == 'CPU time' else 'seconds'
  reference = report['variants'].get('cmtkd', {}).get(field) or []
  return [own / other for own, other in zip(row[field], reference)]


def save(report, out):
  """Writes the report, if it is wanted, as JSON and as Markdown."""
  if out:
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + '\n')
    out.with_suffix('.md').write_text(render(report))


def measure(options):
  """Runs everything; returns the report, which is also written as it grows."""
  file, classes, batch_size, steps, crops, change = PRESETS[options.preset]
  config = config_lib.load_config(__file__, f'../configs/{file}')
  change(config)
  config.dtype, config.batch_size = options.dtype, options.batch or batch_size
  size, channels = config.data.image_size, len(config.data.mean)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (config.batch_size, size, size, channels), np.uint8),
    'label': rng.integers(0, classes, config.batch_size, np.int32),
  }
  batch = jax.device_put(batch, jax.devices()[0])
  steps = options.steps or steps
  report = {
    'about': environment(options),
    'preset': options.preset,
    'dtype': options.dtype,
    'batch': config.batch_size,
    'steps': steps,
    'repeats': options.repeats,
    'clock': 'CPU time' if jax.default_backend() == 'cpu' else 'time',
    'roofline': roofline(jnp.dtype(options.dtype)),
    'variants': {},
  }

  ready, process, connection = {}, None, None
  for name in options.only:
    row = report['variants'][name] = {'title': (OURS | TORCH)[name][0]}
    with recorded(name, row):
      if name in OURS:
        ready[name] = Ours(name, config.copy_and_resolve_references(), classes, crops, batch)
      else:
        if process is None:
          process, connection = torch_process(config, classes, batch)
        ready[name] = Torch(name, connection, config, classes, batch)
      row |= ready[name].about() | {'seconds': [], 'cpu_seconds': []}
      if len(ready) == 1:  # later the steps before are in it
        row['device_peak'] = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
      print(f'{name}: ready in {row["compile_seconds"]:.1f} s', flush=True)
    save(report, options.out)

  for _ in range(options.repeats):
    for name, variant in ready.items():
      row = report['variants'][name]
      if 'not_run' not in row:
        with recorded(name, row):
          for field, seconds in zip(('seconds', 'cpu_seconds'), variant.run(steps)):
            row[field].append(seconds)
    save(report, options.out)
  if process is not None:
    connection.close()
    process.join()
  if 'cmtkd' in ready and 'not_run' not in report['variants']['cmtkd']:
    step = ready['cmtkd'].step.as_text()
    report['parts'] = operations.by_part(lambda: ready['cmtkd'].run(min(steps, _PROFILED)), step)
    save(report, options.out)
  return report


@contextlib.contextmanager
def recorded(name, row):
  """What fails inside is told in the report; the others go on."""
  try:
    yield
  except Exception as e:
    row['not_run'] = ('' if isinstance(e, FailedError) else f'{type(e).__name__}: ') + ' '.join(str(e).split())[:300]
    print(f'{name}: not run: {row["not_run"]}', flush=True)


def main():
  variants = (*OURS, *TORCH)
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--preset', choices=PRESETS, default='cifar100')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--batch', type=int, help="instead of the preset's")
  parser.add_argument(
    '--only', type=lambda text: text.split(','), default=variants, help=f'some of {",".join(variants)}'
  )
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--steps', type=int, help='of a repeat')
  parser.add_argument('--one_core', action='store_true', help='compute on one core of the CPU')
  parser.add_argument('--commit', default='', help='where the checkout has no history')
  parser.add_argument('--out', help='JSON file to write')
  options = parser.parse_args()
  if unknown := set(options.only) - set(variants):
    parser.error(f'--only: there is no {", ".join(sorted(unknown))}; there are {", ".join(variants)}')
  if options.one_core:
    if not CAN_BIND:
      parser.error('--one_core: this system cannot bind a process to a core; leave it out')
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before JAX and PyTorch start their threads
  allocator.keep_memory()  # as the command does
  print(render(measure(options)))


if __name__ == '__main__':
  main()
