"""What a run leaves in its work directory beside checkpoints and metrics: config, bits, summary."""

import contextlib
import errno
import functools
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess

import jax
from etils import epath

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

from cmtkd_jax import config as config_lib
from cmtkd_jax import distributed, metric_log
from cmtkd_jax.errors import UserError

CONFIG, BITS, CLASSES, SUMMARY = 'config.json', 'bits.json', 'classes.json', 'summary.json'
CHECKPOINTS, LOCK = 'checkpoints', 'lock'
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM,
         errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
# Fields that may change when a run goes on: they do not touch what is trained.
FREE = ('data.dir', 'data.num_workers', 'data.workers', 'data.max_corrupt', 'data.resident', 'eval_batch_size',
        'log_every', 'eval_every', 'checkpoint_every', 'keep_checkpoints', 'allow_changes', 'profile', 'remat',
        'tensorboard')


def open_run(workdir, config, dataset, rows):
  """Makes the work directory, or checks that it belongs to this configuration; returns its path.

  Raises:
    UserError: the directory cannot be written, or holds a run of another configuration.
  """
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    if path.exists():
      differing = config_lib.difference(read_config(workdir), config, but=FREE)
      if differing and config.allow_changes:
        print(f'{workdir} goes on with another configuration: {"; ".join(differing)}', flush=True)
      elif differing:
        raise UserError(f'--workdir: {workdir} holds a run of another configuration ({"; ".join(differing[:4])}'
                        f'{"; ..." if len(differing) > 4 else ""}); choose another --workdir or the same '
                        'configuration, or set config.allow_changes=True')
    distributed.wait_for_all('the configuration is compared')
    write(workdir / BITS, json.dumps([row._asdict() for row in rows], indent=1))
    write(workdir / CLASSES, json.dumps(list(dataset.class_names)))
    write(path, config_lib.to_json(config))
  except OSError as e:
    raise UserError(f'--workdir: {workdir} cannot be written ({e.strerror or e}); choose another one') from None
  return workdir


class Lock(contextlib.AbstractContextManager):
  """Keeps a second run out of a work directory, for as long as it is entered or the process lives.

  On a local file system only: object stores have no locks. The file stays behind; what counts is who holds it.

  Raises:
    UserError: another run holds it.
  """

  def __init__(self, workdir):
    self._path, self._file = epath.Path(workdir) / LOCK, None

  def __enter__(self):
    if fcntl is None or '://' in str(self._path) or not distributed.is_first():
      return self
    self._file = open(self._path, 'a+')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._file.seek(0)
      holder = self._file.read().strip() or 'another process'
      self._file.close()
      raise UserError(f'--workdir: {self._path.parent} is in use by {holder}; wait for it, stop it, or choose another '
                      '--workdir') from None
    except OSError:  # a file system without locks
      return self
    self._file.truncate(0)
    self._file.write(f'process {os.getpid()} on {socket.gethostname()}')
    self._file.flush()
    return self

  def __exit__(self, *unused):
    if self._file is not None:
      self._file.close()


@contextlib.contextmanager
def told_of_disk(workdir):
  """Turns a work directory that cannot be written any more into a `UserError`; checkpoints tell of themselves."""
  try:
    yield
  except OSError as e:
    if e.errno not in _DISK:
      raise
    raise UserError(f'--workdir: {workdir} cannot be written ({e.strerror}); the checkpoints in it are kept; make room '
                    'or mend the disk, and start the same command again') from None


def check_space(workdir, size):
  """Raises `UserError` unless a checkpoint of `size` bytes fits, where that can be known."""
  if '://' in str(workdir) or not distributed.is_first():
    return
  free = shutil.disk_usage(workdir).free
  if free < 1.1 * size:
    raise UserError(f'--workdir: {workdir} has {free / 2**20:,.0f} MiB left, and a checkpoint takes '
                    f'{size / 2**20:,.0f} MiB; free some space, or choose another --workdir')


