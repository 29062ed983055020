"""The one exception that users are meant to read."""

_LONGEST = 1000  # characters of a line


class UserError(ValueError):
  """A mistake in the user's input: one line that names the field, its value, the file and the fix.

  `main` prints the line without a stack trace and exits with status 2. Any other exception is a bug of this package.
  The line may quote any value, so control characters are escaped, and the middle of a very long line is left out.
  """

  def __init__(self, line):
    line = printable(line)
    if len(line) > _LONGEST:
      line = f'{line[: _LONGEST // 2 - 5]} ... {line[-_LONGEST // 2 :]}'
    super().__init__(line)


def one_line(text, most=None):
  """Returns `text`, such as an exception, on one line, at most its first `most` characters."""
  return ' '.join(str(text).split())[:most]


def printable(text):
  """Returns `text` on one line: control characters, which could rewrite a terminal, become escapes like \\x1b."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)
