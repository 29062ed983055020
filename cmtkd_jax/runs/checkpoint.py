"""Checkpoints: the one module that knows orbax (its stable v0 API)."""

import contextlib
import errno
import functools
import json
import logging
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runs import checksums
from cmtkd_jax.runtime import distributed, local_file

# Errors of a disk that is full, broken or not writable. tensorstore raises them as text.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
_DISK_TEXTS = (
  'No space left',
  'RESOURCE_EXHAUSTED',
  'Permission denied',
  'Input/output error',
  'Read-only file system',
  'File too large',
)
_RETRY_SECONDS = (1, 4, 15)  # between attempts to read from an object store


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step):
    """Asks nothing: processes agree on one of the numbers of `runtime.preemption`, which are not steps."""
    return False


class Checkpoints(contextlib.AbstractContextManager):
  """The checkpoints of one directory; each is complete or invisible. Close it, or use it in `with`.

  Args:
    directory: holds one folder per step; made when missing. Any path that `etils.epath` knows.
    keep: how many of the newest stay, at least one.
    best_metric: key of `save`'s metrics; the checkpoint where it is greatest stays too. '' keeps no best one.
  """

  def __init__(self, directory, keep=2, best_metric=''):
    self.directory = _absolute(directory)
    if self.directory.exists() and not self.directory.is_dir():
      raise UserError(f'{self.directory} is not a directory; remove it, or choose another workdir')
    self._metric, self._saving = best_metric, None
    score = lambda metrics: metrics.get(best_metric, float('-inf'))
    policies = [ocp.checkpoint_managers.LatestN(max(keep, 1))]
    if best_metric:
      _drop_damaged_metrics(self.directory)  # in all processes, which wait for each other
      policies.append(ocp.checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
    self._manager = _Manager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        best_fn=score if best_metric else None,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
      ),
    )

  def wait(self):
    """Blocks until the last save is on disk."""
    with self._write_errors_as_user_errors():
      self._manager.wait_until_finished()

  def close(self):
    """Waits, and frees the threads."""
    with self._write_errors_as_user_errors():
      self._manager.close()

  def __exit__(self, *unused):
    self.close()

  @contextlib.contextmanager
  def _write_errors_as_user_errors(self):
    """Reports a failed write to a full disk or an object store in one line; earlier checkpoints stay as they are."""
    try:
      yield
    except Exception as error:  # orbax, tensorstore and file systems raise many exception types
      text = one_line(error)
      on_disk = getattr(error, 'errno', None) in DISK_ERRORS or any(words in text for words in _DISK_TEXTS)
      if not on_disk and not _is_remote(self.directory):
        raise
      with contextlib.suppress(Exception):  # the save before this one may still be under way
        self._manager.wait_until_finished()
      good = steps(self.directory)
      kept = f'that of step {good[-1]} is kept' if good else 'there is none before it'
      reason = next((words for words in _DISK_TEXTS if words in text), text[:150])
      fix = 'make room or fix the disk' if on_disk else 'check the storage and your credentials'
      raise UserError(
        f'{self.directory}: a checkpoint could not be written ({reason}); {kept}; {fix}, and start the '
        'same command again'
      ) from None

  def latest(self):
    """The newest step, or None; a save that still runs counts."""
    return max(self._manager.all_steps(), default=None)

  def save(self, step, state, meta, metrics=None):
    """Starts to save in the background; `state` may be donated as soon as this returns.

    An error of the writing thread is raised by the next `save`, `wait` or `close`.

    Args:
      step: the step; one that is there already is not saved again.
      state: dict with the key 'variables' and at least one more; each value a pytree of arrays and numbers.
      meta: dict that JSON can hold.
      metrics: dict of numbers, of which `best_metric` is kept; a NaN counts as not measured.
    """
    if step in self._manager.all_steps():
      return
    kept = {k: float(v) for k, v in (metrics or {}).items() if k == self._metric and v == v}  # No NaN.
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    items['meta'] = ocp.args.JsonSave(json.loads(json.dumps(meta)))  # A copy: it is written later.
    self.wait()
    self._saving = int(step)
    with self._write_errors_as_user_errors():
      self._manager.save(int(step), args=ocp.args.Composite(**items), metrics=kept or None, force=True)

  def _seal(self):
    """Digests the checkpoint that is about to become visible; called by the writing thread."""
    if distributed.is_first():
      hidden = local_file.matching(self.directory, f'{self._saving}.orbax-checkpoint-tmp*')
      checksums.write(hidden[0] if hidden else self.directory / str(self._saving))  # object stores rename nothing

  def restore(self, abstract_state):
    """Reads (state, meta) of the newest readable checkpoint, bit for bit, whatever devices it was saved from.

    Newer ones, which are damaged, are moved aside, with a warning.

    Args:
      abstract_state: `state` as it was saved, with a `jax.ShapeDtypeStruct` with sharding for each array.

    Raises:
      UserError: no checkpoint can be read, it holds other arrays than asked for, or processes read different ones.
    """
    self.wait()
    items, meta, found = _read_newest(self.directory, None, _items(abstract_state))
    distributed.check_agreement({'step of the newest readable checkpoint': found})
    broken = [later for later in self._manager.all_steps() if later > found]
    for later in broken if distributed.is_first() else []:
      aside = self.directory / f'broken_{later}'
      if aside.exists():  # the second time at this step
        aside.rmtree()
      (self.directory / str(later)).rename(aside)
    multihost_utils.sync_global_devices('broken checkpoints are moved aside')
    self._manager.reload()
    return dict(items['state'], variables=items['variables']), meta


