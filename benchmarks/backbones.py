"""Every backbone: trained with three methods at three pairs of bits, exported, and compared; and what a step takes.

Run: python benchmarks/backbones.py --out=benchmarks/results/backbones.json [--only=REGEX]    (writes the .md beside it)

A case is a backbone, a method and the student's bits: a few steps on generated images, an evaluation, every exact file,
and the integer evaluation. Networks are narrow, but have their depth and their stem. Training is compiled quickly, what
is compared as always. At width 1 and at the network's own image size a step is compiled and run a few times: cases such
as 'resnet8 cmtkd step'. Cases in the JSON file are kept and not run again, but for failed ones; --only takes those
whose name, such as 'resnet8 kd 2/2', has a match. Each backbone has a process of its own, so that one that dies does
not end the others. The exit status is 1 if any case failed.
"""

import argparse
import collections
import concurrent.futures
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import pathlib
import re
import shutil
import statistics
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import jax
import numpy as np
import train_step

from cmtkd_jax import config as config_lib
from cmtkd_jax import export
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain
from cmtkd_jax.export import compare, interpreter
from cmtkd_jax.models import MODELS
from cmtkd_jax.runs import provenance
from cmtkd_jax.runtime import allocator
from cmtkd_jax.runtime.progress import Progress
from cmtkd_jax.training import build, memory, optimizer
from cmtkd_jax.training.step import initial_state, initial_state_options, jit_train_step

METHODS = ('single', 'kd', 'cmtkd')
BITS = ((2, 2), (1, 2), (4, 4))
# Side of the images of those with a stem for ImageNet; the others take 32x32. Their files are compared on the smallest
# images that AlexNet takes, since depth, not size, is what may make files differ.
IMAGENET = {
  'resnet18': 224,
  'resnet34': 224,
  'resnet50': 224,
  'alexnet': 227,
  'alexnet_torchvision': 224,
  'mobilenet_v2': 224,
}
FILES = ('packed', 'stablehlo', 'onnx_qdq', 'onnx_qonnx')  # exact; the last is for other programs to read
SMALLEST = 67
BACKBONES = [name for name in MODELS if name not in ('resnet56', 'resnet110')]  # which are resnet20 with more blocks
CLASSES, TEST_IMAGES, TRAINING_STEPS = 10, 64, 32
MOST_STEPS, ENOUGH_SECONDS = 5, 20  # of a timed case
_TEACHER = 'teacher'


def widths(backbone):
  """Factor on the channels; of networks that begin with 16 less would be left than can learn something."""
  return 1 / 8 if backbone in IMAGENET or backbone == 'vgg_small' else 1 / 2


def configuration(backbone, method, bits, width, batch, size):
  """One run on generated images."""
  config = config_lib.default()
  config_lib.smoke(config, size, classes=CLASSES)
  config.data.name = f'generated:{size}x{size}x3:{CLASSES}:{5 * TEST_IMAGES}'
  config.data.augment = 'none'
  config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
  config.model.name, config.model.width = backbone, width
  config.model.stem = 'imagenet' if backbone in IMAGENET else 'cifar'
  config.model.bn_momentum = 0.8  # a few steps have to measure the statistics
  config.method.name = method
  config.student = dict(weight_bits=bits[0], activation_bits=bits[1])
  config.teacher_workdirs = (f'{{{_TEACHER}}}',) if method == 'kd' else ()
  config.optimizer.learning_rate, config.optimizer.decay_at = 0.1, ''
  config.batch_size, config.eval_batch_size = batch, TEST_IMAGES // 2
  config.duration = config.eval_every = config.checkpoint_every = f'{TRAINING_STEPS} steps'
  return config


def _side(backbone):
  """Of the images on which files are compared."""
  return SMALLEST if backbone in IMAGENET else 32