def read_config(workdir, field='--workdir'):
  """Returns the configuration of the run in `workdir`, which `field` names.

  Raises:
    UserError: there is no run, or its configuration is damaged.
  """
  path = epath.Path(workdir) / CONFIG
  if not path.exists():
    raise UserError(f'{field}: there is no {CONFIG} in {workdir}; name the directory of a run, or train one first '
                    'with --mode=train')
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
  return read_json(path, dict, needed) if path.exists() else None


def read_json(path, kind, needed=()):
  """Returns what the JSON file `path` holds.

  Args:
    path: an `epath.Path`.
    kind: dict or list, what it must be.
    needed: keys that a dict must have.

  Raises:
    UserError: it cannot be read, or holds something else.
  """
  try:
    value = json.loads(path.read_text())
    problem = '' if isinstance(value, kind) and all(key in value for key in needed) else 'it is not what was written'
  except (OSError, ValueError) as e:  # no file, no UTF-8, no JSON
    problem = ' '.join(str(e).split())
  if problem:
    raise UserError(f'{path} is damaged ({problem}); restore it, or delete it: the command that made it makes it anew')
  return value


def meta(config, step, rows):
  """Returns what a checkpoint says about itself."""
  return {'step': step, 'data_position': step, 'config': config.to_dict(), 'versions': versions(), 'commit': commit(),
          'bits': [row._asdict() for row in rows]}


def write_summary(workdir, config, steps_per_epoch):
  """Writes and returns the run's summary: `results` of every network, importance factors, what it was run with."""
  distributed.wait_for_all('the metrics are written')
  rows = metric_log.read(workdir)
  trained = [row for row in rows if 'train/loss' in row]
  if not trained:
    raise UserError(f'{workdir}/{metric_log.FILE} has lost the rows of training; restore it, or train in another '
                    '--workdir')
  summary = {'config': config.to_dict(), 'steps': rows[-1]['step'], 'commit': commit(), 'versions': versions(),
             'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
             'epochs': round(rows[-1]['step'] / steps_per_epoch, 3), 'results': results(rows, steps_per_epoch),
             'importance': {name.removeprefix('importance/'): value
                            for name, value in trained[-1].items() if name.startswith('importance/')}}
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
    of = lambda row: {kind: row[f'{network}/{kind}'] for kind in ('top1', 'top5')}
    at_best = lambda by: (row := max(evaluations, key=lambda row: row[by])) and (
        of(row) | {'epoch': round(row['step'] / steps_per_epoch, 3)})
    found[network] = {'last': of(evaluations[-1]), 'best': at_best(name)}
    if held_out != name and held_out in evaluations[-1]:
      found[network]['chosen'] = at_best(held_out)
  return found


def closing_table(summary):
  """Returns the summary as text: accuracies, then the importance of each teacher at each tap."""
  lines = [f'{"":28}{"last epoch":>20}{"best epoch":>27}', f'{"network":28}{"top-1":>10}{"top-5":>10}'
           f'{"top-1":>10}{"top-5":>10}{"at":>7}']
  for network, result in summary['results'].items():
    last, best = result['last'], result['best']
    lines.append(f'{network:28}{last["top1"]:>8.2f} %{last["top5"]:>8.2f} %{best["top1"]:>8.2f} %'
                 f'{best["top5"]:>8.2f} %{best["epoch"]:>7.4g}')
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
  if not distributed.is_first():
    return
  temporary = path.parent / f'{path.name}.tmp'
  temporary.write_text(text)
  temporary.replace(path)


def versions():
  """Returns `{package: version}` of what a run depends on."""
  return {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')}


@functools.cache
def commit():
  """Returns the commit of the checkout this package runs from, '' elsewhere."""
  package = epath.Path(__file__).parent
  try:
    git = subprocess.run(['git', '-C', str(package), 'describe', '--always', '--dirty', '--exclude=*'],
                         capture_output=True, text=True, check=False)
  except OSError:  # no git here
    return ''
  return git.stdout.strip() if git.returncode == 0 else ''
