"""Silences libraries that print between our own lines: `install` for a whole process, `silent_stderr` for a block."""

import contextlib
import logging
import os
import sys
import warnings


def _is_worth_printing(record):
  """Whether to print a log record. Orbax logs a dozen for each save; it and clu also log errors that they raise."""
  if 'Error in producer thread' in str(record.msg):  # clu's
    return False
  return 'orbax' not in record.pathname or (
    record.levelno > logging.INFO
    and not record.exc_info
    and not any(words in str(record.msg) for words in ('tracked_metric', 'Waiting for previous save'))
  )


def install():
  """Installs filters for Orbax, TensorStore, clu and Pillow."""
  # A damaged image ends the run or is counted, so Pillow need not warn of it.
  warnings.filterwarnings('ignore', module=r'PIL\.')
  logging.getLogger('absl').addFilter(_is_worth_printing)
  # A save that fails has failed for every array; the first of these errors is reported, and nobody asks for the others.
  logging.getLogger('asyncio').addFilter(lambda record: 'never retrieved' not in record.getMessage())
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
  before = sys.unraisablehook

  def hook(raised):
    """Silent about threads of TensorStore that have an answer for a save or a read that has failed."""
    if not (raised.exc_type is RuntimeError and str(raised.exc_value) == 'Event loop is closed'):
      before(raised)

  sys.unraisablehook = hook


@contextlib.contextmanager
def silent_stderr():
  """Silences C++ libraries: TensorFlow and libtpu print on file descriptor 2 whatever their log level."""
  sys.stderr.flush()
  saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(null)
