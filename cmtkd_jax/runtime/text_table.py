"""Tables as text, for terminals, and names of users in them."""

import re

from cmtkd_jax.errors import printable


def markdown_cell(text):
  """Returns `text` as a cell of a Markdown table, in which it can neither end the cell nor be HTML."""
  return re.sub(r'([\\|`*_<>&\[\]])', r'\\\1', printable(text))


def markdown(header, body):
  """Returns the lines of a Markdown table of strings."""
  line = lambda cells: f'| {" | ".join(map(markdown_cell, cells))} |'
  return [line(header), f'|{" --- |" * len(header)}', *map(line, body)]


def lines(header, body, left=(0,)):
  """Returns the lines of a table of strings: columns two spaces apart, those in `left` aligned to the left."""
  rows = [list(map(printable, row)) for row in (header, *body)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) if i in left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
