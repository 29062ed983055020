"""Early stopping: training ends when the student has not improved on minival for some time."""

from cmtkd_jax.config import durations
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import metric_log


class EarlyStopping:
  """Watches a metric; higher is better.

  Args:
    patience: steps without a new best value after which training ends; 0 = never.
    metric: name of the metric in the results of an evaluation.
    total: the last step of training, which ends there anyway.
  """

  def __init__(self, patience, metric, total):
    self._patience, self._metric, self._total = patience, metric, total
    self._best, self._best_step, self._since, self._last_step = float('-inf'), 0, 0, 0

  def add(self, step, results):
    """Takes the results of the evaluation of `step` into account."""
    if self._metric in results:
      self._last_step = step
      if results[self._metric] > self._best:
        self._since = step
      if results[self._metric] >= self._best:  # of equal networks, checkpoints keep the last
        self._best, self._best_step = results[self._metric], step

  @property
  def is_due(self):
    """Whether training ends early, after the last evaluation."""
    return bool(self._patience) and self._last_step < self._total and self._last_step - self._since >= self._patience

  def describe(self):
    """Returns the reason in words, '' where training does not end early."""
    if not self.is_due:
      return ''
    return (
      f'stopped early at step {self._last_step}: {self._metric} has not risen above {self._best:.2f} % since '
      f'step {self._since}; --step={self._best_step} evaluates and exports the best network'
    )


def create(plan, run, step):
  """Returns the `EarlyStopping` of a run in directory `run`, which has seen its evaluations up to `step`."""
  stopping = EarlyStopping(plan.patience, plan.best_metric, plan.schedule.total)
  for row in metric_log.read(run) if plan.patience and step else ():  # a new run may have no file yet
    if row['step'] <= step:
      stopping.add(row['step'], row)
  return stopping


def patience(config, **sizes):
  """Returns `config.early_stopping` in steps; sizes: as for `durations.parse`.

  Raises:
    UserError: it is not a duration, or the run has no minival or no evaluations.
  """
  steps = durations.parse_one(config.early_stopping, 'config.early_stopping', **sizes)
  if steps and not config.data.minival:
    raise UserError(
      f'config.early_stopping={config.early_stopping!r} chooses on a held-out slice of train, but '
      'config.data.minival=0.0; set it to e.g. 0.1'
    )
  if steps and not durations.parse_one(config.eval_every, 'config.eval_every', **sizes):
    raise UserError(
      f'config.early_stopping={config.early_stopping!r} decides at evaluations, but '
      f"config.eval_every={config.eval_every!r}; set it to e.g. '1 epochs'"
    )
  return steps