def steps(directory):
  """Returns the steps of the checkpoints in `directory`, ascending; empty if there are none.

  Raises:
    UserError: the directory is there, but cannot be read.
  """
  directory = _absolute(directory)
  try:
    found = ocp.utils.checkpoint_steps(directory) if local_file.is_there(directory) and directory.is_dir() else []
  except OSError as e:
    raise local_file.cannot_be_read(directory, e) from None
  is_folder = lambda path: local_file.is_there(path) and path.is_dir()
  return sorted(step for step in set(found) if is_folder(directory / str(step)))  # orbax counts 'broken_20', too


def load_variables(directory, step=None):
  """Reads the networks of a checkpoint, not its optimizer: (nested dicts of NumPy arrays, meta, step).

  Args:
    directory: what was given to `Checkpoints`.
    step: which; None for the newest that can be read.

  Raises:
    UserError: there is no such checkpoint, or it cannot be read.
  """
  items, meta, step = _read_newest(_absolute(directory), step, {'variables': None})
  if not meta.get('statistics_measured', True):
    _warn_once(
      f'{directory}/{step} was saved when the run was asked to stop, before config.bn_reestimation, which changes its '
      'accuracy; resume the run, or take another step'
    )
  return items['variables'], meta, step


def _drop_damaged_metrics(directory):
  """Lets a checkpoint whose metrics are damaged count as not measured; orbax would stop at it."""
  for step in steps(directory) if distributed.is_first() else []:
    folder = directory / str(step)
    try:
      checksums.check(folder, ['metrics'])
    except checksums.ChecksumError as error:
      if (folder / 'metrics').exists():
        logging.getLogger(__name__).warning('%s: %s; it cannot be the best one any more', folder, error)
        (folder / 'metrics').rmtree()
  distributed.wait_for_all('damaged metrics are dropped')


@functools.cache
def _warn_once(text):
  logging.getLogger(__name__).warning(text)


def check_name(workdir):
  """Raises `UserError` for a directory with a '[' in its name: orbax takes it for a pattern and loses what it saves."""
  if '[' in str(workdir := _absolute(workdir)):
    raise UserError(
      f"workdir: {workdir} has a '[' in its name, and orbax cannot save checkpoints there; choose another workdir"
    )


def _absolute(directory):
  path = epath.Path(directory).expanduser()
  return path if path.is_absolute() else path.absolute()


