"""What `fuzz` mutates: every kind of input, how it is changed, and what the program makes of it."""

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import pathlib
import random
import shutil
import sys
import types

import jax
import numpy as np
from absl.testing import flagsaver
from PIL import Image

from cmtkd_jax import config as config_lib
from cmtkd_jax import export, main, report
from cmtkd_jax.data.sources import npy, tfds_source
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import predict
from cmtkd_jax.export.formats import hub
from cmtkd_jax.models import pytorch_weights
from cmtkd_jax.quantizers import QUANTIZERS
from cmtkd_jax.runs import checkpoint, compatibility, event_files, metric_log, run_files, run_reader, run_summary
from cmtkd_jax.training import loop, restore, teachers

SIZE, CLASSES = 8, ('ant', 'bee', 'cat', 'dog')
NESTED = 'a list in a list, 100,000 times'  # stands for what `json` cannot write
WEIRD = (
  None,
  True,
  False,
  0,
  -1,
  1,
  2,
  7,
  255,
  10**9,
  2**31,
  2**63,
  -(2**63),
  10**400,
  0.5,
  -0.5,
  1e-9,
  1e308,
  math.nan,
  math.inf,
  -math.inf,
  '',
  ' ',
  'x',
  '1',
  'nan',
  '\x00',
  '\x1b[31mred',
  'a\nb',
  '\ud800',
  '\u202e',
  'é',
  'x' * 10**5,
  '../..',
  '/dev/zero',
  '__class__',
  [],
  {},
  [[]],
  [0],
  [None],
  ['x'],
  [math.nan],
  {'x': 1},
  {'': {}},
  list(range(1000)),
  NESTED,
)


# Changes.


def change_bytes(data, rng, others=()):
  """Returns (bytes, text): what a bad disk, a torn copy or a wrong file makes of `data`."""
  data, at = bytearray(data), lambda: rng.randrange(max(len(data), 1))
  kind = rng.choice(
    (
      'flip',
      'flip',
      'flip',
      'flips',
      'set',
      'number',
      'truncate',
      'append',
      'delete',
      'repeat',
      'swap',
      'zero',
      'other',
      'empty',
    )
  )
  begin, length = at(), rng.choice((1, 2, 4, 16, 64, 512))
  if kind in ('flip', 'flips') and data:
    for place in [begin] if kind == 'flip' else rng.choices(range(len(data)), k=rng.randint(2, 20)):
      data[place] ^= 1 << rng.randrange(8)
  elif kind == 'set':
    data[begin : begin + 1] = bytes([rng.choice((0, 1, 10, 32, 34, 44, 48, 91, 92, 93, 123, 127, 128, 255))])
  elif kind == 'number':
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
    data[begin : begin + width] = value.to_bytes(width, rng.choice(('little', 'big')))
  elif kind == 'truncate':
    del data[begin:]
  elif kind == 'append':
    data += rng.choice((b'\n', b'\x00' * length, rng.randbytes(length), bytes(data[:length])))
  elif kind == 'delete':
    del data[begin : begin + length]
  elif kind == 'repeat':
    data[begin:begin] = data[begin : begin + length]
  elif kind == 'swap':
    other = at()
    data[begin : begin + length], data[other : other + length] = (
      data[other : other + length],
      data[begin : begin + length],
    )
  elif kind == 'zero':
    data[begin : begin + length] = bytes(len(data[begin : begin + length]))
  elif kind == 'other':
    data = bytearray(
      rng.choice(
        (
          b'PK\x05\x06' + bytes(18),
          b'\x89PNG\r\n\x1a\n',
          b'{}',
          b'[]',
          b'null',
          b'1',
          b'\xff\xfe',
          b'<html>',
          b'\x93NUMPY\x01\x00',
          *others,
        )
      )
    )
  else:
    data.clear()
  return bytes(data), f'{kind} at {begin}'


