"""Leaves out what libraries print next to our own lines: `install` for a whole process, `silent_stderr` for a while."""

import contextlib
import logging
import os
import sys
import warnings


def _tells(row):
  """Whether a row of orbax's log says what we do not: a dozen rows a save do not, nor do errors that it raises, too."""
  return 'orbax' not in row.pathname or (
    row.levelno > logging.INFO
    and not row.exc_info
    and not any(words in str(row.msg) for words in ('tracked_metric', 'Waiting for previous save'))
  )


def install():
  """Installs filters for Orbax, TensorStore and Pillow."""
  # What Pillow says of a damaged file ends a run or is counted by itself.
  warnings.filterwarnings('ignore', module=r'PIL\.')
  logging.getLogger('absl').addFilter(_tells)
  # A save that fails has failed for every array; the first of these errors is reported, and nobody asks for the others.
  logging.getLogger('asyncio').addFilter(lambda row: 'never retrieved' not in row.getMessage())
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