def exported(backbone, method, bits, scratch):
  """Trains a network, writes its files and counts what they answer otherwise; returns the row."""
  train = functools.partial(configuration, backbone, width=widths(backbone), batch=32, size=_side(backbone))
  directories = {_TEACHER: str(scratch / backbone / _TEACHER)}
  workdir = scratch / backbone / 'student'
  shutil.rmtree(workdir, ignore_errors=True)
  jax.config.update('jax_disable_most_optimizations', True)
  if method == 'kd':  # one for all bits; what is finished is not trained again
    chain.train_chain(train('single', (32, 32)), directories[_TEACHER])
  chain.train_chain(train(method, bits), workdir, directories)
  jax.config.update('jax_disable_most_optimizations', False)

  network = export.from_run(workdir)
  row = {'files': {}, 'refused': {}}
  functions = {}
  for name in FILES:
    if missing := export.FORMATS[name].missing():
      row['refused'][name] = f'{missing} is not installed'
      continue
    try:
      path = export.write(network, workdir / export.FOLDER, [name])[name]
    except UserError as e:
      row['refused'][name] = str(e)
      continue
    row['files'][name] = {'bytes': path.stat().length}
    if export.FORMATS[name].read:
      functions[name] = export.open_network(path)[0]
  return row | answers(compare._Run(workdir, None, None), network.graph, functions, row['files'])


def answers(run, graph, functions, files):
  """Compares the files' answers with training and with the integer evaluation; completes the rows in `files`."""
  network, other_way = (interpreter.Network(graph, sums) for sums in interpreter.SUMS)
  found, by_layer = collections.Counter(), collections.Counter()
  guesses = collections.defaultdict(list)
  each = lambda ours, others, mask: {
    layer: int(np.sum((np.asarray(ours[layer]) != np.asarray(others[layer]))[mask])) for layer in ours
  }
  differing = lambda *arguments: sum(each(*arguments).values())
  for pixels, labels, mask in run.batches():
    trained, trained_codes = run.forward(pixels)
    integers, codes = network.with_codes(pixels)
    found['codes'] += sum(np.asarray(values)[mask].size for values in codes.values())
    by_layer.update(each(codes, trained_codes, mask))
    found['codes_unlike_the_other_way_to_sum'] += differing(codes, other_way.with_codes(pixels)[1], mask)
    results = {'training': trained, 'integers': integers}
    for name, function in functions.items():
      if isinstance(function, interpreter.Network):
        results[name], own = function.with_codes(pixels)
        files[name]['codes_unlike_integers'] = files[name].get('codes_unlike_integers', 0) + differing(own, codes, mask)
      else:
        results[name] = function(pixels)
    for name, logits in results.items():
      guesses[name].append(np.argmax(np.asarray(logits), -1)[mask])
    guesses['labels'].append(labels[mask])
  guesses = {name: np.concatenate(parts) for name, parts in guesses.items()}
  unlike = lambda name, other: int(np.sum(guesses[name] != guesses[other]))
  for name in functions:
    files[name] |= {f'unlike_{other}': unlike(name, other) for other in ('integers', 'training')}
  return dict(found) | {
    'codes_unlike_training': by_layer.total(),
    'layers_unlike_training': {layer: count for layer, count in by_layer.items() if count},
    'images': len(guesses['labels']),
    'top1': 100 * float(np.mean(guesses['integers'] == guesses['labels'])),
    'classes_predicted': len(set(guesses['integers'])),
    'integers_unlike_training': unlike('integers', 'training'),
  }


def timed(backbone, method):
  """Compiles a step at width 1 and runs it; returns the row."""
  batch = 8 if backbone in IMAGENET else 32
  config = configuration(backbone, method, (2, 2), 1.0, batch, IMAGENET.get(backbone, 32))
  config.method.cmtkd.teacher_bits = (4, 6, 8)
  dataset = build.load_data(config, build.make_mesh())
  created = build.create_method(config, dataset.num_classes)
  parts = dict(method=created, optimizer=optimizer.create(config, created, lambda step: 1e-3), augment=dataset.augment)
  images = next(dataset.train.batches(0))
  start = jax.jit(functools.partial(initial_state, {}, **parts, seed=0), compiler_options=initial_state_options())
  state = start(images)
  begin = train_step.clocks()
  step = jit_train_step(None, **parts).lower(state, images).compile()
  compiled = [end - start for start, end in zip(begin, train_step.clocks())]
  analysis, times = step.memory_analysis(), []
  while len(times) <= MOST_STEPS and (len(times) < 3 or sum(wall for wall, _ in times) < ENOUGH_SECONDS):
    begin = train_step.clocks()
    state, metrics = step(state, images)
    jax.block_until_ready(metrics)
    times.append([end - start for start, end in zip(begin, train_step.clocks())])
  wall, cpu = zip(*times[1:])  # the first warms up
  return {
    'batch': batch,
    'steps': len(wall),
    'seconds': statistics.median(wall),
    'cpu_seconds': statistics.median(cpu),
    'compile_cpu_seconds': compiled[1],
    'held': memory.held(analysis),
    'temporary': analysis.temp_size_in_bytes,
    'loss': float(metrics['loss']),
  }


