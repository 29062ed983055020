"""The one exception that users are meant to read."""

_LONGEST = 1000  # characters of a line


class UserError(ValueError):
  """A mistake in the user's input: one line that names the field, its value, the file and the fix.

  `main` prints the line without a stack trace and exits with status 2; anything else that is raised is our bug. Values
  that a line quotes come from anywhere, so control characters become escapes, and a very long line loses its middle.
  """

  def __init__(self, line):
    line = printable(line)
    if len(line) > _LONGEST:
      line = f'{line[: _LONGEST // 2 - 5]} ... {line[-_LONGEST // 2 :]}'
    super().__init__(line)


def printable(text):
  """Returns `text` on one line: control characters, which could rewrite a terminal, become escapes like \\x1b."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)
