"""Exported files compared with the network they were made from, on the whole test split."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax import export
from cmtkd_jax.data.transforms.augment import standardize
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter, manifest, sizes
from cmtkd_jax.models import STUDENT, inspect, layers
from cmtkd_jax.runs import run_reader
from cmtkd_jax.runtime import distributed, text_table
from cmtkd_jax.runtime.progress import Progress
from cmtkd_jax.training import restore

_CALIBRATION = 256  # images
_TRAINING, _INTEGERS = 'forward pass of training', 'integer forward pass'  # rows of the table


def integer_against_training(workdir, config=None, step=None):
  """Evaluates the integer forward pass and that of training.

  Args:
    workdir: directory of a run.
    config: as for `restore.open_run`.
    step: which checkpoint; None for the newest.

  Returns:
    JSON-able dict: top-1 of the integer forward in percent, how many predictions and codes differ from those of
    training, how many codes there are, `{layer: codes that differ}` where any do, and how many codes of one batch
    differ between the two ways to sum, of which there should be none.
  """
  exported = export.from_run(workdir, step)
  graph, network = exported.graph, interpreter.Network(exported.graph)
  run = _Run(workdir, config, exported.about['step'])  # the newest may be another one by now
  right = predictions = total = 0
  differing = {}
  for pixels, labels, mask in run.batches():
    logits, codes = run.forward(pixels)
    our_logits, our_codes = network.with_codes(pixels)
    ours = np.argmax(our_logits, -1)
    right += int(np.sum((ours == labels)[mask]))
    predictions += int(np.sum((ours != np.argmax(logits, -1))[mask]))
    for layer, values in our_codes.items():
      here = np.asarray(values)[mask] != np.asarray(codes[layer])[mask]
      total += here.size
      differing[layer] = differing.get(layer, 0) + int(here.sum())
  return {
    f'test/{STUDENT}/top1_in_integers': 100 * right / run.num_examples,
    'predictions_that_differ': predictions,
    'codes_that_differ': sum(differing.values()),
    'codes': total,
    'layers_that_differ': {layer: count for layer, count in differing.items() if count},
    'codes_that_differ_between_ways_to_sum': sum(interpreter.differing_codes(graph, pixels).values()),
  }


def export_and_compare(workdir, formats=None, config=None, step=None):
  """Writes the files of a run into WORKDIR/export and returns a table of their sizes and accuracies as text.

  Args:
    workdir: directory of a run.
    formats: names in `export.FORMATS` or `FOLDERS`; None for all files whose packages are installed.
    config, step: as for `integer_against_training`.

  Raises:
    UserError: there is no such run, `config` cannot be used, or a format that was asked for cannot be written.
  """
  if config is not None:
    config_lib.check(config)
  export.check_formats(formats or ())
  exported = export.from_run(workdir, step)
  step = exported.about['step']  # from here on: training may save a newer one meanwhile
  notes, asked = [f'this is step {step} of the run'], formats is not None
  if not asked:
    missing = {name: kind.missing() for name, kind in export.FORMATS.items()}
    formats = [name for name in missing if not missing[name]]
    notes += [f'{name} is left out: {package} is not installed' for name, package in missing.items() if package]
  run = calibration = None
  try:
    run = _Run(workdir, config, step)
    if any(name in export.FORMATS and export.FORMATS[name].calibrates for name in formats):
      calibration = run.training_images(_CALIBRATION)
    notes += [f'test: {run.held_out}'] if run.held_out else []
  except UserError as e:  # sizes need no data
    run = None
    notes.append(f'not evaluated: {e}')
  folder = epath.Path(workdir) / export.FOLDER
  paths = _write(exported, folder, formats, calibration, notes, must_all=asked)
  header, body = ['file', 'KiB'], [[str(path), f'{_size(path) / 1024:,.1f}'] for path in paths.values()]
  if run is not None:
    if run.dtype != 'float32':
      notes.append(f'training computes in {run.dtype} and the files in float32, so some predictions differ')
    header += ['top-1', 'predictions unlike training', 'unlike the integer forward']
    found = _accuracies(run, exported.graph, paths)
    body = [[name, ''] for name in (_TRAINING, _INTEGERS)] + body
    body = [[*row, *found.get(row[0], ('', '', ''))] for row in body]
  return '\n'.join([*text_table.lines(header, body), '', weight_sizes(exported.graph), *notes, *_stale(folder, step)])


def _write(exported, folder, formats, calibration, notes, must_all):
  """Returns `{format: path}` of the files written; adds to `notes` why others were not, unless all must be."""
  paths = {}
  for name in formats:
    try:
      paths |= export.write(exported, folder, [name], calibration)
    except UserError as e:
      if must_all or not paths or isinstance(e, export.NotWrittenError):  # the first can hold every network
        raise
      notes.append(f'{name} is left out: {e}')
  return paths


def _accuracies(run, graph, paths):
  """`{row of the table: (accuracy, predictions unlike training, unlike integers)}` on all test images."""
  kinds = export.FORMATS | export.FOLDERS
  functions = {_TRAINING: lambda pixels: run.forward(pixels)[0], _INTEGERS: interpreter.Network(graph)}
  functions |= {str(path): export.open_network(path)[0] for name, path in paths.items() if kinds[name].read}
  guesses, labels = {name: [] for name in functions}, []
  for pixels, label, mask in run.batches():
    labels.append(label[mask])
    for name, function in functions.items():
      guesses[name].append(np.argmax(np.asarray(function(pixels)), -1)[mask])
  labels, guesses = np.concatenate(labels), {name: np.concatenate(parts) for name, parts in guesses.items()}
  return {
    name: (
      f'{100 * np.mean(own == labels):.2f} %',
      *(f'{np.sum(own != guesses[other])} of {len(labels)}' for other in (_TRAINING, _INTEGERS)),
    )
    for name, own in guesses.items()
  }


def _stale(folder, step):
  """Lines on files of earlier exports in `folder`."""
  lost = manifest.stale(folder, [kind.file for kind in export.FORMATS.values()])
  of = {folder / kind.file: _step(folder / kind.file, kind) for kind in export.FOLDERS.values()}
  return [
    *(f'{path} is of an earlier export and can no longer be read: export it again' for path in lost),
    *(f'{path} is of step {n} and stays as it is: export it again' for path, n in of.items() if n not in (None, step)),
  ]


def _step(folder, kind):
  """The step of a folder that was exported before, None where there is none that can be read."""
  try:
    return kind.read(folder)[1].get('step') if folder.is_dir() else None
  except UserError:
    return None


def _size(path):
  """Bytes of a file, or of all files of a folder."""
  return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().length


def weight_sizes(graph):
  """Returns in words how many bytes the weights take, and would take as float32."""
  by_bits = sizes.by_bits(graph)
  parts = [
    f'{count:,} of {bits} bit{"s" * (bits > 1)} take {count * bits / 8192:,.1f} KiB' for bits, count in by_bits.items()
  ]
  total = sum(by_bits.values())
  size = sum(count * bits for bits, count in by_bits.items())
  saved = f', {32 * total / size:.1f} times less than as float32' if size < 32 * total else ''
  return f'weights: {", ".join(parts)}; together {size / 8192:,.1f} KiB{saved}'


class _Run:
  """A run's network as training evaluates it, and the test images as exported files take them."""

  def __init__(self, workdir, config, step):
    opened = restore.open_run(workdir, config, step)
    self._method, self._variables, self._data = opened.method, opened.variables, opened.dataset
    before = run_reader.read(workdir).config
    data, self.dtype = before.data, (before if config is None else config).dtype
    if config is not None and config.data.resize != data.resize:
      raise UserError(
        f'config.data.resize={config.data.resize}: exported networks take images as the run in {workdir} did, with '
        f'resize={data.resize}; make them equal'
      )
    mean, std = (np.float32(value).reshape(1, 1, 1, -1) for value in (data.mean, data.std))
    pixels = lambda images: jnp.round((self._data.normalize(images) * std + mean) * 255)
    self._pixels = jax.jit(lambda images: pixels(images).astype(jnp.uint8))
    # Variables are arguments: as constants, compilers would compute with them before any image comes.
    forward = jax.jit(functools.partial(_forward_with_codes, self._method, mean=tuple(data.mean), std=tuple(data.std)))
    self.forward = functools.partial(forward, self._variables)
    self.num_examples = self._data.evals['test'].num_examples
    self.held_out = self._data.held_out

  def training_images(self, count):
    """Returns about `count` images of the training split, uint8 [N, H, W, C]."""
    batches = itertools.islice(self._data.train.batches(), -(-count // len(self._data.train.indices(0))))
    return np.concatenate([np.asarray(self._pixels(batch['image'])) for batch in batches])

  def batches(self):
    """Yields (uint8 [B, H, W, C], resized and cropped; labels; mask of real examples), NumPy arrays; shows progress."""
    begin, done = time.monotonic(), 0
    with Progress(self.num_examples, enabled=distributed.is_first(), unit='image') as progress:
      for batch in self._data.evals['test'].batches():
        yield tuple(np.asarray(value) for value in (self._pixels(batch['image']), batch['label'], batch['mask']))
        done += int(batch['mask'].sum())
        progress.update(done, done / (time.monotonic() - begin))


def _forward_with_codes(method, variables, pixels, mean, std):
  """(logits, {layer: codes of its activation, from 0}) of the forward pass of training."""
  codes = {}

  def record(call):
    quantizer = call.module.quantizer()
    if quantizer is not None:
      values = inspect.quantizer_values(call.module.variables, layers.quantizer_name('activation'))
      quantize = lambda x: quantizer.quantize(x.astype(jnp.float32), values).codes
      codes[call.path] = quantize(call.input) - quantize(jnp.full((1,) * call.input.ndim, -1e30))

  with inspect.visit_layers(record, layers.Activation):
    logits = method.apply(variables, standardize(pixels, mean, std), train=False).logits[STUDENT]
  return logits, codes
