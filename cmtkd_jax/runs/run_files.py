"""What a run leaves in its work directory beside checkpoints and metrics: config, bits, summary."""

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import shutil
import socket
import stat
import subprocess
import unicodedata

import jax
from etils import epath

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

import cmtkd_jax
from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, metric_log
from cmtkd_jax.runtime import distributed, local_file

CONFIG, BITS, CLASSES, RECORDS, SUMMARY = 'config.json', 'bits.json', 'classes.json', 'records.json', 'summary.json'
CHECKPOINTS, LOCK = 'checkpoints', 'lock'
# Fields that may change when a run goes on: they do not touch what is trained.
MUTABLE_FIELDS = (
  'data.dir',
  'data.num_workers',
  'data.workers',
  'data.max_corrupt',
  'data.resident',
  'eval_batch_size',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'keep_checkpoints',
  'allow_changes',
  'profile',
  'remat',
  'tensorboard',
)


def open_run(workdir, config, dataset, rows):
  """Writes what describes a run into its locked work directory; returns the path.

  A directory with a checkpoint must belong to this configuration and these data. Without one nothing is lost: a run
  that failed at its start may be started again with any other configuration.

  Raises:
    UserError: the directory cannot be written, or holds a run of another configuration or other data.
  """
  workdir = epath.Path(workdir)
  if has_checkpoint(workdir):
    check_configuration(workdir, config)
    check_data(workdir, dataset, config.allow_changes)
  distributed.wait_for_all('the configuration is compared')
  try:
    write(workdir / BITS, json.dumps([row._asdict() for row in rows], indent=1))
    write(workdir / CLASSES, json.dumps(list(dataset.class_names)))
    write(workdir / RECORDS, json.dumps(dataset.num_examples))
    write(workdir / CONFIG, config_lib.to_json(config))
  except OSError as e:
    raise UserError(f'--workdir: {workdir} cannot be written ({e.strerror or e}); choose another one') from None
  return workdir


@contextlib.contextmanager
def claim(workdir, config, dataset, rows):
  """Locks a work directory, then opens the run in it, see `open_run`; yields the path."""
  with Lock(workdir):
    yield open_run(workdir, config, dataset, rows)


def has_checkpoint(workdir):
  """Returns whether `workdir` holds a run with something to resume."""
  return bool(checkpoint.steps(epath.Path(workdir) / CHECKPOINTS))


def check_configuration(workdir, config):
  """Raises `UserError` if the run in `workdir` has another configuration, unless `config.allow_changes`."""
  differing = config_lib.difference(read_config(workdir), config, exclude=MUTABLE_FIELDS)
  if differing and config.allow_changes:
    print(f'{workdir} continues with another configuration: {"; ".join(differing)}', flush=True)
  elif differing:
    raise UserError(
      f'--workdir: {workdir} holds a run of another configuration ({"; ".join(differing[:4])}'
      f'{"; ..." if len(differing) > 4 else ""}); choose another --workdir or the same '
      'configuration, or set config.allow_changes=True'
    )


def check_data(workdir, dataset, allow_changes=False):
  """Raises `UserError` if the run in `workdir` was trained with other classes or another number of records.

  Labels are positions in the list of classes: a renamed class folder would swap them without any other sign.

  Args:
    workdir: directory of the run.
    dataset: the `data.Dataset` as it is now.
    allow_changes: whether the number of records may differ.
  """
  workdir = epath.Path(workdir)
  before, now = read_classes(workdir), list(dataset.class_names)
  if before and before != now:
    raise UserError(
      f'config.data.name: the classes are not those of the run in {workdir}: {_listed(now)} now, '
      f'{_listed(before)} in its {CLASSES}; restore the class names, or choose another --workdir'
    )
  path = workdir / RECORDS
  counts = read_json(path, dict) if path.exists() else dataset.num_examples
  if counts != dataset.num_examples and not allow_changes:
    raise UserError(
      f'config.data.name: the number of images is not that of the run in {workdir}: '
      f'{dataset.num_examples} now, {counts} in its {RECORDS}; restore the data, choose another '
      '--workdir, or set config.allow_changes=True'
    )