def change_json(text, rng):
  """Returns (text, what was changed): valid JSON with another value, or bytes of it changed."""
  if rng.random() < 0.2:
    data, what = change_bytes(text.encode(), rng)
    return data, what
  value = json.loads(text)
  holder, key, where = {'': value}, '', ''
  while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.85:
    holder = holder[key]
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    where += f'.{key}'
  kind = rng.choice(('value', 'value', 'value', 'value', 'delete', 'add', 'rename', 'twice', 'close'))
  new = copy.deepcopy(rng.choice(WEIRD))
  if kind == 'delete' and where:
    del holder[key]
  elif kind == 'add' and isinstance(holder, dict):
    holder[rng.choice(('x', '', 'step', '\x1b[31m', 'y' * 1000))] = new
  elif kind == 'rename' and isinstance(holder, dict) and where:
    holder[rng.choice(('x', '', 'a/b', '\x00'))] = holder.pop(key)
  elif kind == 'twice' and isinstance(holder, list):
    holder.append(copy.deepcopy(holder[key]))
  elif kind == 'close' and type(holder[key]) in (int, float):
    holder[key] = new = rng.choice((holder[key] + 1, -holder[key], holder[key] / 2, str(holder[key])))
  else:
    kind, holder[key] = 'value', new
  root = holder[''] if not where else value
  text = json.dumps(root).replace(json.dumps(NESTED), '[' * 100_000 + ']' * 100_000)
  return text.encode(), f'{kind} {where or "all"} {repr(new)[:40]}'


def change_lines(text, rng):
  """As `change_json`, in one line of many; or a line goes, comes twice, or changes its place."""
  lines = text.splitlines(keepends=True)
  i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
  kind = rng.choice(('line', 'line', 'line', 'line', 'delete', 'repeat', 'swap', 'bytes'))
  if kind == 'bytes':
    return change_bytes(text.encode(), rng)
  if kind == 'line':
    data, what = change_json(lines[i], rng)
    return b''.join(
      [*(line.encode() for line in lines[:i]), data + b'\n', *(line.encode() for line in lines[i + 1 :])]
    ), f'line {i + 1}: {what}'
  if kind == 'delete':
    del lines[i]
  elif kind == 'repeat':
    lines.insert(j, lines[i])
  else:
    lines[i], lines[j] = lines[j], lines[i]
  return ''.join(lines).encode(), f'{kind} line {i + 1}'


# Originals.


def make_config(**changes):
  """Returns the configuration of a tiny network on a few made images."""
  config = config_lib.default()
  config_lib.smoke(config, SIZE, channels=1)
  config.data.name, config.method.name, config.model.width = f'generated:{SIZE}x{SIZE}x1:4:16', 'single', 2 / 64
  config.batch_size, config.eval_batch_size, config.optimizer.decay_at = 8, 8, ''
  config.duration, config.checkpoint_every, config.eval_every, config.log_every = (
    '2 steps',
    '1 steps',
    '2 steps',
    '1 steps',
  )
  config.max_checkpoints = 2
  config.update_from_flattened_dict(changes)
  return config


def quiet():
  """Compiles quickly rather than well, on one device."""
  jax.config.update('jax_disable_most_optimizations', True)


def images(count, channels=1, seed=0):
  """Returns uint8 [count, SIZE, SIZE, channels]: smooth random pictures."""
  coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, channels))
  return coarse.repeat(SIZE // 2, 1).repeat(SIZE // 2, 2).astype(np.uint8)


def prepare(folder):
  """Writes all originals: a finished run with its exports, arrays, images, records, weights."""
  quiet()
  with contextlib.redirect_stdout(sys.stderr):
    loop.train_and_evaluate(make_config(), folder / 'run')
    run = folder / 'run'
    shutil.copytree(run, folder / 'taught_run')
    teachers.save(folder / 'taught_run', [teachers.Teacher('elsewhere', run_files.read_config(run))])
    exported = export.from_run(run)
    export.write(
      exported,
      folder / 'export',
      [name for name, found in (export.FORMATS | export.FOLDERS).items() if not found.missing()],
      images(8),
    )
    other = make_config(seed=1)
    loop.train_and_evaluate(other, folder / 'other_run')
    export.write(export.from_run(folder / 'other_run'), folder / 'other', ['packed', 'stablehlo'])
  arrays = folder / 'npy'
  arrays.mkdir()
  for split, count in (('train', 12), ('test', 6)):
    np.save(arrays / f'{split}_images.npy', images(count))
    np.save(arrays / f'{split}_labels.npy', np.arange(count) % 4)
  np.save(arrays / 'class_names.npy', np.array(CLASSES))
  write_pictures(folder / 'pictures')
  write_weights(folder / 'weights')
  for file_format in ('tfrecord', 'array_record'):
    write_records(folder / file_format, file_format)


def write_pictures(folder):
  """Writes one picture in each format, some in several modes."""
  folder.mkdir()
  color = Image.fromarray(images(1, 3)[0]).resize((40, 24), Image.BICUBIC)
  for suffix in ('png', 'jpg', 'webp', 'bmp', 'gif', 'tif', 'ppm', 'tga', 'pcx', 'sgi', 'jp2', 'ico'):
    color.save(folder / f'rgb.{suffix}')
  for mode in ('1', 'L', 'LA', 'P', 'RGBA', 'I;16'):
    (color.convert('L').convert('I;16') if mode == 'I;16' else color.convert(mode)).save(folder / f'{mode[-2:]}.png')
  exif = Image.Exif()
  exif[0x0112] = 6
  color.save(folder / 'turned.jpg', exif=exif)


def write_weights(folder):
  """Writes a state dict with the names of torchvision's ResNet18, one value in each array."""
  folder.mkdir()
  state = {'conv1.weight': (4, 3, 7, 7), 'fc.weight': (4, 4), 'fc.bias': (4,)}
  state |= {f'layer1.0.conv{k}.weight': (4, 4, 3, 3) for k in (1, 2)}
  state |= {f'layer1.0.bn1.{part}': (4,) for part in ('weight', 'bias', 'running_mean', 'running_var')}
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in state.items()}
  np.savez(folder / 'weights.npz', **arrays)
  with contextlib.suppress(ImportError):
    from safetensors.numpy import save_file

    save_file(arrays, folder / 'weights.safetensors')


