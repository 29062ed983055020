"""The parts of one training run, made of its configuration before anything is written."""

import os
import re
from typing import Any, NamedTuple

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import init_from
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT, bit_table
from cmtkd_jax.models.bit_policy import parse_rules
from cmtkd_jax.runs import compatibility, run_files
from cmtkd_jax.runtime import distributed
from cmtkd_jax.training import (
  averaging,
  build,
  early_stopping,
  freezing,
  loss_schedule,
  optimizer,
  schedule,
  teachers,
)


class Plan(NamedTuple):
  """The parts of one training run.

  config: its `ConfigDict`.
  sharding: of what every device holds whole.
  dataset: a `data.Dataset`.
  schedule: a `schedule.Schedule`.
  teachers: `teachers.Teacher`s, the trained networks that it learns from.
  method: the `methods.Method`.
  layers: `bit_table.LayerCost`s.
  learning_rate: function of the step.
  optimizer: the optax transformation.
  averaging: an `averaging.Averaging`.
  loss_at: the `loss_schedule.LossSchedule`.
  patience: steps without a better student after which training ends, 0 = never.
  """

  config: Any
  sharding: Any
  dataset: Any
  schedule: schedule.Schedule
  teachers: tuple
  method: Any
  layers: list
  learning_rate: Any
  optimizer: Any
  averaging: averaging.Averaging
  loss_at: Any
  patience: int

  @property
  def best_metric(self):
    """The metric whose best checkpoint is kept, '' without a held-out slice."""
    return f'minival/{STUDENT}/top1' if 'minival' in self.dataset.evals else ''

  @property
  def step_parts(self):
    """What both `step.initial_state` and `step.train_step` take, by name."""
    return dict(
      method=self.method,
      optimizer=self.optimizer,
      augment=self.dataset.augment,
      grad_accum_steps=self.config.grad_accum_steps,
      averaging=self.averaging,
    )


def create(config, workdir):
  """Returns the `Plan` of a configuration; a run that is in `workdir` already keeps its teachers.

  Raises:
    UserError: the configuration or the data cannot be used, or processes differ in them.
  """
  config_lib.check(config)
  mesh = build.make_mesh()
  dataset = build.load_data(config, mesh)
  distributed.check_agreement(compatibility.facts(config, dataset))
  trained = teachers.open_all(config, workdir)
  teachers.check_compatible(trained, config, dataset.class_names)
  if not run_files.has_checkpoint(workdir):  # or it has what it started from
    for field, directory in init_from.trained_runs(config):
      if os.path.abspath(directory) == os.path.abspath(workdir):
        raise UserError(f'config.{field}: {directory} is the directory of this run itself; name that of another run')
      compatibility.check_held_out(f'config.{field}', directory, config, dataset)
      if field == 'init_from':  # teachers are asked about images of this run alone
        compatibility.check_minival(directory, config)
  return Plan(
    config=config,
    sharding=build.replicated(mesh),
    dataset=dataset,
    teachers=trained,
    **of_data(config, trained, dataset.num_classes, dataset.input_shape, dataset.train.steps_per_epoch),
  )


def of_data(config, trained, num_classes, input_shape, steps_per_epoch):
  """Returns the parts of a `Plan` that need no image, by name.

  Args:
    config: the run's configuration.
    trained: `teachers.Teacher`s, which need not be trained yet.
    num_classes, input_shape, steps_per_epoch: of the data; input_shape is (H, W, C).

  Raises:
    UserError: a field cannot be honored.
  """
  sizes = dict(steps_per_epoch=steps_per_epoch, batch_size=config.batch_size)
  when = schedule.create(config, **sizes)
  method = build.method_of(config, num_classes, trained)
  if method.uses_minival and not config.data.minival:
    raise UserError('config.data.minival=0.0; this method measures on a held-out slice of train, set it to e.g. 0.1')
  return dict(
    schedule=when,
    method=method,
    layers=bit_table.collect(method, input_shape, parse_rules(config.bits.rules)),
    patience=early_stopping.patience(config, **sizes),
    **learning(config, method, input_shape, when.total, **sizes),
  )


def learning(config, method, input_shape, total_steps, **sizes):
  """Returns the parts of a `Plan` that say how the networks learn, by name.

  Args:
    config: the run's configuration.
    method: its `methods.Method`.
    input_shape: (H, W, C) of the images.
    total_steps: of the training.
    **sizes: as for `durations.parse`.

  Raises:
    UserError: a field that they come from cannot be honored by these networks.
  """
  _check_remat(config, method)
  learning_rate = optimizer.learning_rate(config, total_steps, **sizes)
  return dict(
    learning_rate=learning_rate,
    optimizer=freezing.add(optimizer.create(config, method, learning_rate), config, method, input_shape),
    averaging=averaging.create(config, total_steps, **sizes),
    loss_at=loss_schedule.create(config, method, total_steps, **sizes),
  )


def _check_remat(config, method):
  """Refuses a `config.remat` without effect: only stages that are trained are computed again, see `Network.stage`."""
  networks = method.weight_bits
  if config.remat and not any(re.fullmatch(config.remat, name) for name in networks):
    raise UserError(
      f'config.remat={config.remat!r} matches none of the networks whose stages are trained, '
      f"{', '.join(networks)}; name one of them, or '.*'"
    )