def _listed(classes, most=6):
  shown = ', '.join(map(repr, classes[:most]))
  return f'[{shown}, ... {len(classes)} in all]' if len(classes) > most else f'[{shown}]'


class Lock(contextlib.AbstractContextManager):
  """Makes a work directory and keeps a second run out of it, until it is left or the process ends.

  On a local file system only: object stores have no locks. The file stays; what counts is which process holds it.
  Nothing else is written before the lock is held.

  Raises:
    UserError: another run holds the lock, or the directory cannot be written.
  """

  def __init__(self, workdir):
    self._path, self._file = epath.Path(workdir) / LOCK, None

  def __enter__(self):
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if fcntl is None or '://' in str(self._path) or not distributed.is_first():
        return self
      # Neither follows a link out of the directory, nor waits for the other end of a pipe.
      self._file = os.fdopen(
        os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), 'rb+', buffering=0
      )
      if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
        raise OSError(None, 'not a regular file')
    except OSError as e:
      self.__exit__()
      where = self._path if os.path.lexists(self._path) else self._path.parent
      fix = 'remove it, or choose another one' if where == self._path else 'choose another one'
      raise UserError(f'--workdir: {where} cannot be written ({e.strerror or e}); {fix}') from None
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = self._file.read().decode('utf-8', 'replace').strip() or 'another process'
      self.__exit__()
      raise UserError(
        f'--workdir: {self._path.parent} is in use by {holder}; wait for it, stop it, or choose another --workdir'
      ) from None
    except OSError:  # a file system without locks
      return self
    with contextlib.suppress(OSError):  # The lock is held on a full disk, too; the next file reports the disk.
      self._file.truncate(0)
      self._file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    return self

  def __exit__(self, *unused):
    if self._file is not None:
      self._file.close()
      self._file = None


@contextlib.contextmanager
def disk_errors_as_user_errors(workdir):
  """Turns a failed write to a full or broken disk into a `UserError`; `Checkpoints` reports its own."""
  try:
    yield
  except OSError as e:
    if e.errno not in checkpoint.DISK_ERRORS:
      raise
    raise UserError(
      f'--workdir: {workdir} cannot be written ({e.strerror}); the checkpoints in it are kept; make room '
      'or fix the disk, and start the same command again'
    ) from None


def check_space(workdir, size):
  """Raises `UserError` unless a checkpoint of `size` bytes fits, where that can be known."""
  if '://' in str(workdir) or not distributed.is_first():
    return
  free = shutil.disk_usage(workdir).free
  if free < 1.1 * size:
    raise UserError(
      f'--workdir: {workdir} has {free / 2**20:,.0f} MiB left, and a checkpoint takes '
      f'{size / 2**20:,.0f} MiB; free some space, or choose another --workdir'
    )


# What may differ between the processes of one run: where its data are, and how they are read.
_OF_PROCESS = ('data.dir', 'data.num_workers', 'data.workers')


def facts(config, dataset):
  """Returns `{name: text}` of what all processes of a run must have in common."""
  fields = {f'config.{name}': repr(value) for name, value in config_lib.flat(config).items() if name not in _OF_PROCESS}
  return fields | {
    'classes': repr(list(dataset.class_names)),
    'number of images': repr(dict(dataset.num_examples)),
    **{f'version of {name}': version for name, version in versions().items()},
  }


def read_config(workdir, field='--workdir'):
  """Returns the configuration of the run in `workdir`, which `field` names.

  Raises:
    UserError: there is no run, or its configuration is damaged.
  """
  path = epath.Path(workdir) / CONFIG
  if not path.exists():
    raise UserError(
      f'{field}: there is no {CONFIG} in {workdir}; name the directory of a run, or train one first with --mode=train'
    )
  try:
    return config_lib.from_json(json.dumps(read_json(path, dict)))
  except UserError as e:
    raise UserError(f'{field}: {e}') from None


