"""Checks whether a run may continue in a work directory: same configuration, classes and images as before."""

import contextlib
import logging

from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, event_files, json_file, metric_log, provenance, run_files
from cmtkd_jax.runs.lock import Lock
from cmtkd_jax.runtime import distributed, local_file

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
# Checkpoints depend on the values of the fields in `_KEPT`, and on whether those in `_KEPT_ON` are set.
_KEPT, _KEPT_ON = ('averaging.name', 'optimizer.name'), ('freezing.threshold', 'bn_reestimation')
_LONGER = ('duration', 'early_stopping')  # with another value, training may go on after its end
# What may differ between the processes of one run: where its data are, and how they are read.
_OF_PROCESS = ('data.dir', 'data.num_workers', 'data.workers')


@contextlib.contextmanager
def claim(workdir, config, dataset, root=''):
  """Locks a work directory and checks that the run may continue there; yields the path. Nothing is written yet.

  A directory with a checkpoint or with results must belong to this configuration and these data. Without them nothing
  is lost: a run that failed at its start may be started again with any other configuration.

  Raises:
    UserError: the directory cannot be written, holds a run of another configuration or other data, or has files of
      other programs in place of those of a run.
  """
  checkpoint.check_name(workdir)
  with Lock(workdir):
    workdir = epath.Path(workdir)
    if run_files.has_checkpoint(workdir) or (workdir / run_files.SUMMARY).exists():
      check_configuration(workdir, config, root)
      check_data(workdir, dataset, config.allow_config_changes)
    else:
      _check_free(workdir)
    distributed.wait_for_all('the configuration is compared')
    yield workdir


def _check_free(workdir):
  """Raises `UserError` where a directory without a run has files that a run would overwrite, and that are of no run."""
  if (workdir / run_files.CONFIG).exists():
    try:
      run_files.read_config(workdir)
    except UserError:
      raise UserError(f'workdir: {workdir / run_files.CONFIG} is not of a run; choose another workdir') from None
    return
  patterns = (run_files.BITS, run_files.CLASSES, run_files.RECORDS, metric_log.FILE, event_files.PATTERN)
  if found := [path.name for pattern in patterns for path in local_file.matching(workdir, pattern)]:
    raise UserError(
      f'workdir: {workdir / found[0]} is not of a run, which would have a {run_files.CONFIG}, too; choose another '
      'workdir, or remove the file'
    )


def check_configuration(workdir, config, root=''):
  """Raises `UserError` if the run in `workdir` has another configuration, unless `config.allow_config_changes`.

  root: of the chain or table that it belongs to, see `config.difference`.
  """
  workdir = epath.Path(workdir)
  if not (path := workdir / run_files.CONFIG).exists():
    raise UserError(
      f'workdir: {path} is missing, although other files of a run are there; restore it, or choose another workdir'
    )
  before = run_files.read_config(workdir)
  decides = ('eval_every',) if config.early_stopping else ()  # at evaluations, training may end
  exclude = [field for field in MUTABLE_FIELDS if field not in decides]
  differing = config_lib.difference(before, config, exclude=exclude, root=root)
  if not differing:
    return
  is_over = (workdir / run_files.SUMMARY).exists() and not any(line.startswith(_LONGER) for line in differing)
  if not config.allow_config_changes:
    raise UserError(
      f'workdir: {workdir} holds a run of another configuration ({_first(differing)}); choose another workdir or '
      f'the same configuration{"" if is_over else ", or set config.allow_config_changes=True"}'
    )
  if run_files.has_checkpoint(workdir):
    check_held_back(before, config, workdir, 'choose another workdir')
    _check_networks(before, config, workdir)
  starts = any(line.startswith(('init_from', 'teacher_workdirs')) for line in differing)
  kept = starts and run_files.has_checkpoint(workdir)
  if distributed.is_first() and not is_over:
    logging.getLogger(__name__).warning(
      '%s continues with another configuration: %s%s',
      workdir,
      '; '.join(differing),
      '. Teachers and weights to start from are read when a run starts: it keeps those that it has' if kept else '',
    )


def check_held_back(before, config, workdir, otherwise):
  """Raises `UserError` if `config` would call images held out that the run in `workdir` was trained on.

  before: the run's own configuration. otherwise: what to do but to keep its value, in words.
  """
  if config.data.minival > before.data.minival:
    raise UserError(
      f'config.data.minival={config.data.minival}: the run in {workdir} was trained on images that this '
      f'would hold out ({before.data.minival} so far); keep that value, or {otherwise}'
    )


def _check_networks(before, config, workdir):
  """Refuses another average or optimizer, and to begin or end what checkpoints hold arrays of, see `release`."""
  then, now = config_lib.flat(before), config_lib.flat(config)
  changed = [field for field in _KEPT if then[field] != now[field]]
  if now['averaging.name'] == 'swa':  # the steps whose networks the mean has
    changed += [field for field in ('averaging.start', 'averaging.every') if then[field] != now[field]]
  changed += [field for field in _KEPT_ON if bool(then[field]) != bool(now[field])]
  if now['averaging.name'] != 'none' and 'bn_reestimation' in changed:  # averages are apart from what is trained anyway
    changed.remove('bn_reestimation')
  if changed:
    field = changed[0]
    raise UserError(
      f'config.{field}={now[field]!r}: the checkpoints in {workdir} were saved with {then[field]!r} and hold what '
      'belongs to it; keep that value, or choose another workdir'
    )


