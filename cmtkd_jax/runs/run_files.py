"""The files that describe a run in its work directory: configuration, bits, classes, number of images."""

import contextlib
import json
import shutil
import unicodedata

from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, json_file
from cmtkd_jax.runtime import distributed, local_file

CONFIG, BITS, CLASSES, RECORDS = 'config.json', 'bits.json', 'classes.json', 'records.json'
SUMMARY = 'summary.json'  # of a finished run, see `run_summary`
CHECKPOINTS = 'checkpoints'


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
    json_file.write(workdir / CONFIG, config_lib.to_json(config))  # first: it says that the directory is a run's
    json_file.write(workdir / BITS, json.dumps([row._asdict() for row in rows], indent=1))
    json_file.write(workdir / CLASSES, json.dumps(list(dataset.class_names)))
    held_out = {'held_out': dataset.held_out_digest} if dataset.held_out_digest else {}
    json_file.write(workdir / RECORDS, json.dumps({**dataset.num_examples, **held_out}))
    if distributed.is_first():
      (workdir / SUMMARY).unlink(missing_ok=True)
  except OSError as e:
    raise UserError(f'workdir: {workdir} cannot be written ({e.strerror or e}); choose another one') from None


def has_checkpoint(workdir):
  """Returns whether `workdir` holds a run with something to resume."""
  return bool(checkpoint.steps(epath.Path(workdir) / CHECKPOINTS))


@contextlib.contextmanager
def disk_errors_as_user_errors(workdir):
  """Turns a failed write to a full or broken disk into a `UserError`; `Checkpoints` reports its own."""
  try:
    yield
  except OSError as e:
    if e.errno not in checkpoint.DISK_ERRORS:
      raise
    raise UserError(
      f'workdir: {workdir} cannot be written ({e.strerror}); the checkpoints in it are kept; make room '
      'or fix the disk, and start the same command again'
    ) from None


def check_space(workdir, size):
  """Raises `UserError` unless a checkpoint of `size` bytes fits, where that can be known."""
  if '://' in str(workdir) or not distributed.is_first():
    return
  free = shutil.disk_usage(workdir).free
  if free < 1.1 * size:
    raise UserError(
      f'workdir: {workdir} has {free / 2**20:,.0f} MiB left, and a checkpoint takes '
      f'{size / 2**20:,.0f} MiB; free some space, or choose another workdir'
    )


def read_config(workdir, field='workdir'):
  """Returns the configuration of the run in `workdir`, which `field` names.

  Raises:
    UserError: there is no run, or its configuration is damaged.
  """
  path = epath.Path(workdir) / CONFIG
  if not local_file.is_there(path):
    if (epath.Path(workdir) / SUMMARY).exists():
      raise UserError(f"{field}: {path} is missing; restore it, or copy what {SUMMARY} has under 'config'")
    raise UserError(f'{field}: there is no {CONFIG} in {workdir}; name the directory of a run, or train one first')
  try:
    found = json_file.read(path, dict)
    if 'model_type' in found:  # as config.json of the hub begins
      raise UserError('this is a folder exported for the hub, not a run; open_network and --mode=predict open it')
    return config_lib.from_json(json.dumps(found))
  except UserError as e:
    raise UserError(f'{field}: {path}: {e}') from None


# For files that start anew with each training, also one that has nothing left to do.
WRITE_AGAIN = f'restore it, or delete it and {SUMMARY}: then the training command writes both again'


def read_classes(workdir):
  """Returns the names of the classes of the run in `workdir`, in Unicode NFC; [] where they are not known yet.

  Raises:
    UserError: the file is damaged.
  """
  path = epath.Path(workdir) / CLASSES
  are_names = lambda names: all(isinstance(name, str) for name in names)
  names = json_file.read(path, list, valid=are_names, fix=WRITE_AGAIN) if path.exists() else []
  return [unicodedata.normalize('NFC', name) for name in names]
