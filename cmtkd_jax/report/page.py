"""The page itself: heading, results, sections, as one HTML file without anything from the network."""

import base64
import html
import itertools
import re
import string
import struct
import types
from collections.abc import Mapping
from typing import NamedTuple

DENSITY = 1.6  # pixels of an image for each of the page, so that text is sharp on dense screens
_LONG = 30  # characters; a column of longer texts keeps some width on a narrow screen
_NUMBER = re.compile(r'[-+<]?\s?[\d,.]+(e[-+]?\d+)?(\s(%|KiB|of \d+))?')
_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c1f24;
       background: #fff; max-width: 66rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-top: 1px solid #d8dce2; padding-top: 1rem; }
p { max-width: 52rem; margin: .4rem 0 1rem; overflow-wrap: break-word; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0; max-width: 100%; }
.panels { display: flex; flex-wrap: wrap; gap: .8rem 1rem; align-items: flex-start; margin-bottom: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0 1rem; }
th, td { text-align: left; padding: .22rem 1.2rem .22rem 0; border-bottom: 1px solid #e4e6ea; vertical-align: top;
         white-space: nowrap; }
th { font-weight: 600; }
td.long { min-width: 14rem; white-space: normal; }
.n { text-align: right; }
td.n { font-variant-numeric: tabular-nums; }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere; }
summary { cursor: pointer; color: #0072B2; }
.headline { font-size: 1.1rem; }
.unfinished { background: #fff3d6; border-left: 4px solid #E69F00; padding: .5rem .8rem; max-width: 51rem; }
@media (max-width: 30rem) { th, td { padding-right: .7rem; } }
nav a { display: inline-block; margin-right: 1rem; color: #0072B2; }
</style>
</head>
<body>
<h1>$title</h1>
$lead
<nav>$links</nav>
$body
</body>
</html>
""")


class Section(NamedTuple):
  """One part of the page.

  title: plain text.
  text: the paragraph that explains it, HTML.
  images: `{file name: bytes of a PNG}`.
  table: HTML, '' for none.
  """

  title: str
  text: str
  images: Mapping[str, bytes] = types.MappingProxyType({})
  table: str = ''


def escape(value):
  """Returns `value` as text in HTML."""
  return html.escape(str(value))


def table(header, rows, summary=''):
  """Returns an HTML table of plain values, columns of numbers to the right; folded under a line `summary`, if given.

  Without a `header`, rows are (name, value) and stay to the left.
  """
  starts = [_cell_class(column) for _, *column in zip(header, *rows)] if header else itertools.repeat('')

  def cells(tag, values):
    return ''.join(f'<{tag}{start}>{escape(value)}</{tag}>' for start, value in zip(starts, values))

  lines = [f'<tr>{cells("td", row)}</tr>' for row in rows]
  head = f'<thead><tr>{cells("th", header)}</tr></thead>' if header else ''
  kind = '' if header else ' class="facts"'
  text = f'<div class="wide"><table{kind}>{head}<tbody>{"".join(lines)}</tbody></table></div>'
  return f'<details><summary>{escape(summary)}</summary>{text}</details>' if summary else text


def _cell_class(values):
  """The class attribute of a column's cells."""
  texts = [str(value) for value in values if str(value)]
  if texts and all(map(_NUMBER.fullmatch, texts)):
    return ' class="n"'
  return ' class="long"' if max(map(len, texts), default=0) > _LONG else ''


def render(title, lead, sections):
  """Returns the page with these `Section`s; `lead` is HTML right below the title."""
  anchors = [section.title.lower().replace(' ', '-') for section in sections]
  body = ''.join(
    f'<section id="{anchor}"><h2>{escape(section.title)}</h2><p>{section.text}</p>{_images(section)}'
    f'{section.table}</section>\n'
    for anchor, section in zip(anchors, sections)
  )
  links = ' '.join(f'<a href="#{anchor}">{escape(section.title)}</a>' for anchor, section in zip(anchors, sections))
  unbroken = lambda text: text.replace(' %', '\N{NO-BREAK SPACE}%')
  return _PAGE.substitute(title=escape(title), lead=unbroken(lead), links=links, body=unbroken(body))


def _images(section):
  images = ''.join(
    f'<figure><img alt="{escape(section.title)}: {escape(name.removesuffix(".png"))}" width="{_width(image)}" '
    f'src="data:image/png;base64,{base64.b64encode(image).decode()}"></figure>'
    for name, image in section.images.items()
  )
  return f'<div class="panels">{images}</div>' if images else ''


def _width(image):
  """Width of a PNG on the page."""
  return round(struct.unpack('>I', image[16:20])[0] / DENSITY)