def cases(only):
  """`{name: (backbone, function and its arguments)}`."""
  found = {}
  for backbone in BACKBONES:
    for method in METHODS:
      for bits in BITS:
        found[f'{backbone} {method} {bits[0]}/{bits[1]}'] = backbone, exported, (backbone, method, bits)
  for backbone in BACKBONES:
    for method in ('single', 'cmtkd'):
      found[f'{backbone} {method} step'] = f'{backbone} {method} step', timed, (backbone, method)
  return {name: case for name, case in found.items() if re.search(only, name)}


def run_case(function, arguments, scratch, log):
  """Runs a case in a process of its own; what the library prints goes to `log`."""
  allocator.keep_memory()  # as the command does
  begin = time.process_time()
  with log.open('a') as sys.stderr:
    try:
      row = function(*arguments, *((scratch,) if function is exported else ()))
      row['status'] = verdict(row) if function is exported else 'run'
    except UserError as e:
      row = {'status': 'refused', 'reason': str(e)}
    except Exception as e:
      place = traceback.extract_tb(e.__traceback__)[-1]
      message = ' '.join(str(e).split())[:300]
      row = {'status': 'failed', 'reason': f'{type(e).__name__}: {message} ({place.filename}:{place.lineno})'}
      traceback.print_exc()
  sys.stderr = sys.__stderr__
  jax.clear_caches()
  return row | {'case_cpu_seconds': time.process_time() - begin, 'commit': provenance.commit()}


def verdict(row):
  """'same', or what differs."""
  files = row['files'].values()
  if row['codes_unlike_the_other_way_to_sum'] or any(
    file.get('codes_unlike_integers') or file.get('unlike_integers') for file in files
  ):
    return 'files differ'
  if row['integers_unlike_training']:
    return 'predictions differ'
  return 'codes differ' if row['codes_unlike_training'] else 'same'


def run_all(report, wanted, save, scratch, log):
  """Runs the cases that are missing."""
  missing = [name for name in wanted if report['cases'].get(name, {}).get('status', 'failed') == 'failed']
  begin, pool, owner = time.monotonic(), None, None
  start = lambda: concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
  with Progress(len(missing), unit='case') as progress:
    progress.update(0, 0)
    for done, name in enumerate(missing, 1):
      group, function, arguments = wanted[name]
      if group != owner or pool is None:
        if pool is not None:
          pool.shutdown()
        for folder in scratch.iterdir():
          shutil.rmtree(folder)
        pool, owner = start(), group
      try:
        row = pool.submit(run_case, function, arguments, scratch, log).result()
      except concurrent.futures.process.BrokenProcessPool as e:
        row, pool = {'status': 'failed', 'reason': f'the process died: {e}'}, None
      report['cases'][name] = row
      save(report)
      progress.note(f'{name}: {row["status"]} {row.get("reason", "")}'.rstrip())
      progress.update(done, 0, seconds_a_case=(time.monotonic() - begin) / done)
  if pool is not None:
    pool.shutdown()


