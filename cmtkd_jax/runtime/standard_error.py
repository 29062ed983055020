"""Standard error that may go away during a run, with a terminal or with the reader of a pipe."""

import io
import signal


class Forgiving(io.TextIOWrapper):
  """Writes where `stream` does, and drops what cannot be written: a lost terminal costs no run its last steps.

  A pipe whose reader has left, as of `2>&1 | head`, is like a closed terminal: it raises SIGHUP where that is handled.
  """

  def __init__(self, stream):
    buffer = open(stream.fileno(), 'wb', closefd=False)  # noqa: SIM115  as long as the process lasts
    super().__init__(buffer, stream.encoding, stream.errors, line_buffering=True)
    self._stream = stream  # would close the descriptor if it were collected

  def write(self, text):
    try:
      return super().write(text)
    except OSError as error:
      _hang_up(error)
      return len(text)

  def flush(self):
    try:
      super().flush()
    except OSError as error:
      _hang_up(error)


def _hang_up(error):
  if isinstance(error, BrokenPipeError) and callable(signal.getsignal(signal.SIGHUP)):  # no default, not ignored
    signal.raise_signal(signal.SIGHUP)
