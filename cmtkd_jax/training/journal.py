"""What a run logs and prints during training."""

import contextlib
import itertools
import sys
import time

import jax

from cmtkd_jax.models import STUDENT, bit_table
from cmtkd_jax.runs.metric_log import MetricLog
from cmtkd_jax.runtime import distributed
from cmtkd_jax.runtime.profiler import Profile
from cmtkd_jax.runtime.progress import Progress, format_duration
from cmtkd_jax.training import optimizer

_SLOW = 0.1  # a larger share of the time spent waiting for data is printed
_LONG = 3600  # seconds; longer runs on a CPU get a hint how to shorten them
_KNOWN_AFTER = 3  # steps from which the remaining time is estimated
# Compilation grows with the layers of all networks: 0.47 s for each of ResNet8 on two CPU cores, 0.3 to 0.5 s for each
# of ResNet18 on an H200.
_SECONDS_A_LAYER = 0.45


def announce(text):
  """Prints a line, in the first process, before there is a `Journal`."""
  if distributed.is_first():
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_journal(plan, run, start):
  """Opens the `Journal` of a run in the directory `run`, which trains from step `start` on, and closes it again."""
  with (
    MetricLog(run, resume_step=start, tensorboard=plan.config.tensorboard) as log,
    Progress(
      plan.schedule.total,
      start,
      steps_per_epoch=plan.dataset.train.steps_per_epoch,
      enabled=distributed.is_first(),
      images_per_step=plan.config.batch_size,
    ) as progress,
    Profile(run, start, plan.schedule.profiled, progress.note) as profile,
  ):
    table = bit_table.render(plan.layers)
    progress.note(table)
    if not start:
      log.write_text(start, 'bits', table)
    yield Journal(plan, start, log, progress, profile)


class Journal:
  """Metrics, progress line and profile of a `plan.Plan` from step `start` on; made by `open_journal`.

  profile: the `Profile`, whose `step` surrounds every step.
  note: prints a line of text above the progress line.
  meanwhile: shows how far other work than steps is, in place of the progress line.
  """

  def __init__(self, plan, start, log, progress, profile):
    self._plan, self._start, self._log, self._progress = plan, start, log, progress
    self.profile, self.note, self.meanwhile = profile, progress.note, progress.meanwhile
    self._reported_broken = 0
    self._shown = {}  # the latest metrics, for the progress line

  @contextlib.contextmanager
  def compiling(self):
    """Says how long the compilation inside may take, and how long it took."""
    about = format_duration(_SECONDS_A_LAYER * len(self._plan.layers))
    self.note(f'compiling the train step, about {about} on an idle machine')
    begin = time.monotonic()
    yield
    self.note(f'compiled the train step in {format_duration(time.monotonic() - begin)}')

  def trained(self, step, window, state):
    """Writes and prints the `window.Summary` of the steps up to `step`."""
    plan, broken = self._plan, self._plan.dataset.train.broken()
    summary = plan.method.summary(state.params)
    self._log.write(
      step,
      {f'train/{name}': value for name, value in window.means.items()}
      | {
        'train/epoch': step / plan.dataset.train.steps_per_epoch,
        'perf/images_per_second': window.images_per_second,
        'perf/data_wait': window.data_wait,
        **({'train/corrupt_images': len(broken)} if broken else {}),
        **optimizer.rates(plan.config, plan.method, jax.jit(plan.learning_rate)(step - 1)),
        **plan.loss_at.values(step - 1),
        **dict(zip(summary, jax.device_get([*summary.values()]), strict=True)),  # of a dict it would sort the names
      },
    )
    if len(broken) > 2 * self._reported_broken:  # Not at every row, where there are many.
      self._reported_broken = len(broken)
      self.note(_describe_broken(broken))
    accuracies = {
      f'train {name.removesuffix("/top1")}': f'{window.means[name]:.1f} %'
      for name in sorted(window.means, key=lambda name: not name.startswith(STUDENT))
      if name.endswith('/top1')
    }
    slow = {'waits for data': f'{100 * window.data_wait:.0f} %'} if window.data_wait > _SLOW else {}
    self._shown = {'loss': window.means['loss'], **accuracies, **slow}
    self._progress.update(step, window.images_per_second, **self._shown)

  def stepped(self, step, images_per_second):
    """Shows a step between two rows of metrics."""
    self._progress.update(step, images_per_second, **self._shown)
    if step - self._start == _KNOWN_AFTER and jax.default_backend() == 'cpu' and self._progress.eta() > _LONG:
      self.note(
        f'about {format_duration(self._progress.eta())} on this CPU; config.duration shortens it, '
        'a smaller config.model.width or config.data.image_size makes a step faster'
      )

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