def write_records(folder, file_format):
  """Writes a prepared data set of tensorflow_datasets; nothing where that is not installed."""
  folder.mkdir()
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    return
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format='png'),
      'label': tfds.features.ClassLabel(names=list(CLASSES)),
    }
  )
  examples = {
    split: [{'image': image, 'label': i % 4} for i, image in enumerate(images(count, 3))]
    for split, count in (('train', 12), ('test', 6))
  }
  tfds.dataset_builders.store_as_tfds_dataset(
    name='blobs',
    version='1.0.0',
    features=features,
    data_dir=folder,
    file_format=file_format,
    split_datasets={split: list(enumerate(rows)) for split, rows in examples.items()},
    disable_shuffling=True,
  )


# Targets.


class Target:
  """One kind of input.

  cases: how many changes at scale 1.
  mutates, untold: what is changed, and which of the changed files nobody could tell from a valid one.
  """

  cases, mutates, untold = 0, '', 'nothing'

  def __init__(self, originals, folder):
    quiet()
    self.originals, self.folder = originals, folder

  def change(self, seed):
    """Undoes the last change, makes the one of `seed`, and returns it in words."""
    raise NotImplementedError

  def answer(self):
    """Returns what the program makes of it."""
    raise NotImplementedError

  def is_right(self, answer):
    """Whether it is what the program makes of the original."""
    return same(answer, self.reference)

  def explains(self, answer):
    """Whether an independent reading of the changed file gives this other answer."""
    return False


def same(a, b):
  """Whether two answers are equal, NaN being itself."""
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
  if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
    return np.array_equal(a, b)
  return a == b or (a != a and b != b)


class Files(Target):
  """Changes one of the files `pattern` of a copy of `source`."""

  source, pattern = '', '*'

  def __init__(self, originals, folder):
    super().__init__(originals, folder)
    self.copied = folder / self.source
    self.reset()
    self.reference = self.answer()

  def reset(self):
    """Copies the originals."""
    shutil.rmtree(self.copied, ignore_errors=True)
    shutil.copytree(self.originals / self.source, self.copied)

  def change(self, seed):
    rng = random.Random(seed)
    self.reset()
    self.path = rng.choice(sorted(path for path in self.copied.rglob(self.pattern) if path.is_file()))
    if rng.random() < 0.03:
      self.path.unlink()
      return f'{self.path.name}: deleted'
    data, what = self.changed(self.path, rng)
    self.path.write_bytes(data)
    return f'{self.path.relative_to(self.copied)}: {what}'

  def changed(self, path, rng):
    """Returns (bytes, what was changed)."""
    if path.suffix == '.json':
      return change_json(path.read_text(), rng)
    return change_bytes(path.read_bytes(), rng)

  def parsed(self):
    """The changed file as Python's `json` reads it; None where it does not."""
    try:
      return json.loads(self.path.read_bytes())
    except (OSError, ValueError, RecursionError):
      return None