def read_summary(workdir, needed=('results',)):
  """Returns the summary of the run in `workdir`, with the `needed` entries, None where it is not finished.

  Raises:
    UserError: it is damaged.
  """
  path = epath.Path(workdir) / SUMMARY
  return read_json(path, dict, needed, _is_summary) if path.exists() else None


def read_json(path, kind, needed=(), valid=lambda value: True):
  """Returns what the JSON file `path` holds.

  Args:
    path: an `epath.Path`.
    kind: dict or list, what it must be.
    needed: keys that a dict must have.
    valid: whether the content is as it was written; may raise what a wrong structure raises.

  Raises:
    UserError: it cannot be read, or holds something else.
  """
  try:
    value = json.loads(local_file.read_bytes(path))
    whole = isinstance(value, kind) and all(key in value for key in needed) and _holds(valid, value)
    problem = '' if whole else 'it is not what was written'
  except (OSError, ValueError, RecursionError) as e:  # no file, not UTF-8, not JSON, nested too deeply
    problem = ' '.join(str(e).split())
  if problem:
    raise UserError(f'{path} is damaged ({problem}); restore it, or delete it: the command that made it makes it anew')
  return value


def _holds(valid, value):
  try:
    return valid(value)
  except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
    return False


def _is_number(value):
  return type(value) in (int, float) and math.isfinite(value)


def _is_summary(summary):
  """Whether a summary's entries, as far as it has them, are those that `write_summary` writes."""
  for result in summary['results'].values():
    for which, keys in (
      ('last', ('top1', 'top5')),
      ('best', ('top1', 'top5', 'epoch')),
      ('chosen', ('top1', 'top5', 'epoch')),
    ):
      if which in result or which != 'chosen':
        if not all(_is_number(result[which][key]) for key in keys):
          return False
  factors = summary.get('importance', {})
  return (
    all(name.count('/') == 1 and _is_number(value) for name, value in factors.items())
    and all(_is_number(summary.get(name, 0)) for name in ('steps', 'epochs'))
    and all(isinstance(summary.get(name, ''), str) for name in ('commit', 'device'))
    and all(isinstance(version, str) for version in summary.get('versions', {}).values())
    and isinstance(summary.get('config', {}), dict)
  )


def read_classes(workdir):
  """Returns the names of the classes of the run in `workdir`, in Unicode NFC; [] where they are not known yet.

  Raises:
    UserError: the file is damaged.
  """
  path = epath.Path(workdir) / CLASSES
  are_names = lambda names: all(isinstance(name, str) for name in names)
  names = read_json(path, list, valid=are_names) if path.exists() else []
  return [unicodedata.normalize('NFC', name) for name in names]


def meta(config, step, rows):
  """Returns what a checkpoint says about itself."""
  return {
    'step': step,
    'data_position': step,
    'config': config.to_dict(),
    'versions': versions(),
    'commit': commit(),
    'bits': [row._asdict() for row in rows],
  }


def write_summary(workdir, config, steps_per_epoch):
  """Writes and returns the run's summary: `results` of every network, importance factors, what it was run with."""
  distributed.wait_for_all('the metrics are written')
  rows = metric_log.read(workdir)
  trained = [row for row in rows if 'train/loss' in row]
  if not trained:
    raise UserError(
      f'{workdir}/{metric_log.FILE} has lost the rows of training; restore it, or train in another --workdir'
    )
  summary = {
    'config': config.to_dict(),
    'steps': rows[-1]['step'],
    'commit': commit(),
    'versions': versions(),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'epochs': round(rows[-1]['step'] / steps_per_epoch, 3),
    'results': results(rows, steps_per_epoch),
    'importance': {
      name.removeprefix('importance/'): value for name, value in trained[-1].items() if name.startswith('importance/')
    },
  }
  write(epath.Path(workdir) / SUMMARY, json.dumps(summary, indent=1))
  distributed.wait_for_all('the summary is written')
  return summary


