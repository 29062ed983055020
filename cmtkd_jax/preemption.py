"""Being asked to stop: SIGTERM of a scheduler, or of a user, ends a run behind its current step, with a checkpoint."""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 143  # 128 + SIGTERM, as of a process that the signal ended


class Stopped(Exception):
  """The run was asked to stop, and has saved itself."""


class Preemption(contextlib.AbstractContextManager):
  """Catches SIGTERM while it is entered. Several processes agree on the step behind which all of them stop."""

  def __enter__(self):
    self._asked, self._before = False, None
    # With several processes JAX itself catches the signal, and passes it on to the others.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *unused):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _ask(self, number, frame):
    self._asked = True

  def requested(self, step):
    """Whether the run shall end behind `step`; to be called once a step."""
    return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