class ConfigValues(Target):
  """Fields of a configuration, which then trains for two steps."""

  cases, mutates = 700, 'one or two fields of a configuration, set to values of any kind; two steps of training'

  def __init__(self, originals, folder):
    super().__init__(originals, folder)
    self.fields = list(config_lib.flat(make_config()))

  def change(self, seed):
    rng, words = random.Random(seed), []
    self.config = make_config()
    for field in rng.sample(self.fields, rng.choice((1, 1, 2))):
      value = self.value(field, rng)
      *parents, name = field.split('.')
      holder = self.config
      for parent in parents:
        holder = holder[parent]
      with holder.ignore_type(), holder.unlocked(), contextlib.suppress(OverflowError):  # of 10**400 as a float
        holder[name] = value
      words.append(f'{field}={repr(value)[:60]}')
    return ', '.join(words)

  def value(self, field, rng):
    old = config_lib.flat(make_config())[field]
    close = [old]
    if field in config_lib.fields():
      close += config_lib.fields()[field].choices
    if field.startswith('quantizer.'):
      close += QUANTIZERS
    if type(old) in (int, float):
      close += [0, 1, 2, 3, 5, -1, 0.1, 1.0, 2.5, 1e-12, 1e6, 10**6, 10**12, 2**31]
    if isinstance(old, str):
      close += [
        '1 steps',
        '0 steps',
        '2 epochs',
        '-1 epochs',
        '0.1 steps',
        '1e999 epochs',
        'nan steps',
        '1,2',
        '1 steps, 1 steps',
        'a(',
        '*',
        'npy:/dev',
        'folder:/dev',
        'generated:8x8x1:4:16',
        'generated:0x8x1:4:16',
        'generated:9:9',
      ]
    if isinstance(old, tuple):
      close += [(1,), (2, 2), ((2, 2),), ((4, 4), (8, 8)), ('x',), (math.nan,), (1e308,), (0.5,) * 3, (-1,), ((4,),)]
    value = rng.choice(close if rng.random() < 0.6 else WEIRD)
    return 'x' if value == NESTED else copy.deepcopy(value)

  def answer(self):
    workdir = self.folder / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
      loop.train_and_evaluate(self.config, workdir)
    return all(math.isfinite(row['train/loss']) for row in metric_log.read(workdir) if 'train/loss' in row)

  def is_right(self, answer):
    return answer


class CommandLine(Target):
  """Arguments of the command; `--mode=bits` builds the networks and ends."""

  cases, mutates = 500, 'arguments of the command, with --mode=bits'

  def change(self, seed):
    rng = random.Random(seed)
    fields = list(config_lib.flat(make_config()))
    texts = (
      '',
      'x',
      '1',
      '-1',
      '1e999',
      'nan',
      'None',
      'True',
      '()',
      '(1,)',
      '((4, 4),)',
      "('a',)",
      '[',
      "'",
      '{}',
      '\x1b[31m',
      'é',
      '../..',
      '/dev/zero',
      '~',
      'a' * 3000,
      '1 steps',
      'lsq',
      'cmtkd',
      '(1',
      '1,2',
      '0x10',
      '1_000',
      '${HOME}',
      '%s',
      '{0}',
      '__import__("os")',
    )
    text = lambda: rng.choice(texts)

    def one():
      field = rng.choice((*fields, 'x', 'model.x', 'quantizer', '', '.', 'model.name.x', 'keys', '__class__', 'lr'))
      return rng.choice(
        (
          f'--config.{field}={text()}',
          f'--config.{field}={text()}',
          f'--config.{field}={text()}',
          f'--config.{field}',
          f'--no{field}',
          f'--{field}={text()}',
          f'--workdir={text()}',
          f'--step={text()}',
          f'--images={text()}',
          f'--format={text()}',
          f'--mode={text()}',
          text(),
        )
      )

    digits = 'configs/digits_resnet8.py'
    config = rng.choice(
      (
        *[f'{digits}:smoke'] * 8,
        f'{digits}:x',
        f'{digits}:',
        'configs',
        'README.md',
        '/dev/null',
        'requirements.txt',
        'x.py',
      )
    )
    self.arguments = ['main', f'--config={config}', '--mode=bits', *(one() for _ in range(rng.randint(1, 3)))]
    return ' '.join(self.arguments)[:300]

  def answer(self):
    error = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
      saved, sys.argv = sys.argv, self.arguments
      where = os.getcwd()
      try:
        status = main.main(self.arguments)
      except SystemExit as e:  # --help
        status = e.code
      finally:
        sys.argv = saved
        os.chdir(where)
    lines = error.getvalue().splitlines()
    if status == 2 and len(lines) == 1 and lines[0].startswith('error: '):
      raise UserError(lines[0].removeprefix('error: '))
    return {'status': status, 'lines': lines if status not in (0, 1) else []}

  def is_right(self, answer):
    return answer['status'] in (0, 1) and not answer['lines']  # 1: after --help


