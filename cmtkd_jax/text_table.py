"""Tables as text, for terminals."""


def lines(header, body, left=(0,)):
  """Returns the lines of a table of strings: columns two spaces apart, those in `left` aligned to the left."""
  rows = [header, *body]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(cell.ljust(width) if i in left else cell.rjust(width)
                    for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
