"""The training metrics between two rows of the log."""

import contextlib
import time
from typing import NamedTuple

import jax
import numpy as np

from cmtkd_jax.errors import UserError

_AHEAD = 2  # steps that may wait for the device
_STEADY = 3  # steps after which a window has a speed of its own


class Summary(NamedTuple):
  """Of the steps of a window.

  means: `{metric: mean over the steps}`.
  images_per_second: of training.
  data_wait: share of the time that steps waited for data, 0..1.
  """

  means: dict
  images_per_second: float
  data_wait: float


class Window:
  """Collects the metrics of steps, on the device until `close`, so that no step waits for the one right before it."""

  def __init__(self, batch_size):
    self._batch_size = batch_size
    self._shown_speed = 0.0
    self.restart()

  def restart(self):
    """Starts a new window and its clock."""
    self._pending, self._begin, self._waited = [], time.monotonic(), 0.0

  def add(self, metrics):
    """Adds the metrics of a step; at most `_AHEAD` steps stay queued, so that the progress is accurate."""
    self._pending.append(metrics)
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD]['loss'])

  def images_per_second(self):
    """Returns the speed since the window began; after too few steps that of the one before, 0 where there is none."""
    if len(self._pending) >= _STEADY:
      self._shown_speed = self._speed()
    return self._shown_speed

  def _speed(self):
    return len(self._pending) * self._batch_size / (time.monotonic() - self._begin)

  def next_batch(self, batches):
    """Returns the next of `batches`; waiting for it counts as such."""
    begin = time.monotonic()
    batch = next(batches)
    self._waited += time.monotonic() - begin
    return batch

  @contextlib.contextmanager
  def paused(self):
    """The context of other work than steps, whose time does not count."""
    begin = time.monotonic()
    yield
    self._begin += time.monotonic() - begin

  def close(self, step, last_good):
    """Returns the `Summary` of the steps up to `step`, and begins a new window.

    Raises:
      UserError: a metric is not finite; the message names the checkpoint `last_good`, a step or None.
    """
    history = jax.device_get(self._pending)
    _check_finite(history, step, last_good)
    summary = Summary(
      {name: float(np.mean([metrics[name] for metrics in history])) for name in history[0]},
      self._speed(),
      self._waited / (time.monotonic() - self._begin),
    )
    self.restart()
    return summary


def _check_finite(history, step, last_good):
  """Raises `UserError` that names the first metric of the first step that is not finite."""
  for i, metrics in enumerate(history):
    # Loss terms before their sum, and that before what follows from it.
    for name in sorted(metrics, key=lambda name: (name.endswith('/gradient_norm'), name == 'loss')):
      if not np.isfinite(metrics[name]):
        kept = f'the last good checkpoint, of step {last_good}, is kept' if last_good else 'there is no checkpoint yet'
        fix = ' or set config.optimizer.grad_clip_norm'
        if name.endswith('/gradient_norm'):  # of a finite loss; clipping divides by it, and so has to begin earlier
          fix += (
            ' if the norm has grown over several steps; else look in a loss or quantizer of your own for a derivative '
            'that is not finite, such as of sqrt at 0'
          )
        raise UserError(
          f'step {step - len(history) + i + 1}: {name} is {metrics[name]}, the first value that is not '
          f'finite; {kept}; lower config.optimizer.learning_rate{fix}'
        )
