"""Ctrl-C: the first one ends the command after the computation in flight, the second one at once."""

import contextlib
import os
import signal
import threading

EXIT_STATUS = 130  # 128 + SIGINT
_FIRST = b'\ninterrupted; waiting for the computation in flight, press Ctrl-C again to leave at once\n'
_writing, _silent = threading.Lock(), threading.Event()


def watch():
  """Starts to watch for Ctrl-C, until the process ends.

  Python's own handler runs in the main thread, and not before a compiled computation has returned to it. A thread that
  is woken by the signal itself can answer meanwhile.
  """
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  threading.Thread(target=_answer, args=(read_end,), daemon=True).start()


def _answer(read_end):
  interrupted = False
  while number := os.read(read_end, 1):
    if number[0] != signal.SIGINT:
      continue
    if interrupted:
      os._exit(EXIT_STATUS)  # a checkpoint is complete or invisible, whenever the process ends
    interrupted = True
    with _writing:
      if not _silent.is_set():
        with contextlib.suppress(OSError):  # the terminal may be closed
          os.write(2, _FIRST)


def silence():
  """Stops the thread from printing, so that the last line is the one that the command prints itself."""
  with _writing:
    _silent.set()