class ConfigFile(Target):
  """The text of a configuration file."""

  cases, mutates = 150, 'the text of a configuration file, with --mode=bits'
  untold = 'a file that is still Python and builds a configuration'

  def __init__(self, originals, folder):
    super().__init__(originals, folder)
    self.text = pathlib.Path('configs/digits_resnet8.py').read_bytes()
    self.line = CommandLine(originals, folder)

  def change(self, seed):
    data, what = change_bytes(self.text, random.Random(seed))
    path = self.folder / 'file.py'
    path.write_bytes(data)
    self.line.arguments = ['main', f'--config={path}', '--mode=bits']
    return what

  def answer(self):
    return self.line.answer()

  def is_right(self, answer):
    return self.line.is_right(answer)


class Run(Files):
  """The files of a run, as reports, exports and evaluations read them."""

  source, pattern = 'run', '*.json*'
  cases, mutates = 1200, 'config, bits, classes, records, summary and metrics of a run, read for report and evaluation'
  untold = 'JSON of the same form with other values: these files have no digest, so that a user may edit them'
  FILES = (run_files.CONFIG, run_files.BITS, run_files.CLASSES, run_files.RECORDS, run_summary.FILE, metric_log.FILE)

  def reset(self):
    if not self.copied.exists():
      super().reset()
    for name in self.FILES:
      shutil.copy(self.originals / self.source / name, self.copied / name)

  def change(self, seed):
    rng = random.Random(seed)
    self.reset()
    self.path = self.copied / rng.choice(self.FILES)
    how = change_lines if self.path.name == metric_log.FILE else change_json
    data, what = how(self.path.read_text(), rng)
    self.path.write_bytes(data)
    return f'{self.path.name}: {what}'

  def answer(self):
    run = run_reader.read(self.copied)
    run_reader.results(run)
    dataset = restore.open_run(self.copied).dataset
    compatibility.check_data(self.copied, dataset)
    return {
      'config': config_lib.flat(run.config),
      'rows': run.rows,
      'summary': run.summary,
      'bits': [row._asdict() for row in run.bits],
      'classes': run.classes,
    }

  def explains(self, answer):
    if self.path.name == metric_log.FILE:
      return same(answer['rows'], _rows(self.path.read_bytes()))
    found = self.parsed()
    if self.path.name == run_files.RECORDS:
      return same(answer, self.reference)
    if self.path.name == run_files.CONFIG:
      return isinstance(found, dict) and _agree(answer['config'], found)
    return same(answer[self.path.stem], found)


def _rows(data):
  """The rows of a metrics file, but for a torn last one."""
  rows, lines = [], data.split(b'\n')[:-1]
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      row = {name: float(value) if value in ('nan', 'inf', '-inf') else value for name, value in row.items()}
      assert type(row['step']) is int and 0 <= row['step'] < 2**31
      assert all(isinstance(value, (int, float)) for value in row.values())
      rows.append(row)
    except Exception:
      assert number == len(lines)  # a kill, or a crash of the machine, may leave a last line that is none
  return rows


def _agree(flat, tree, prefix=''):
  """Whether all that nested dicts say is in the flat configuration, with the same kind."""
  plain = lambda value: [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
  for name, value in tree.items():
    path = f'{prefix}{name}'
    if isinstance(value, dict) and path not in flat:
      if not _agree(flat, value, f'{path}.'):
        return False
    elif path not in flat or plain(flat[path]) != plain(value):
      return False
  return True


class Report(Run):
  """As `Run`, and the page is written."""

  cases, mutates = 150, 'the same files; the whole report is written'

  def answer(self):
    run_reader.read(self.copied)
    report.write(self.copied, [])
    return True

  def is_right(self, answer):
    return answer


class Resume(Run):
  """The files of a run and its newest checkpoints; it then goes on."""

  cases, mutates = 120, 'the same files and those of both checkpoints; the run then trains one step more'
  untold = 'as for run; what the run trains with is compared with the configuration that it is started with'

  def reset(self):
    shutil.rmtree(self.copied, ignore_errors=True)
    shutil.copytree(self.originals / self.source, self.copied)
    config = make_config(duration='3 steps')
    (self.copied / run_files.CONFIG).write_text(config_lib.to_json(config))

  def change(self, seed):
    rng = random.Random(seed)
    if rng.random() < 0.5:
      return super().change(seed)
    self.reset()
    self.path = rng.choice(sorted(path for path in (self.copied / run_files.CHECKPOINTS).rglob('*') if path.is_file()))
    data, what = change_bytes(self.path.read_bytes(), rng)
    self.path.write_bytes(data)
    return f'{self.path.relative_to(self.copied)}: {what}'

  def answer(self):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
      loop.train_and_evaluate(make_config(duration='3 steps'), self.copied)
    variables, _, step = checkpoint.load_variables(self.copied / run_files.CHECKPOINTS)
    return {'step': step, 'variables': digest(variables)}

  def explains(self, answer):
    return False


def digest(tree):
  """Returns a digest of all arrays of a tree."""
  total = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    total.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode() + np.asarray(leaf).tobytes())
  return total.hexdigest()


