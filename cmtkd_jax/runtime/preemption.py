"""Being asked to stop: SIGTERM or SIGHUP ends a run after its current step, with a checkpoint."""

import contextlib
import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 143  # 128 + SIGTERM, as of a process that the signal ended
# Processes agree on one of these numbers, so they rise through all runs of a table: each counts its steps from 1.
_CALLS = itertools.count(1)


class Preempted(Exception):  # noqa: N818  no error
  """The run was asked to stop, and has saved itself."""


def end_at_once():
  """Lets SIGTERM end this process, which JAX catches where there are several."""
  if jax.process_count() > 1:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Preemption(contextlib.AbstractContextManager):
  """Catches SIGTERM and SIGHUP while it is entered. Several processes agree on the step after which all of them stop.

  A hangup that the user has switched off, as `nohup` does, stays off.
  """

  def __enter__(self):
    self._asked, self._before = False, {}
    if threading.current_thread() is not threading.main_thread():
      return self
    if jax.process_count() == 1:
      self._catch(signal.SIGTERM, self._ask)
      self._catch(signal.SIGHUP, self._ask)
    else:  # JAX itself catches SIGTERM, and passes it on to the other processes
      self._catch(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _catch(self, number, handler):
    if signal.getsignal(number) != signal.SIG_IGN:
      self._before[number] = signal.signal(number, handler)

  def _ask(self, number, frame):
    self._asked = True

  def requested(self):
    """Returns whether the run should end now; all processes call it once a step."""
    if jax.process_count() == 1:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(next(_CALLS))
