"""The files that describe a run in its work directory: configuration, bits, classes, number of images."""

import contextlib
import functools
import importlib.metadata
import json
import logging
import shutil
import subprocess
import unicodedata

from etils import epath

import cmtkd_jax
from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, event_files, metric_log
from cmtkd_jax.runs.lock import Lock
from cmtkd_jax.runtime import distributed, local_file

CONFIG, BITS, CLASSES, RECORDS = 'config.json', 'bits.json', 'classes.json', 'records.json'
SUMMARY = 'summary.json'  # of a finished run, see `run_summary`
CHECKPOINTS = 'checkpoints'
# Fields that may change when a run resumes: they do not touch what is trained.
MUTABLE_FIELDS = (
  'data.dir',
  'data.num_workers',
  'data.workers',
  'data.max_corrupt_fraction',
  'data.on_device',
  'eval_batch_size',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'max_checkpoints',
  'allow_config_changes',
  'profile',
  'remat',
  'tensorboard',
)


@contextlib.contextmanager
def claim(workdir, config, dataset, root=''):
  """Locks a work directory and checks that the run may go on there; yields the path. Nothing is written yet.

  A directory with a checkpoint or with results must belong to this configuration and these data. Without them nothing
  is lost: a run that failed at its start may be started again with any other configuration.

  Raises:
    UserError: the directory cannot be written, holds a run of another configuration or other data, or has files of
      other programs in place of those of a run.
  """
  checkpoint.check_name(workdir)
  with Lock(workdir):
    workdir = epath.Path(workdir)
    if has_checkpoint(workdir) or (workdir / SUMMARY).exists():
      check_configuration(workdir, config, root)
      check_data(workdir, dataset, config.allow_config_changes)
    else:
      _check_free(workdir)
    distributed.wait_for_all('the configuration is compared')
    yield workdir


def _check_free(workdir):
  """Raises `UserError` where a directory without a run has files that a run would overwrite, and that are of no run."""
  if (workdir / CONFIG).exists():
    try:
      read_config(workdir)
    except UserError:
      raise UserError(f'--workdir: {workdir / CONFIG} is not of a run; choose another --workdir') from None
    return
  patterns = (BITS, CLASSES, RECORDS, metric_log.FILE, event_files.PATTERN)
  if found := [path.name for pattern in patterns for path in local_file.matching(workdir, pattern)]:
    raise UserError(
      f'--workdir: {workdir / found[0]} is not of a run, which would have a {CONFIG}, too; choose another --workdir, '
      'or remove the file'
    )


def describe(workdir, config, dataset, rows):
  """Writes what describes a run that is about to train into its claimed work directory.

  Removes the summary of a shorter training, which would no longer be true.

  Args:
    workdir: an `epath.Path`.
    config: a `ConfigDict`.
    dataset: the `data.Dataset`.
    rows: of `bit_table.collect`.

  Raises:
    UserError: the directory cannot be written.
  """
  try:
    write(workdir / CONFIG, config_lib.to_json(config))  # first: it says that the directory is a run's
    write(workdir / BITS, json.dumps([row._asdict() for row in rows], indent=1))
    write(workdir / CLASSES, json.dumps(list(dataset.class_names)))
    held_out = {'held_out': dataset.held_out_digest} if dataset.held_out_digest else {}
    write(workdir / RECORDS, json.dumps({**dataset.num_examples, **held_out}))
    if distributed.is_first():
      (workdir / SUMMARY).unlink(missing_ok=True)
  except OSError as e:
    raise UserError(f'--workdir: {workdir} cannot be written ({e.strerror or e}); choose another one') from None


def has_checkpoint(workdir):
  """Returns whether `workdir` holds a run with something to resume."""
  return bool(checkpoint.steps(epath.Path(workdir) / CHECKPOINTS))


def check_configuration(workdir, config, root=''):
  """Raises `UserError` if the run in `workdir` has another configuration, unless `config.allow_config_changes`.

  root: of the chain or table that it belongs to, see `config.difference`.
  """
  if not (path := epath.Path(workdir) / CONFIG).exists():
    raise UserError(f'--workdir: {path} is missing beside what a run has made; restore it, or choose another --workdir')
  differing = config_lib.difference(read_config(workdir), config, exclude=MUTABLE_FIELDS, root=root)
  if not differing:
    return
  if not config.allow_config_changes:
    raise UserError(
      f'--workdir: {workdir} holds a run of another configuration ({"; ".join(differing[:4])}'
      f'{"; ..." if len(differing) > 4 else ""}); choose another --workdir or the same '
      'configuration, or set config.allow_config_changes=True'
    )
  kept = any(line.startswith(('init_from', 'teacher_workdirs')) for line in differing) and has_checkpoint(workdir)
  if distributed.is_first():
    logging.getLogger(__name__).warning(
      '%s continues with another configuration: %s%s',
      workdir,
      '; '.join(differing),
      '. Teachers and weights to start from are read when a run starts: it keeps those that it has' if kept else '',
    )