def _items(state):
  return {'variables': state['variables'], 'state': {key: state[key] for key in state if key != 'variables'}}


def _read_newest(directory, step, wanted):
  """(items, meta, step) for the step asked for, else for the newest that is not damaged.

  A checkpoint counts as damaged if its checksums or a missing item prove it. Any other error is raised: a store that is
  out of reach for a minute must not cost the newest checkpoint.
  """
  there = steps(directory)[::-1]
  if not there:
    raise UserError(
      f'no checkpoint in {directory}; train first (a finished run begins anew only without its summary.json), or name '
      'another directory'
    )
  if step not in [None, *there]:
    steps_there = ', '.join(map(str, there[::-1]))
    raise UserError(
      f'no checkpoint of step {step} in {directory}, which has {steps_there}; set step to one of these, or leave it '
      'out for the newest'
    )
  for folder in [directory / str(candidate) for candidate in (there if step is None else [step])]:
    try:
      items, meta = _retried(lambda folder=folder: _read_step(folder, wanted), folder)
      return items, meta, int(folder.name)
    except checksums.ChecksumError as error:
      reason = str(error)
      logging.getLogger(__name__).warning('%s is damaged: %s', folder, reason)
  raise UserError(f'no readable checkpoint in {directory}: {reason}; use another one')


def _read_step(folder, wanted):
  """(items, meta) of one checkpoint; raises `ChecksumError` if that is proven."""
  names = [*wanted, 'meta']
  for name in names:
    if not local_file.is_there(folder / name):
      raise checksums.ChecksumError(f'{name} is missing')
  checksums.check(folder, names)  # first: orbax leaves tasks running that complain about a damaged file
  items = {name: _read_item(folder / name, target) for name, target in wanted.items()}
  return items, ocp.JsonCheckpointHandler().restore(folder / 'meta')


def _retried(read, folder):
  """Returns `read()`; tries again a few times on an object store. Reports a failed read in one line."""
  remote = _is_remote(folder)
  for wait in (*(_RETRY_SECONDS if remote else ()), None):
    try:
      return read()
    except (UserError, checksums.ChecksumError):
      raise
    except Exception as error:  # storage backends raise many exception types
      if not remote and not isinstance(error, OSError):
        raise
      reason = one_line(f'{type(error).__name__}: {error}', 150)
      if wait is None:
        raise UserError(
          f'{folder} cannot be read ({reason}); the checkpoint is kept; check the storage, and start the '
          'same command again'
        ) from error
      logging.getLogger(__name__).warning('%s cannot be read (%s); trying again in %d s', folder, reason, wait)
      time.sleep(wait)


def _is_remote(path):
  return '://' in str(path)


def _read_item(path, target):
  """The pytree saved there, in the structure of `target`; as NumPy arrays where that is None."""
  with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
    saved = handler.metadata(path).tree
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved) if target is None else target
    check_same_structure({path.name: target}, {path.name: saved}, path.parent)
    return handler.restore(path, args=ocp.args.StandardRestore(target))


def check_same_structure(here, there, where):
  """Raises `UserError`, beginning with `where`, unless two trees have the same arrays."""
  here, there = _signature(here), _signature(there)
  lines = [
    f'{leaf} is {there.get(leaf, "absent")} there, {here.get(leaf, "absent")} here'
    for leaf in sorted(there.keys() | here.keys())
    if there.get(leaf) != here.get(leaf)
  ]
  if lines:
    raise UserError(
      f'{where} does not fit: {"; ".join(lines[:3])}{"; ..." * bool(lines[3:])}; '
      'use the configuration it was trained with, or another directory'
    )


def _signature(tree):
  """{path: 'float32[3, 4]'} of abstract arrays or orbax metadata."""
  numbers = int, float, ocp.metadata.value.ScalarMetadata
  describe = lambda leaf: 'a number' if isinstance(leaf, numbers) else f'{leaf.dtype}{list(leaf.shape)}'
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): describe(leaf) for path, leaf in leaves}
