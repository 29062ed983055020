"""Labels beside the points of a figure, moved up or down so that they do not cover each other."""

import textwrap

from matplotlib import patheffects
from matplotlib.transforms import Bbox

from cmtkd_jax.report import plotting

_SIZE = 8  # of the font, in points
_STEP = 3  # points by which a label is moved
_ASIDE = 8  # points between a marker and its label
_WIDTH = 28  # characters of a line


def place(panel, points):
  """Writes the label of each (x, y, label) beside its point: to the right, or to the left where there is no room."""
  to_pixels = panel.figure.dpi / 72
  frame = panel.get_window_extent()
  pixels = [panel.transData.transform((x, y)) for x, y, _ in points]
  taken = [Bbox.from_bounds(x - 5 * to_pixels, y - 5 * to_pixels, 10 * to_pixels, 10 * to_pixels) for x, y in pixels]
  for (x, y, label), (at, _) in sorted(zip(points, pixels), key=lambda item: -item[0][1]):
    text = panel.annotate(
      plotting.plain(textwrap.fill(label, _WIDTH)),
      (x, y),
      (_ASIDE, 0),
      textcoords='offset points',
      va='center',
      fontsize=_SIZE,
      annotation_clip=False,
      zorder=4,
      path_effects=[patheffects.withStroke(linewidth=2, foreground='white')],  # readable on lines
    )
    if text.get_window_extent().x1 > frame.x1 and frame.x1 - at < at - frame.x0:
      text.set(ha='right', position=(-_ASIDE, 0))
    text.set_in_layout(False)
    box = text.get_window_extent()
    offset = _free(box, taken, frame, to_pixels)
    text.set_position((text.get_position()[0], offset))
    taken.append(box.translated(0, offset * to_pixels))
    if abs(offset) > 2 * _STEP:  # a thin line tells whose label it is
      panel.annotate(
        '',
        (x, y),
        (text.get_position()[0], offset),
        textcoords='offset points',
        arrowprops={'arrowstyle': '-', 'color': plotting.GRAY, 'linewidth': 0.6, 'shrinkA': 0, 'shrinkB': 0},
        zorder=2,
      ).set_in_layout(False)


def _free(box, taken, frame, to_pixels):
  """The smallest move, in points, that takes `box` off all `taken` ones within the frame; 0 where there is none."""
  moves = [sign * k * _STEP for k in range(int(frame.height / to_pixels / _STEP)) for sign in ((1, -1) if k else (1,))]
  for move in moves:
    moved = box.translated(0, move * to_pixels)
    if moved.y0 >= frame.y0 and moved.y1 <= frame.y1 + 6 * to_pixels and not moved.count_overlaps(taken):
      return move
  return 0
