"""Standard streams: lines that are flushed, errors of one line, and streams that the caller has closed."""

import contextlib
import logging
import os
import sys

from cmtkd_jax.errors import UserError


class NotWrittenError(UserError):
  """Standard output cannot be written, as on a full disk."""


def open_closed():
  """Replaces streams that the caller has closed by the null device, since libraries write to them without a check."""
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is not None:
      continue
    null = os.open(os.devnull, os.O_WRONLY)
    try:
      os.fstat(number)  # something else may have taken the number
    except OSError:
      os.dup2(null, number)
    setattr(sys, name, os.fdopen(null, 'w'))


def show_warnings():
  """Prints what the package logs as `warning: ...`, in the form of errors and notes."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('warning: %(message)s'))
  logger = logging.getLogger('cmtkd_jax')
  logger.addHandler(handler)
  logger.propagate = False


def write(text):
  """Prints `text` and a line end; what the encoding lacks, such as a file name that is not UTF-8, becomes an escape.

  Raises:
    NotWrittenError: it cannot be written.
    BrokenPipeError: nobody reads it any more.
  """
  encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'  # there may be no standard output
  try:
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
  except BrokenPipeError:
    raise
  except OSError as e:
    raise NotWrittenError(
      f'standard output cannot be written ({e.strerror or e}); make room, or send it to another place'
    ) from None


def close():
  """Closes standard output without what could not be written, which Python would try to write again at exit."""
  with contextlib.suppress(OSError):
    sys.stdout.close()
