"""When a run logs, evaluates, saves and ends."""

from typing import NamedTuple

from cmtkd_jax.config import durations
from cmtkd_jax.errors import UserError


class Schedule(NamedTuple):
  """All in steps; 0 is never.

  total: the last step.
  log_every, eval_every, checkpoint_every: between two rows of metrics, evaluations, checkpoints.
  profiled: how many steps the profiler records.
  """

  total: int
  log_every: int = 0
  eval_every: int = 0
  checkpoint_every: int = 0
  profiled: int = 0

  def evaluates(self, step):
    """Whether the run is evaluated after `step`."""
    return step == self.total or _is_due(step, self.eval_every)

  def saves(self, step):
    """Whether a checkpoint is saved after `step`: also with every evaluation."""
    return self.evaluates(step) or _is_due(step, self.checkpoint_every)

  def logs(self, step):
    """Whether a row of training metrics is written after `step`: also with every checkpoint."""
    return self.saves(step) or _is_due(step, self.log_every)


def _is_due(step, every):
  return bool(every) and step % every == 0


def create(config, **sizes):
  """Returns the `Schedule` of a configuration; sizes: as for `durations.parse`.

  Raises:
    UserError: a field is not a duration, or the run has no step.
  """
  fields = ('duration', 'log_every', 'eval_every', 'checkpoint_every', 'profile')
  schedule = Schedule(*(durations.parse_one(config[field], f'config.{field}', **sizes) for field in fields))
  if not schedule.total:
    raise UserError(f"config.duration={config.duration!r} has no steps; give e.g. '120 epochs' or '3000 steps'")
  return schedule