class Checkpoint(Files):
  """Files of two checkpoints; the answer is the newest that is whole."""

  source = f'run/{run_files.CHECKPOINTS}'
  cases, mutates = 700, 'every file of two checkpoints, their digests included'
  untold = 'a checkpoint whose digests were rewritten with it (not tried)'

  def __init__(self, originals, folder):
    super().__init__(originals, folder)
    self.whole = {
      step: digest(checkpoint.load_variables(self.copied, step)[0]) for step in checkpoint.steps(self.copied)
    }

  def changed(self, path, rng):
    return change_bytes(path.read_bytes(), rng)

  def answer(self):
    variables, _, step = checkpoint.load_variables(self.copied)
    return step, digest(variables)

  def is_right(self, answer):
    return self.whole[answer[0]] == answer[1]


class TeachersFile(Files):
  """`teachers.json` of a run."""

  source = 'taught_run'
  cases, mutates, untold = 150, 'teachers.json of a run', 'JSON of the same form with other values'

  def reset(self):
    if not self.copied.exists():
      super().reset()

  def change(self, seed):
    self.path = self.copied / teachers.FILE
    data, what = change_json((self.originals / self.source / teachers.FILE).read_text(), random.Random(seed))
    self.path.write_bytes(data)
    return what

  def answer(self):
    return [
      {'directory': teacher.directory, 'config': config_lib.flat(teacher.config)}
      for teacher in teachers.open_all(make_config(), self.copied)
    ]

  def explains(self, answer):
    found = self.parsed()
    return len(found) == len(answer) and all(
      _agree(a['config'], b['config']) and a['directory'] == b['directory'] for a, b in zip(answer, found)
    )


class Exports(Files):
  """Exported files next to their manifest."""

  source = 'export'

  def answer(self):
    network, about = export.open_network(self.copied / self.file)
    logits = np.asarray(network(images(5, seed=1)))
    return {'logits': logits, 'about': about}


class Forged(Exports):
  """Half of the cases are damaged, the other half forged: changed, and given the digests that they should have."""

  def change(self, seed):
    rng = random.Random(seed)
    self.forged = rng.random() < 0.5
    if not self.forged:
      return super().change(seed)
    self.reset()
    return f'forged {self.forge(rng)}'

  def forge(self, rng):
    """Changes a file together with its digests; returns what was changed."""
    raise NotImplementedError

  def explains(self, answer):
    return (
      self.forged
      and answer['logits'].shape == (5, len(answer['about']['classes']))
      and bool(np.isfinite(answer['logits']).all())
    )


class Packed(Forged):
  file = pattern = 'student.npz'
  cases, mutates = 700, 'student.npz: bytes, and half of the cases its JSON and arrays, written anew with new digests'
  untold = 'an archive that was written anew with other values that fit the network'

  def change(self, seed):
    what = super().change(seed)
    if not self.forged and random.Random(f'{seed}/manifest').random() < 0.5:
      (self.copied / 'manifest.json').unlink()
      what += ', without a manifest'
    return what

  def forge(self, rng):
    path = self.copied / self.file
    with np.load(path) as file:
      arrays = dict(file)
    if rng.random() < 0.7:
      text, what = change_json(bytes(arrays['manifest']).decode(), rng)
      arrays['manifest'] = np.frombuffer(text, np.uint8)
    else:
      name = rng.choice(sorted(arrays.keys() - {'manifest'}))
      arrays[name], what = change_array(arrays[name], rng)
      what = f'{name}: {what}'
    np.savez(path, **arrays)
    (self.copied / 'manifest.json').unlink()
    return what