def render(report):
  """The report as Markdown."""
  about, rows = report['about'], report['cases']
  versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
  commits = sorted({row.get('commit') or '?' for row in rows.values()})
  pairs = collections.Counter(row['status'] for name, row in rows.items() if not name.endswith('step'))
  cores = f'{about["cpus"]} core{"" if about["cpus"] == 1 else "s"} of {about["cpu"]}'
  lines = [
    f'`{about["command"]}`, commit {", ".join(commits)}; {cores}, load at the start {about["load"]:.1f}; {versions}.',
    '',
    f'**Exports** of {sum(pairs.values())} cases: {", ".join(f"{count} {status}" for status, count in pairs.items())}. '
    f'Widths 1/2 (ResNet8 to 32, WRN) and 1/8, HWGQ, {TRAINING_STEPS} steps, {TEST_IMAGES} test images, '
    'CMT-KD with teachers of 4 and 8 bits, KD from full precision. Columns count codes and predictions that differ: '
    'of the integer evaluation from training, and of each file from the integer evaluation / from training (a code is '
    "compared where a file's reader tells codes, in the packed archive). `written` is not evaluated here.",
    '',
    '| backbone | image | method | W/A | status | top-1 | codes, integers - training '
    '| predictions, integers - training | packed: codes, predictions | StableHLO | ONNX QDQ | QONNX | reason |',
    '|---|---|---|---|---|---|---|---|---|---|---|---|---|',
  ]
  for name, row in rows.items():
    if name.endswith('step'):
      continue
    backbone, method, bits = name.split()
    size = _side(backbone)
    reasons = [row.get('reason', ''), *(f'{file}: {reason}' for file, reason in row.get('refused', {}).items())]
    counts = ['-'] * 7
    if 'files' in row:
      counts = [
        f'{row["top1"]:.0f} %',
        f'{row["codes_unlike_training"]:,} of {row["codes"]:,}',
        f'{row["integers_unlike_training"]} of {row["images"]}',
        *(_file(row['files'].get(file)) for file in FILES),
      ]
    lines.append(
      f'| {backbone} | {size} | {method} | {bits} | {row["status"]} | {" | ".join(counts)} '
      f'| {"; ".join(filter(None, reasons)).replace("|", "/")} |'
    )
  lines += [
    '',
    '**A training step** at width 1, float32, medians; the first step is left out. Memory by the compiled plan: state '
    "and batch / temporary buffers. Another job's load lengthens wall time, CPU time less so.",
    '',
    '| backbone | image | batch | method | CPU, s | wall, s | steps | state and batch, MiB | temporary, MiB '
    '| compiled in CPU, s |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for name, row in rows.items():
    if not name.endswith('step'):
      continue
    backbone, method, _ = name.split()
    size = IMAGENET.get(backbone, 32)
    if row['status'] == 'run':
      lines.append(
        f'| {backbone} | {size} | {row["batch"]} | {method} | {row["cpu_seconds"]:.2f} | {row["seconds"]:.2f} '
        f'| {row["steps"]} | {row["held"] / 2**20:,.0f} | {row["temporary"] / 2**20:,.0f} '
        f'| {row["compile_cpu_seconds"]:.0f} |'
      )
    else:
      lines.append(f'| {backbone} | {size} | | {method} | {row["status"]}: {row["reason"]} | | | | | |')
  return '\n'.join(lines) + '\n'


def _file(row):
  if row is None:
    return 'refused'
  if 'unlike_integers' not in row:
    return 'written'
  counts = f'{row["unlike_integers"]} / {row["unlike_training"]}'
  return f'{row["codes_unlike_integers"]}, {counts}' if 'codes_unlike_integers' in row else counts


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON file to write, or to go on with')
  parser.add_argument('--only', default='', help='regular expression on the names of cases')
  parser.add_argument('--commit', default='', help='where the checkout has no history')
  parser.add_argument('--log', type=pathlib.Path, default=pathlib.Path('/dev/null'), help="for the library's messages")
  options = parser.parse_args()
  everything, about = cases(''), train_step.environment(options)
  about['versions'] |= {
    name: importlib.metadata.version(name) for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name)
  }
  report = {'about': about, 'cases': {}}
  if options.out.exists():
    report['cases'] = json.loads(options.out.read_text())['cases']

  def save(report):
    report['cases'] = {name: report['cases'][name] for name in everything if name in report['cases']}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + '\n')
    options.out.with_suffix('.md').write_text(render(report))

  with tempfile.TemporaryDirectory() as scratch:
    run_all(report, cases(options.only), save, pathlib.Path(scratch), options.log)
  save(report)
  print(options.out.with_suffix('.md').read_text())
  return int(any(row['status'] == 'failed' for row in report['cases'].values()))


if __name__ == '__main__':
  sys.exit(main())
