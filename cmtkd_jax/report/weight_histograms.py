"""What quantization makes of the weights of the main network: histograms, levels, and shares of the levels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import ticker

from cmtkd_jax import data
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT, inspect, layers
from cmtkd_jax.quantizers.base import dequantize
from cmtkd_jax.report import plotting
from cmtkd_jax.report.page import Section, escape, table
from cmtkd_jax.runs.run_reader import display_name
from cmtkd_jax.training.restore import load_trained

MAX_PANELS = 24
_MAX_SHARES = 16  # levels whose shares are printed one by one
_BINS = 80


class LayerWeights(NamedTuple):
  """Quantized weights of one layer.

  path: of the layer, e.g. 'student/stage1/block1/conv1'.
  bits: width of its codes.
  levels: float32, ascending; the values in use. Where every channel has its own scale, those at the mean scale.
  shares: float, the part of the weights at each level; together 1.
  per_channel: whether every output channel has levels of its own.
  counts, edges: histogram of the full-precision weights.
  """

  path: str
  bits: int
  levels: np.ndarray
  shares: np.ndarray
  per_channel: bool
  counts: np.ndarray
  edges: np.ndarray

  @property
  def entropy(self):
    """Bits that the codes hold at best: the width itself where all levels are used alike."""
    return float(-np.sum(self.shares * np.log2(self.shares)))


def collect(trained, input_shape):
  """Returns the `LayerWeights` of the main network, in the order in which its layers run.

  Args:
    trained: a `restore.Trained`.
    input_shape: (H, W, C) of one image.

  Raises:
    UserError: weights or levels are not finite, as of a run that has diverged.
  """
  calls = inspect.layer_calls(
    lambda: trained.method.apply(trained.variables, jnp.zeros((1, *input_shape)), train=False),
    layers.Conv,
    layers.Dense,
  )
  quantizers = {
    call.module.path: quantizer
    for call in calls
    if call.module.path[0] == STUDENT and (quantizer := call.module.quantizer()) is not None
  }
  kernels = {path: inspect.at(trained.variables['params'], (*path, 'kernel')) for path in quantizers}
  values = {
    path: inspect.quantizer_values(trained.variables, *path, layers.quantizer_name('weight')) for path in quantizers
  }

  @jax.jit  # one program for all layers: operation by operation, each shape would be compiled on its own
  def quantize(kernels, values):
    return [quantizer.quantize(kernels[path], values[path]) for path, quantizer in quantizers.items()]

  return [
    _describe(path, quantizer.bits, np.asarray(kernels[path]), jax.tree.map(np.asarray, coded))
    for (path, quantizer), coded in zip(quantizers.items(), quantize(kernels, values), strict=True)
  ]


def _describe(path, bits, weights, coded):
  used, number = np.unique(coded.codes, return_counts=True)
  tables = coded.levels is not None and coded.levels.ndim == 2  # one for each output channel
  with np.errstate(all='ignore'):  # of a run that has diverged
    one_scale = coded._replace(
      codes=used,
      scale=np.mean(coded.scale),
      offset=None if coded.offset is None else np.mean(coded.offset),
      levels=np.mean(coded.levels, 0) if tables else coded.levels,
    )
    levels = np.asarray(dequantize(one_scale))
  if not (np.isfinite(weights).all() and np.isfinite(levels).all()):
    raise UserError(f'weights or levels of {"/".join(path)} are not finite')
  order = np.argsort(levels)
  levels, number = levels[order], number[order]
  reach = 1.1 * max(float(np.quantile(np.abs(weights), 0.998)), float(np.max(np.abs(levels))))
  counts, edges = np.histogram(np.float64(weights), _BINS, (-reach, reach))
  return LayerWeights(
    '/'.join(path), bits, levels, number / weights.size, np.size(coded.scale) > 1 or tables, counts, edges
  )


def section(run):
  """Histograms of the full-precision weights with the levels that they are rounded to."""
  title = f'Weights of the {display_name(STUDENT)}'
  try:
    trained = load_trained(run)
  except UserError as e:
    return Section(title, f'This part is missing, because there is nothing to read the weights from: {escape(e)}.')
  try:
    found = collect(trained, data.input_shape(run.config.data))
  except UserError as e:
    return Section(title, f'This part is missing, because {escape(e)}.')
  if not found:
    return Section(title, 'This network has no quantized layer: all of its weights are full-precision numbers.')
  chosen = np.linspace(0, len(found) - 1, min(len(found), MAX_PANELS)).round().astype(int)
  drawn = [found[i] for i in chosen]
  images = {plotting.file_name('weights', _name(layer)): plotting.png(_draw(layer)) for layer in drawn}
  return Section(title, _text(found, drawn, trained.step), images, _table(found))


def _draw(layer):
  figure, panel = plotting.panel(2.5, 2.2)
  panel.bar(
    layer.edges[:-1], 100 * layer.counts / layer.counts.sum(), np.diff(layer.edges), align='edge', color=plotting.SOFT
  )
  height, number = panel.get_ylim()[1], len(layer.levels)
  color = plotting.COLORS[1]
  if number <= _MAX_SHARES:
    panel.vlines(layer.levels, 0, height, color=color, linewidth=1.2)
    for level, share in zip(layer.levels, layer.shares):
      panel.text(
        *(level, 1.02 * height, f'{100 * share:.0f} %' if share >= 0.005 else '< 1 %'),
        color=color,
        fontsize=6.5,
        va='bottom',
        ha='center',
        rotation=0 if number <= 4 else 90,
      )
    panel.set_ylim(0, 1.3 * height)
  else:  # as many lines would hide the histogram: ticks below it
    panel.vlines(layer.levels, -0.12 * height, -0.02 * height, color=color, linewidth=0.5)
    panel.text(0.98, 0.97, f'{number} levels', transform=panel.transAxes, color=color, fontsize=7, va='top', ha='right')
    panel.set_ylim(-0.14 * height, 1.15 * height)
  panel.set_xlim(layer.edges[0], layer.edges[-1])
  panel.set_title(plotting.plain(f'{_name(layer)}, {layer.bits} bit{", mean scale" * layer.per_channel}'), fontsize=8)
  panel.tick_params(labelsize=7)
  panel.xaxis.set_major_locator(ticker.MaxNLocator(5))
  panel.set_xlabel('weight', fontsize=7)
  panel.set_ylabel('% of the weights in a bin', fontsize=7)
  return figure


def _name(layer):
  return layer.path.removeprefix(f'{STUDENT}/')


def _text(found, drawn, step):
  left_out = len(found) - len(drawn)
  per_channel = any(layer.per_channel for layer in found)
  return (
    'Training keeps every weight as a full-precision number, which the gradient moves (blue: their histogram '
    f'at step {step}, in {_BINS} bins); the network computes with the quantization level that the number is '
    'rounded to (orange lines; short ones below the histogram where there are many). A layer of <em>b</em> bits has '
    'at most 2<sup><em>b</em></sup> levels. The percentages are the share of weights at each level, printed for up '
    'to 16 levels. The table&#39;s last column is the entropy of the levels: as much as the layer&#39;s bits where '
    'all levels are used alike, less where some are idle. Histograms cover all levels and 99.8 % of the '
    'weights; layers that keep full precision, usually the first and the last, have none. '
    + ('Where every output channel has a scale of its own, the lines stand at the mean scale. ' if per_channel else '')
    + (
      f'{left_out} of {len(found)} quantized layers are left out of the figure, evenly; the table has all.'
      if left_out
      else f'All {len(found)} quantized layers are shown.'
    )
  )


def _table(found):
  def shares(layer):
    if len(layer.levels) > _MAX_SHARES:
      return f'{100 * layer.shares.min():.2g} % to {100 * layer.shares.max():.2g} % each'
    return ', '.join(f'{level:.3g}: {100 * share:.1f} %' for level, share in zip(layer.levels, layer.shares))

  rows = [
    (
      _name(layer),
      layer.bits,
      f'{len(layer.levels)} of {2**layer.bits}',
      shares(layer),
      f'{layer.entropy:.2f} of {layer.bits}',
    )
    for layer in found
  ]
  return table(
    ('layer', 'bits', 'levels in use', 'share of weights at each level', 'entropy (bit)'),
    rows,
    summary='levels and shares of every layer',
  )