def change_array(array, rng):
  """Returns (array, what): another value, shape or type."""
  kind = rng.choice(('value', 'value', 'shape', 'dtype', 'longer', 'empty'))
  if kind == 'value' and array.size:
    array = array.copy()
    array.flat[rng.randrange(array.size)] = rng.choice(
      (0, 1, 255) if array.dtype.kind in 'ui' else (0, -1, 1e-45, 1e38, -1e38, np.nan, np.inf)
    )
  elif kind == 'shape':
    array = array.reshape(-1) if array.ndim != 1 else array[None]
  elif kind == 'dtype':
    array = array.astype(rng.choice((np.float64, np.float16, np.int64, np.uint8, np.bool_)))
  elif kind == 'longer':
    array = np.concatenate([array.reshape(-1)] * 2)
  else:
    array = array.reshape(-1)[:0]
  return array, kind


class StableHlo(Exports):
  file = pattern = 'student.stablehlo'
  cases, mutates, untold = 400, 'student.stablehlo', 'a file that was changed together with its digest (not tried)'

  def changed(self, path, rng):
    return change_bytes(path.read_bytes(), rng, [(self.originals / 'other' / path.name).read_bytes()])


class Onnx(Forged):
  file = pattern = 'student.onnx'
  cases, mutates = 300, 'student.onnx; half of the cases its metadata, written anew with a new digest'
  untold = 'other class names; a graph that was changed together with its digest (not tried)'

  def forge(self, rng):
    import onnx

    path = self.copied / self.file
    model = onnx.load(path)
    text, what = change_json(model.metadata_props[0].value, rng)
    model.metadata_props[0].value = text.decode('utf-8', 'replace')
    path.write_bytes(model.SerializeToString())
    (self.copied / 'manifest.json').unlink()
    return f'about: {what}'

  def explains(self, answer):
    return self.forged and same(answer['logits'], self.reference['logits'])