def check_data(workdir, dataset, allow_config_changes=False):
  """Raises `UserError` if the run in `workdir` was trained with other classes, or other held-out or numbers of records.

  Labels are positions in the list of classes: a renamed class folder would swap them without any other sign.

  Args:
    workdir: directory of the run.
    dataset: the `data.Dataset` as it is now.
    allow_config_changes: whether the number of records may differ; never where test images are held out of the same
      ones, since another number of images moves them.
  """
  workdir = epath.Path(workdir)
  before, now = read_classes(workdir), list(dataset.class_names)
  if before and before != now:
    raise UserError(
      f'config.data.name: the classes are not those of the run in {workdir}: {_listed(now)} now, '
      f'{_listed(before)} in its {CLASSES}; restore the class names, or choose another --workdir'
    )
  path = workdir / RECORDS
  counts = dict(read_json(path, dict, fix=WRITE_AGAIN) if path.exists() else dataset.num_examples)
  digest = counts.pop('held_out', dataset.held_out_digest)
  if counts == dataset.num_examples and digest != dataset.held_out_digest:
    raise UserError(
      f'config.data.name: the images are not those of the run in {workdir}: others are held out to test on now, which '
      'the run was trained on; restore the images and their names, or choose another --workdir'
    )
  if counts == dataset.num_examples or (allow_config_changes and not dataset.held_out):
    return
  found = f'{dataset.num_examples} now, {counts} in its {RECORDS}'
  if dataset.held_out:
    raise UserError(
      f'config.data.name: the number of images is not that of the run in {workdir}: {found}. Test images are held out '
      'of them, and another number holds out others, which the run was trained on; restore the images, or choose '
      'another --workdir'
    )
  raise UserError(
    f'config.data.name: the number of images is not that of the run in {workdir}: {found}; restore the data, choose '
    'another --workdir, or set config.allow_config_changes=True'
  )


def check_held_out(field, directory, config, dataset):
  """Raises `UserError` if the run in `directory` was trained on images of this data set that are now its test images.

  Args:
    field: what names the directory, such as 'config.init_from'.
    directory: of a run, or anything else.
    config: of the run that begins.
    dataset: its `data.Dataset`.
  """
  path = epath.Path(directory) / RECORDS
  if not dataset.held_out_digest or not path.exists():
    return
  digest = read_json(path, dict, fix=WRITE_AGAIN).get('held_out', dataset.held_out_digest)
  if digest != dataset.held_out_digest and config_lib.same_path(
    read_config(directory, field).data.name, config.data.name
  ):
    raise UserError(
      f'{field}: the run in {directory} held out other images of {config.data.name} and was trained on some that this '
      'run tests on; give both the same config.data.test_fraction and images, or a test folder'
    )


def _listed(classes, most=6):
  shown = ', '.join(map(repr, classes[:most]))
  return f'[{shown}, ... {len(classes)} in all]' if len(classes) > most else f'[{shown}]'


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
    'held-out images': repr(dataset.held_out_digest),
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
    raise UserError(f'{field}: {path}: {e}') from None


# For files that start anew with each training, also one that has nothing left to do.
WRITE_AGAIN = f'restore it, or delete it and {SUMMARY}: then the training command writes both again'


def read_json(path, kind, needed=(), valid=lambda value: True, fix='restore it'):
  """Returns what the JSON file `path` holds.

  Args:
    path: an `epath.Path`.
    kind: dict or list, what it must be.
    needed: keys that a dict must have.
    valid: whether the content is as it was written; may raise what a wrong structure raises.
    fix: what the user can do about a damaged file.

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
    raise UserError(f'{path} is damaged ({problem}); {fix}')
  return value


def _holds(valid, value):
  try:
    return valid(value)
  except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
    return False


def read_classes(workdir):
  """Returns the names of the classes of the run in `workdir`, in Unicode NFC; [] where they are not known yet.

  Raises:
    UserError: the file is damaged.
  """
  path = epath.Path(workdir) / CLASSES
  are_names = lambda names: all(isinstance(name, str) for name in names)
  names = read_json(path, list, valid=are_names, fix=WRITE_AGAIN) if path.exists() else []
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
  git = lambda *words: subprocess.run(['git', '-C', str(package), *words], capture_output=True, text=True, check=False)
  try:
    # Another repository does not track a package that is installed in one of its folders.
    if git('ls-files', '--error-unmatch', '__init__.py').returncode:
      return ''
    described = git('describe', '--always', '--dirty', '--exclude=*')
  except OSError:  # no git here
    return ''
  return described.stdout.strip() if described.returncode == 0 else ''
