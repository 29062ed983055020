"""The trained networks of a run: with its data for evaluation, without them for reports and exports."""

import logging
from typing import Any, NamedTuple

import jax

from cmtkd_jax import config as config_lib
from cmtkd_jax import data
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, compatibility, run_files
from cmtkd_jax.runtime import distributed, local_file
from cmtkd_jax.training import build, teachers


class Trained(NamedTuple):
  """The networks of a checkpoint, on the host.

  method: the `methods.Method` that was trained.
  variables: of all its networks.
  meta: what the checkpoint says about itself, see `provenance.meta`.
  step: of the checkpoint.
  """

  method: Any
  variables: dict
  meta: dict
  step: int


class Opened(NamedTuple):
  """The networks of a checkpoint on every device, and the run's data.

  method, variables, step: as of `Trained`.
  dataset: a `data.Dataset`.
  sharding: of what every device holds.
  """

  method: Any
  variables: dict
  dataset: Any
  sharding: Any
  step: int


def load_trained(run, step=None):
  """Returns the `Trained` networks of a `run_reader.Run` at `step`, by default the newest checkpoint; needs no data.

  Raises:
    UserError: there is no checkpoint that can be read.
  """
  method = create_method(run)
  return Trained(method, *_load(run.directory, method, data.input_shape(run.config.data), step))


def create_method(run):
  """Returns the `methods.Method` of a `run_reader.Run`."""
  if not run.classes:
    raise UserError(f'{run.directory}/{run_files.CLASSES} is missing or names no classes; {run_files.WRITE_AGAIN}')
  return build.method_of(run.config, len(run.classes), teachers.open_all(run.config, run.directory))


def open_run(workdir, config=None, step=None):
  """Returns the `Opened` checkpoint of a run.

  Args:
    workdir: directory of the run.
    config: a `ConfigDict` whose `data` and `eval_batch_size` replace the run's, of images of the same size, mean and
      deviation; None for the run's own.
    step: which checkpoint; None for the newest.

  Raises:
    UserError: there is no such run or checkpoint, it is damaged, or `config` or the data cannot be used.
  """
  workdir = local_file.expanded(workdir)
  run_config = run_files.read_config(workdir)
  if config is not None:
    config_lib.check(config)
    _check_same_images(config, run_config, workdir)
    run_config.data, run_config.eval_batch_size = config.data, config.eval_batch_size
  mesh = build.make_mesh()
  run_config.batch_size = mesh.size  # fits any data and devices; only export reads training images, and few
  try:
    dataset = build.load_data(run_config, mesh)
  except UserError as e:
    if config is not None:
      raise
    kind, _, path = run_config.data.name.partition(':')
    is_relative = kind in ('folder', 'npy') and not path.startswith(('/', '~')) and '://' not in path
    where = f'{path} is relative to where the run was started; ' if is_relative else ''
    raise UserError(f'{e}; {where}if the images have moved, add --config=FILE with their new place') from e
  distributed.check_agreement(compatibility.facts(run_config, dataset))
  compatibility.check_data(workdir, dataset, allow_config_changes=config is not None)
  method = build.method_of(run_config, dataset.num_classes, teachers.open_all(run_config, workdir))
  variables, _, step = _load(workdir, method, dataset.input_shape, step)
  replicated = build.replicated(mesh)
  return Opened(method, jax.device_put(variables, replicated), dataset, replicated, step)


def _check_same_images(config, run_config, workdir):
  """Raises `UserError` where `config` gives the networks other numbers than those that they were trained on.

  The same where it calls images held out that they were trained on. Warns of another `resize`.
  """
  here, there = config_lib.flat(config), config_lib.flat(run_config)
  for field in teachers.SHARED:
    if here[field] != there[field]:
      raise UserError(
        f'config.{field}={here[field]!r}: the run in {workdir} was trained with {there[field]!r}; make them equal, or '
        'leave --config out'
      )
  compatibility.check_held_back(run_config, config, workdir, 'leave --config out')
  if here['data.resize'] != there['data.resize'] and distributed.is_first():
    logging.getLogger(__name__).warning(
      'images are resized with config.data.resize=%s; the run in %s had %s, so its accuracy may differ',
      config.data.resize,
      workdir,
      run_config.data.resize,
    )


def _load(workdir, method, input_shape, step):
  """(variables, meta, step) of a checkpoint that fits `method`."""
  variables, meta, step = checkpoint.load_variables(f'{workdir}/{run_files.CHECKPOINTS}', step)
  build.check_checkpoint_fits(method, input_shape, variables, f'workdir: {workdir}')
  return variables, meta, step