def results(rows, steps_per_epoch):
  """Returns last and best evaluation of every network, from the rows of metrics.jsonl.

  'best' is the evaluation with the highest top-1 of that network on that split: on 'test' a maximum, as papers print
  it, that no choice could have found. 'chosen' is the one that minival chooses, where there is a minival.

  Returns:
    `{'test/student': {'last': {'top1', 'top5'}, 'best': {'top1', 'top5', 'epoch'}}}`, {} before any evaluation.
  """
  found = {}
  evaluations = [row for row in rows if any(name.startswith('test/') for name in row)]
  for name in evaluations[-1] if evaluations else ():
    if not name.endswith('/top1'):
      continue
    network, held_out = name.removesuffix('/top1'), name.replace('test/', 'minival/')
    for row in evaluations:
      if missing := {name, f'{network}/top5'} - row.keys():
        raise UserError(
          f'{metric_log.FILE}: the evaluation of step {row["step"]} has no {sorted(missing)[0]!r}, which '
          f'that of step {evaluations[-1]["step"]} has; restore the file, or train in another --workdir'
        )
    found[network] = {'last': _accuracies(evaluations[-1], network), 'best': _best(evaluations, network, name)}
    if held_out != name and all(held_out in row for row in evaluations):
      found[network]['chosen'] = _best(evaluations, network, held_out)
    for which in found[network].keys() - {'last'}:
      found[network][which]['epoch'] = round(found[network][which].pop('step') / steps_per_epoch, 3)
  return found


def _accuracies(row, network):
  return {kind: row[f'{network}/{kind}'] for kind in ('top1', 'top5')}


def _best(evaluations, network, by):
  row = max(evaluations, key=lambda row: row[by])
  return {**_accuracies(row, network), 'step': row['step']}


def closing_table(summary):
  """Returns the summary as text: accuracies, then the importance of each teacher at each tap."""
  lines = [
    f'{"":28}{"last epoch":>20}{"best epoch":>27}',
    f'{"network":28}{"top-1":>10}{"top-5":>10}{"top-1":>10}{"top-5":>10}{"at":>7}',
  ]
  for network, result in summary['results'].items():
    last, best = result['last'], result['best']
    lines.append(
      f'{network:28}{last["top1"]:>8.2f} %{last["top5"]:>8.2f} %{best["top1"]:>8.2f} %'
      f'{best["top5"]:>8.2f} %{best["epoch"]:>7.4g}'
    )
  for network, result in summary['results'].items():
    if 'chosen' in result:
      chosen = result['chosen']
      lines.append(f'{network + ", as minival chooses":40}{chosen["top1"]:.2f} %  at epoch {chosen["epoch"]:.4g}')
  if summary['importance']:
    taps = list(dict.fromkeys(name.split('/')[0] for name in summary['importance']))
    teachers = list(dict.fromkeys(name.split('/')[1] for name in summary['importance']))
    lines += ['', f'{"importance factors":28}' + ''.join(f'{teacher:>16}' for teacher in teachers)]
    for tap in taps:
      lines.append(f'{tap:28}' + ''.join(f'{summary["importance"][f"{tap}/{t}"]:>16.3f}' for t in teachers))
  return '\n'.join(lines)


def write(path, text):
  """Writes a file whole or not at all, in the first process."""
  if distributed.is_first():
    local_file.write_whole(path, text)


def versions():
  """Returns `{package: version}` of what a run depends on."""
  return {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')}


@functools.cache
def commit():
  """Returns the commit of the checkout this package runs from, '' elsewhere."""
  package = epath.Path(cmtkd_jax.__file__).parent
  try:
    git = subprocess.run(
      ['git', '-C', str(package), 'describe', '--always', '--dirty', '--exclude=*'],
      capture_output=True,
      text=True,
      check=False,
    )
  except OSError:  # no git here
    return ''
  return git.stdout.strip() if git.returncode == 0 else ''
