"""Accuracy against model size: what each network gives for the bits it takes."""

import math
from typing import NamedTuple

from matplotlib import ticker

from cmtkd_jax.models import STUDENT
from cmtkd_jax.report import plotting
from cmtkd_jax.report.page import Section, escape, table
from cmtkd_jax.runs.run_reader import display_name, results


class Point(NamedTuple):
  """One evaluated network.

  run: name of its work directory.
  network: e.g. 'student'.
  bits: size of its weights.
  top1: percent, on the test split at the last evaluation.
  """

  run: str
  network: str
  bits: int
  top1: float


def weight_bits(rows, network, evaluated):
  """Returns the size of a network's weights in bits.

  A network without layers of its own, such as the combined teacher, is made of all layers that belong to no
  evaluated network: the teachers and the classifier on their mixture; or where there are none, of all networks.

  Args:
    rows: `bit_table.Row`s of a run.
    network: name of the network.
    evaluated: names of all evaluated networks.
  """
  owner = lambda row: row.layer.split('/')[0]
  own = [row for row in rows if owner(row) == network]
  rest = [row for row in rows if owner(row) not in evaluated]
  return sum(row.parameters * row.weight_bits for row in own or rest or rows)


def points(run, name=''):
  """Returns the `Point`s of one run, called `name` or else like its directory; [] before its first evaluation."""
  last = {
    key.removeprefix('test/'): result['last']['top1'] for key, result in results(run).items() if key.startswith('test/')
  }
  networks = sorted(last, key=lambda network: network != STUDENT)
  return [
    Point(name or run.name, network, weight_bits(run.bits, network, networks), last[network]) for network in networks
  ]


def front(found):
  """Returns the points that no other beats: none is as small, or smaller, and more accurate; by size."""
  best, kept = -math.inf, []
  for point in sorted(found, key=lambda point: (point.bits, -point.top1)):
    if point.top1 > best:
      best = point.top1
      kept.append(point)
  return kept


def section(run, others=()):
  """Top-1 on test against the bits of the weights, of this run and of `others`."""
  title = 'Accuracy against model size'
  runs = [run, *others]
  unique = len({r.name for r in runs}) == len(runs)  # else the whole paths tell the runs apart
  names = [r.name if unique else str(r.directory) for r in runs]
  found = [points(r, name) for r, name in zip(runs, names)]
  everything = [point for group in found for point in group]
  if not everything:
    return Section(title, 'There is no evaluation in metrics.jsonl yet.')
  silent = [name for name, group in zip(names, found) if not group]
  data = sorted({r.config.data.name for r in runs})
  best = front(everything)
  text = (
    'Each point is one network after the last evaluation; to the left is smaller, up is better. The size is '
    'that of the weights of all convolutions and dense layers: for each layer its number of parameters times '
    'its bits (bits.json), summed; a full-precision weight takes 32. Normalizations and quantizer steps, which '
    'are few, are not counted. A combined teacher counts with all of its teachers and their common classifier, '
    'since it needs them all. The dashed line joins the networks that no other beats in both size and accuracy '
    '(the Pareto front).'
    + (f' Not evaluated yet: {escape(", ".join(silent))}.' if silent else '')
    + (f' Beware: these runs are on different data ({escape(", ".join(data))}).' if len(data) > 1 else '')
  )
  rows = [
    (
      point.run,
      display_name(point.network),
      f'{point.bits:,}',
      f'{point.bits / 8 / 1024:,.1f} KiB',
      f'{point.top1:.2f} %',
      'yes' if point in best else '',
    )
    for point in sorted(everything, key=lambda point: point.bits)
  ]
  header = ('run', 'network', 'size of the weights (bits)', 'the same in bytes', 'test top-1', 'on the front')
  return Section(title, text, {'accuracy_size.png': plotting.png(_draw(found, best))}, table(header, rows))


def _draw(found, best):
  figure, (panel,) = plotting.panels(1, 1, 8.5, 4.2)
  panel.plot(
    [point.bits for point in best], [point.top1 for point in best], '--', color=plotting.GRAY, linewidth=1, zorder=1
  )
  for i, group in enumerate(found):
    color, marker = plotting.COLORS[i % len(plotting.COLORS)], plotting.MARKERS[i % len(plotting.MARKERS)]
    for point in group:
      label = f'{display_name(point.network)} ({point.run})'
      panel.plot(
        [point.bits],
        [point.top1],
        marker,
        color=color,
        markersize=8,
        markeredgewidth=1.6,
        zorder=2,
        markerfacecolor=color if point.network == STUDENT else 'white',
        label=plotting.plain(label),
      )
  sizes = [point.bits for group in found for point in group]
  panel.set_xscale('log')
  panel.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
  panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  panel.xaxis.set_major_formatter(ticker.EngFormatter())
  panel.xaxis.set_minor_locator(ticker.NullLocator())
  accuracies = [point.top1 for group in found for point in group]
  room = max(0.15 * (max(accuracies) - min(accuracies)), 0.5)
  panel.set_ylim(min(accuracies) - room, min(max(accuracies) + room, 100.5))
  panel.set_xlabel('size of the weights (bits; k = 1,000, M = 1,000,000), logarithmic', fontsize=9)
  panel.set_ylabel('test top-1 (%)', fontsize=9)
  figure.legend(
    fontsize=8,
    frameon=False,
    loc='outside right upper',
    title='filled: the network a run is for',
    title_fontsize=8,
    alignment='left',
  )
  return figure
