"""Accuracy against model size: what each network gives for the bits it takes."""

import math

from matplotlib import ticker

from cmtkd_jax.models import STUDENT
from cmtkd_jax.report import comparison, labels, model_size, plotting
from cmtkd_jax.report.page import Section, escape, table
from cmtkd_jax.runs.run_reader import display_name

_MIN_FRONT = 3  # with fewer points a line of the best ones says nothing
_MAX_TICKS = 6


def section(run, others=()):
  """Top-1 on test against the size of the weights, of this run and of `others`."""
  title = 'Accuracy against model size'
  runs = [run, *others]
  names = comparison.names(runs)
  found = [model_size.points(r, name) for r, name in zip(runs, names)]
  if not any(found):
    return Section(title, 'There is no evaluation in metrics.jsonl yet.')
  silent = [name for name, group in zip(names, found) if not group]
  unknown = [name for name, group in zip(names, found) if not all(map(_is_known, group))]
  unfinished = [name for name, group, r in zip(names, found, runs) if group and not r.summary]
  found = [list(filter(_is_known, group)) for group in found]
  everything = [point for group in found for point in group]
  if not everything:
    return Section(
      title, 'This part is missing, because a size (bits.json) or an accuracy (metrics.jsonl) is not known.'
    )
  data = sorted({r.config.data.name for r in runs})
  best = model_size.front(everything)
  if len(everything) < _MIN_FRONT or len(best) < 2:
    best = []
  text = (
    'Each point is one network after the last evaluation; to the left is smaller, up is better. The size is '
    'that of the weights of all convolutions and dense layers: for each layer its number of parameters times '
    'its bits (bits.json), summed; a full-precision weight takes 32. Normalizations and quantizer steps, which '
    'are few, are not counted. A combined teacher counts with all of its teachers and their common classifier, '
    'since it needs them all. Filled: the network that a run is for.'
    + (' The dashed line joins the networks that no other beats in size and accuracy (the Pareto front).' * bool(best))
    + (f' Not evaluated yet: {escape(", ".join(silent))}.' if silent else '')
    + (f' Not finished: {escape(", ".join(unfinished))}.' if unfinished else '')
    + (f' Without all networks, because a size or an accuracy is not known: {escape(", ".join(unknown))}.')
    * bool(unknown)
    + (f' Beware: these runs are on different data ({escape(", ".join(data))}).' if len(data) > 1 else '')
  )
  header = ['run', 'network', 'test top-1', 'size', 'bits in all']
  rows = [
    [point.run, display_name(point.network), f'{point.top1:.2f} %', f'{point.kib:,.1f} KiB', f'{point.bits:,}']
    + ['yes' if point in best else ''] * bool(best)
    for point in sorted(everything, key=lambda point: point.bits)
  ]
  header += ['on the front'] * bool(best)
  return Section(title, text, {'accuracy_size.png': plotting.png(draw(found, best))}, table(header, rows))


def _is_known(point):
  return point.bits and math.isfinite(point.top1)


def draw(found, best=()):
  """Returns the figure of the `Point`s of each run, with a line through the points `best`."""
  everything = [point for group in found for point in group]
  figure, panel = plotting.panel(5.0, 3.6 + 0.12 * max(0, len(everything) - 10))
  panel.plot([p.kib for p in best], [p.top1 for p in best], '--', color=plotting.GRAY, linewidth=1, zorder=1)
  for i, group in enumerate(found):
    color, marker = plotting.COLORS[i % len(plotting.COLORS)], plotting.MARKERS[i % len(plotting.MARKERS)]
    for point in group:
      fill = color if point.network == STUDENT else 'white'
      panel.plot(
        *([point.kib], [point.top1], marker),
        color=color,
        markersize=8,
        markeredgewidth=1.6,
        markerfacecolor=fill,
        zorder=3,
        clip_on=False,  # whole markers also where one lies on an axis
      )
  _size_axis(panel, [point.kib for point in everything])
  low, high = min(point.top1 for point in everything), max(point.top1 for point in everything)
  room = max(0.15 * (high - low), 0.5)
  panel.set_ylim(max(low - room, 0), min(high + room, 100))
  panel.set_ylabel('test top-1 (%)', fontsize=9)
  figure.draw_without_rendering()  # places the axes, on which the places of labels depend
  several = len(found) > 1
  labels.place(
    panel,
    [(p.kib, p.top1, display_name(p.network) + (f' ({p.run})' if several else '')) for p in everything],
  )
  return figure


def _size_axis(panel, sizes):
  low, high = min(sizes) / 2, max(sizes) * 2
  panel.set_xscale('log')
  panel.set_xlim(low, high)
  powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
  panel.xaxis.set_major_locator(ticker.FixedLocator([2.0**k for k in powers[:: math.ceil(len(powers) / _MAX_TICKS)]]))
  panel.xaxis.set_minor_locator(ticker.NullLocator())
  panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda kib, _: size_text(kib)))
  panel.set_xlabel('size of the weights, logarithmic', fontsize=9)


def size_text(kib):
  """Returns a size as '16 KiB' or '2 MiB'."""
  return f'{kib:g} KiB' if kib < 1024 else f'{kib / 1024:g} MiB'
