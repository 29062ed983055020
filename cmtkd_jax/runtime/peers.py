"""What a process does when another process of its run ends or never joins: one line and `EXIT_STATUS`, no C++ stack.

JAX's coordination service ends a process by abort() when it loses another one. `install` replaces what abort() does.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

from cmtkd_jax.runtime import standard_error

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
LOST = 'error: another process of this run ended; start the same command again in all processes to resume'
_UNJOINED = (
  'error: the processes of this run did not find each other within --init_timeout; start the same command '
  'in all of them, and check --coordinator_address or the variables of the scheduler'
)
_GRACE_SECONDS = 2.0  # in which the other processes print their own error before the coordinator goes away

_line, _status = _UNJOINED, EXIT_STATUS  # what is printed and returned in place of abort()
_terminal = None  # file descriptor of the real standard error
_keep = []  # C calls it, so it must not be collected


def install():
  """Turns abort() into one line and `EXIT_STATUS`, and holds back the C++ stack that is printed before it.

  What C++ prints to standard output goes to standard error: the command's own output may be JSON.
  """
  global _terminal
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1)
  sys.stderr.flush()
  _terminal = os.dup(2)
  sys.stderr = standard_error.Forgiving(os.fdopen(os.dup(_terminal), 'w', errors='backslashreplace'))
  read_end, write_end = os.pipe()
  os.dup2(write_end, 1)
  os.dup2(write_end, 2)
  os.close(write_end)
  threading.Thread(target=_forward, args=(read_end,), daemon=True).start()
  callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)
  _keep.append(callback)
  ctypes.CDLL(None).signal(signal.SIGABRT, callback)


def joined():
  """From now on a lost process is one that had joined."""
  global _line
  _line = LOST


def installed():
  """Returns whether this is one of several processes."""
  return _terminal is not None


def leave(status):
  """Ends this process after its own error, which it has printed: a regular end would wait for the other processes."""
  global _line, _status
  _line, _status = '', status
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  sys.stderr.flush()
  time.sleep(_GRACE_SECONDS)
  os._exit(status)


def _on_abort(number):
  if _line:
    _write(f'{_line}\n'.encode())
  os._exit(_status)


def _forward(read_end):
  """Copies what C++ prints to the real standard error, up to a fatal error, which abort() follows.

  Lines of Gloo, which connects processes on CPUs, are left out: it prints one for each connection.
  """
  fatal = False
  with os.fdopen(read_end, 'rb') as lines:
    for line in lines:
      fatal = fatal or (line[:1] == b'F' and line[1:5].isdigit())  # the log format: F, then month and day
      if not fatal and not line.startswith(b'[Gloo]'):
        _write(line)


def _write(data):
  with contextlib.suppress(OSError):  # the terminal may be closed
    os.write(_terminal, data)