def check_unchanged(workdir, config, fix, root=''):
  """Raises `UserError` if the run in `workdir`, which is trained to its end, has another configuration.

  Nothing would be trained with that one, but the results would be called its own. Data that have moved are compared by
  `check_data`.

  fix: what lets the run continue, in words. root: as for `check_configuration`.
  """
  before, exclude = run_files.read_config(workdir), [*MUTABLE_FIELDS, 'data.name']
  if not (workdir / run_files.SUMMARY).exists():  # a shorter patience may be what ends it
    exclude.append('early_stopping')
  differing = config_lib.difference(before, config, exclude=exclude, root=root)
  if differing:
    raise UserError(
      f'workdir: {workdir} is trained to its end, and another configuration ({_first(differing)}) would change '
      f'nothing; {fix}, or choose another workdir'
    )


def _first(differing, most=4):
  return '; '.join([*differing[:most], *(['...'] if len(differing) > most else [])])


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
  before, now = run_files.read_classes(workdir), list(dataset.class_names)
  if before and before != now:
    raise UserError(
      f'config.data.name: the classes are not those of the run in {workdir}: {_listed(now)} now, '
      f'{_listed(before)} in its {run_files.CLASSES}; restore the class names, or choose another workdir'
    )
  path = workdir / run_files.RECORDS
  counts = dict(json_file.read(path, dict, fix=run_files.WRITE_AGAIN) if path.exists() else dataset.num_examples)
  digest = counts.pop('held_out', dataset.held_out_digest)
  if counts == dataset.num_examples and digest != dataset.held_out_digest:
    raise UserError(
      f'config.data.name: the images are not those of the run in {workdir}: others are held out to test on now, which '
      'the run was trained on; restore the images and their names, or choose another workdir'
    )
  if counts == dataset.num_examples or (allow_config_changes and not dataset.held_out):
    return
  found = f'{dataset.num_examples} now, {counts} in its {run_files.RECORDS}'
  if dataset.held_out:
    raise UserError(
      f'config.data.name: the number of images is not that of the run in {workdir}: {found}. Test images are held out '
      'of them, and another number holds out others, which the run was trained on; restore the images, or choose '
      'another workdir'
    )
  raise UserError(
    f'config.data.name: the number of images is not that of the run in {workdir}: {found}; restore the data, choose '
    'another workdir, or set config.allow_config_changes=True'
  )


def check_minival(directory, config):
  """Raises `UserError` if a run of `config.init_from` was trained on images that `config.data.minival` holds out.

  A larger slice contains a smaller one, so a run with a larger slice has seen none of these images. `directory` may be
  that of no run.
  """
  if not config.data.minival or not (epath.Path(directory) / run_files.CONFIG).exists():
    return
  there = run_files.read_config(directory, 'config.init_from').data
  if there.minival < config.data.minival and config_lib.same_path(there.name, config.data.name):
    raise UserError(
      f'config.init_from: the run in {directory} was trained with config.data.minival={there.minival}, on images that '
      f'this run holds out with {config.data.minival}; train it with the same config.data.minival'
    )


def check_held_out(field, directory, config, dataset):
  """Raises `UserError` if the run in `directory` was trained on images of this data set that are now its test images.

  Args:
    field: what names the directory, such as 'config.init_from'.
    directory: of a run, or anything else.
    config: of the run that begins.
    dataset: its `data.Dataset`.
  """
  path = epath.Path(directory) / run_files.RECORDS
  if not dataset.held_out_digest or not path.exists():
    return
  digest = json_file.read(path, dict, fix=run_files.WRITE_AGAIN).get('held_out', dataset.held_out_digest)
  if digest != dataset.held_out_digest and config_lib.same_path(
    run_files.read_config(directory, field).data.name, config.data.name
  ):
    raise UserError(
      f'{field}: the run in {directory} held out other images of {config.data.name} and was trained on some that this '
      'run tests on; give both the same config.data.test_fraction and images, or a test folder'
    )


def _listed(classes, most=6):
  shown = ', '.join(map(repr, classes[:most]))
  return f'[{shown}, ... {len(classes)} in all]' if len(classes) > most else f'[{shown}]'


def facts(config, dataset):
  """Returns `{name: text}` of what all processes of a run must have in common."""
  fields = {f'config.{name}': repr(value) for name, value in config_lib.flat(config).items() if name not in _OF_PROCESS}
  return fields | {
    'classes': repr(list(dataset.class_names)),
    'number of images': repr(dict(dataset.num_examples)),
    'held-out images': repr(dataset.held_out_digest),
    **{f'version of {name}': version for name, version in provenance.versions().items()},
  }
