"""What a training run writes and prints while it lasts."""

import contextlib
import itertools

import jax

from cmtkd_jax.models import bit_table
from cmtkd_jax.runs.metric_log import MetricLog
from cmtkd_jax.runtime import distributed
from cmtkd_jax.runtime.profiler import Profile
from cmtkd_jax.runtime.progress import Progress
from cmtkd_jax.training import optimizer

_SLOW = 0.1  # a larger share of the time spent waiting for data is printed


class Journal(contextlib.ExitStack):
  """Metrics, progress line and profile of the `plan.Plan` in the directory `run`, from step `start` on.

  profile: the `Profile`, whose `step` surrounds every step.
  note: prints a line of text above the progress line.
  """

  def __init__(self, plan, run, start):
    super().__init__()
    self._plan, self._run, self._start = plan, run, start
    self._reported_broken = 0

  def __enter__(self):
    plan, start = self._plan, self._start
    with contextlib.ExitStack() as stack:  # closed again if one of these cannot be opened
      self._log = stack.enter_context(MetricLog(self._run, resume_step=start, tensorboard=plan.config.tensorboard))
      self._progress = stack.enter_context(
        Progress(
          plan.schedule.total, start, steps_per_epoch=plan.dataset.train.steps_per_epoch, enabled=distributed.is_first()
        )
      )
      self.note, self.compiled = self._progress.note, self._progress.compiled
      self.profile = stack.enter_context(Profile(self._run, start, plan.schedule.profiled, self.note))
      self.enter_context(stack.pop_all())
    self.note(plan.dataset.summary)
    self.note(bit_table.render(plan.layers))
    if not start:
      self._log.write_text(start, 'bits', bit_table.render(plan.layers))
    return self

  def trained(self, step, window, state):
    """Writes and prints the `window.Summary` of the steps up to `step`."""
    plan, broken = self._plan, self._plan.dataset.train.broken
    self._log.write(
      step,
      {f'train/{name}': value for name, value in window.means.items()}
      | {
        'train/epoch': step / plan.dataset.train.steps_per_epoch,
        'perf/images_per_second': window.images_per_second,
        'perf/data_wait': window.data_wait,
        **({'train/corrupt_images': len(broken)} if broken else {}),
        **optimizer.rates(plan.config, plan.method, jax.jit(plan.learning_rate)(step - 1)),
        **jax.device_get(plan.method.summary(state.params)),
      },
    )
    if len(broken) > 2 * self._reported_broken:  # Not at every row, where there are many.
      self._reported_broken = len(broken)
      self.note(_describe_broken(broken))
    accuracies = {
      f'train {name.removesuffix("/top1")}': f'{value:.1f} %'
      for name, value in window.means.items()
      if name.endswith('/top1')
    }
    slow = {'waits for data': f'{100 * window.data_wait:.0f} %'} if window.data_wait > _SLOW else {}
    self._progress.update(step, window.images_per_second, loss=window.means['loss'], **accuracies, **slow)

  def evaluated(self, step, results):
    """Writes and prints the results of an evaluation."""
    self._log.write(step, results)
    self.note(
      f'step {step}: '
      + '  '.join(f'{name.removesuffix("/top1")} {value:.2f} %' for name, value in results.items() if 'top1' in name)
    )


def _describe_broken(images):
  """One line about training images that were replaced, {record: name}."""
  first = ', '.join(itertools.islice(images.values(), 3))
  return f'training images that cannot be decoded and are replaced by the next ones, so far {len(images)}: {first}'
