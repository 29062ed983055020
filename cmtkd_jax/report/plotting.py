"""The look of all figures: colors that color-blind readers can tell apart, panels, and PNG files."""

import io
import math
import re
import warnings

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from cmtkd_jax.report.page import DENSITY

# Okabe and Ito's palette, without its yellow, which is hard to see on white.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
GRAY, SOFT = '#5f6670', '#b9cfe4'
_DPI = 100 * DENSITY


def panel(width, height):
  """Returns (figure, axes) of one panel, of `width` x `height` hundreds of pixels on the page."""
  figure = Figure(figsize=(width, height), dpi=_DPI, layout='constrained')
  axes = figure.subplots()
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(True, color='#e4e6ea', linewidth=0.7)
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=8, colors=GRAY, labelcolor='black')
  return figure, axes


def line(panel, x, y, index, label, dashed=False, marked=True):
  """Draws the curve of series number `index`; where points are few with its marker (hollow if `dashed`)."""
  color = COLORS[index % len(COLORS)]
  marker = MARKERS[index % len(MARKERS)] if marked and len(x) <= 30 else None
  dashed = dashed or index >= len(COLORS)  # where the colors come round again
  panel.plot(
    x,
    y,
    '--' if dashed else '-',
    color=color,
    marker=marker,
    markersize=4,
    linewidth=1.4,
    markerfacecolor='white' if dashed else color,
    label=plain(label),
  )


def stairs(x, y):
  """Returns the points of a curve that falls in steps: each fall is upright, at the row after which it happened."""
  falls = np.flatnonzero(np.diff(y) < 0)
  return np.insert(x, falls + 1, x[falls]), np.insert(y, falls + 1, y[falls + 1])


def log_y_where_positive(panel, values):
  """Makes the y-axis logarithmic where all finite values are positive; zeros and negative ones keep it linear."""
  values = [value for value in values if math.isfinite(value)]
  if values and min(values) > 0:
    panel.set_yscale('log')
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,)))
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
    panel.yaxis.set_minor_formatter(ticker.NullFormatter())


def epochs(panel):
  """Makes the x-axis one of epochs, from 0 on."""
  panel.set_xlabel('epoch', fontsize=9)
  panel.set_xlim(left=0)
  panel.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=panel.get_xlim()[1] > 3))


def legend_below(panel):
  """Puts the legend under the x-axis, where it hides no curve."""
  labels = panel.get_legend_handles_labels()[1]
  columns = 3 if max(map(len, labels)) <= 9 else 2
  panel.legend(fontsize=7.5, frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=columns)


def plain(text):
  """Returns `text` so that matplotlib shows it as it is: a dollar sign would start a formula."""
  return str(text).replace('$', r'\$')


def file_name(*parts):
  """Returns the name of a PNG file, such as 'loss_terms_mutual.png'."""
  return f'{re.sub(r"[^A-Za-z0-9-]+", "_", "_".join(parts))[:120]}.png'


def png(figure):
  """Returns the figure as bytes of a PNG file."""
  file = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph .* missing')  # names in scripts that the font does not have
    figure.savefig(file, format='png', facecolor='white')
  return file.getvalue()