class Hub(Forged):
  file, pattern = 'hub', 'hub/*'
  cases, mutates = 500, 'files of the folder; in half of the cases with new digests'
  untold = 'a folder that was written anew with other values that fit the network, and the model card'

  def forge(self, rng):
    folder = self.copied / self.file
    name = rng.choice((hub.CONFIG, hub.CONFIG, hub.PREPROCESSOR, hub.WEIGHTS))
    data, what = self.changed(folder / name, rng)
    (folder / name).write_bytes(data)
    self._sign(folder, name)
    return f'{name}: {what}'

  def _sign(self, folder, name):
    """Gives the changed file the digests that it should have, where `config.json` still has a place for them."""
    try:
      config = json.loads((folder / hub.CONFIG).read_bytes())
      if name != hub.CONFIG:
        config['files'][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
      config['digest'] = hub._digest({key: value for key, value in config.items() if key != 'digest'})
      (folder / hub.CONFIG).write_text(json.dumps(config))
    except (ValueError, TypeError, AttributeError, RecursionError):
      pass


class Manifest(Exports):
  file, pattern = 'student.stablehlo', 'manifest.json'
  cases, mutates = 400, 'manifest.json next to the exported files'
  untold = 'other names of classes, and other values that no program reads'

  def explains(self, answer):
    found = self.parsed()
    return same(answer['logits'], self.reference['logits']) and same(answer['about'], found['about'])


class Npy(Files):
  source = pattern = 'npy'
  pattern = '*.npy'
  cases, mutates, untold = 600, 'arrays of images, labels and class names', 'other pixels, labels and names: no digest'

  def answer(self):
    return _records_of(npy.read(str(self.copied), 1))

  def explains(self, answer):
    arrays = {path.stem: np.load(path) for path in self.copied.glob('*.npy')}
    read = {f'{split}_{kind}': answer[split][kind] for split in ('train', 'test') for kind in ('images', 'labels')}
    return all(np.array_equal(np.reshape(arrays[name], value.shape), value) for name, value in read.items()) and (
      'class_names' not in arrays or [str(name) for name in arrays['class_names']] == list(answer['classes'])
    )


def _records_of(splits):
  """{'train': {'images', 'labels'}, 'test': ..., 'classes'} of a data set as its reader found it."""
  found = {'classes': splits.class_names}
  for split, source in (('train', splits.train), ('test', splits.test)):
    pictures, labels = source.read(np.arange(len(source)))
    pictures = [predict_pixels(one) if isinstance(one, bytes) else np.asarray(one) for one in pictures]
    found[split] = {'images': np.stack(pictures), 'labels': np.asarray(labels)}
  return found


def predict_pixels(content):
  """The pixels of an image file in memory, as a data set decodes it."""
  from cmtkd_jax.data.transforms import image_file

  try:
    return image_file.to_array(content, 3)
  except image_file.UnreadableError as e:
    raise UserError(f'unreadable image: {e}') from None


class Pictures(Files):
  """Image files that are classified."""

  source, pattern = 'pictures', '*'
  cases, mutates = 1000, 'image files of 12 formats and 7 modes, given to predict'
  untold = 'other pixels: most formats have no digest'
  about = types.MappingProxyType({'image_shape': (SIZE, SIZE, 3), 'resize': SIZE})

  def __init__(self, originals, folder):
    self.path = originals / 'pictures' / 'rgb.png'
    super().__init__(originals, folder)

  def change(self, seed):
    rng = random.Random(seed)
    original = rng.choice(sorted((self.originals / 'pictures').iterdir()))
    self.path = self.folder / original.name
    self.reference = predict.read_image(original, self.about)
    data, what = change_bytes(original.read_bytes(), rng)
    self.path.write_bytes(data)
    return f'{self.path.name}: {what}'

  def answer(self):
    return predict.read_image(self.path, self.about)

  def explains(self, answer):
    """Pillow decodes the file to the end."""
    with Image.open(self.path) as image:
      image.load()
      return answer.shape == self.about['image_shape'] and answer.dtype == np.uint8


class Records(Files):
  """Files of tensorflow_datasets."""

  untold = 'class names and other JSON of the same form: these files have no digest'

  def answer(self):
    return _records_of(tfds_source.read('blobs', str(self.copied)))

  def changed(self, path, rng):
    return super().changed(path, rng)

  def explains(self, answer):
    records = '.json' not in self.path.name and 'labels' not in self.path.name
    return not records and all(same(answer[split], self.reference[split]) for split in ('train', 'test'))


class TfRecord(Records):
  source, cases, mutates = 'tfrecord', 400, 'TFRecord files and the JSON files next to them'


class ArrayRecord(Records):
  source, cases, mutates = 'array_record', 400, 'ArrayRecord files and the JSON files next to them'


class Weights(Files):
  """State dicts of PyTorch."""

  source = 'weights'
  cases, mutates, untold = 300, 'state dicts in .npz and .safetensors', 'other weights: .safetensors has no digest'

  def __init__(self, originals, folder):
    self.path = originals / 'weights' / 'weights.npz'
    super().__init__(originals, folder)

  def change(self, seed):
    what = super().change(seed)
    self.reference = self.read(self.originals / 'weights' / self.path.name)
    return what

  def read(self, path):
    model = make_config().model
    model.name, model.stem, model.block_order = 'resnet18', 'imagenet', 'post'
    return pytorch_weights.load(str(path), model)

  def answer(self):
    return self.read(self.path)

  def explains(self, answer):
    from safetensors.numpy import load_file

    arrays = load_file(self.path) if self.path.suffix == '.safetensors' else np.load(self.path)
    sums = lambda values: sorted((value.size, float(np.sum(value.astype(np.float64)))) for value in values)
    there = sums(arrays[name] for name in arrays)
    here = sums(jax.tree.leaves(answer))
    return len(there) == len(here) and all(a[0] == b[0] and np.isclose(a[1], b[1]) for a, b in zip(there, here))


class Events(Target):
  """Event files of TensorBoard, which a resumed run cuts."""

  cases, mutates = 200, 'event files of TensorBoard, cut at a step'
  untold = 'records of the right length: TensorBoard checks the digests that they have'

  def change(self, seed):
    rng = random.Random(seed)
    path = self.folder / 'events.out.tfevents.1'
    record = lambda step: b'\x0b\0\0\0\0\0\0\0\0\0\0\0' + b'\x09' + bytes(8) + b'\x10' + bytes([step]) + bytes(4)
    data, what = change_bytes(b''.join(map(record, range(10))), rng)
    path.write_bytes(data)
    return what

  def answer(self):
    from etils import epath

    event_files.drop_after(epath.Path(self.folder), 5)
    return True

  def is_right(self, answer):
    return answer


TARGETS = {
  'config values': ConfigValues,
  'command line': CommandLine,
  'config file': ConfigFile,
  'run': Run,
  'report': Report,
  'resume': Resume,
  'checkpoint': Checkpoint,
  'teachers': TeachersFile,
  'packed': Packed,
  'stablehlo': StableHlo,
  'onnx': Onnx,
  'hub': Hub,
  'manifest': Manifest,
  'npy': Npy,
  'images': Pictures,
  'tfrecord': TfRecord,
  'array_record': ArrayRecord,
  'weights': Weights,
  'events': Events,
}
