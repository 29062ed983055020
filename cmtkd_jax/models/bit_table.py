"""The resolved bit table of a run: every convolution and dense layer with its bits, parameters and MACs."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmtkd_jax.errors import UserError
from cmtkd_jax.models import inspect, layers
from cmtkd_jax.models.bit_policy import FULL_PRECISION
from cmtkd_jax.runtime import text_table


class LayerCost(NamedTuple):
  """One layer.

  activation_bits: those of its input: 32 for images, averaged maps and mixtures of several grids.
  parameters: number of its weights; bias and normalization, which stay in full precision, are not counted.
  macs: multiply-adds of one image.
  """

  layer: str
  weight_bits: int
  activation_bits: int
  parameters: int
  macs: int


def collect(method, input_shape, rules=()):
  """Returns the `LayerCost`s of all networks of `method`, in the order in which they run.

  Args:
    method: a `methods.Method`.
    input_shape: (H, W, C) of one image.
    rules: parsed `bit_policy.Rule`s; each must match a layer.

  Raises:
    UserError: a rule matches no layer of a network that is trained.
  """
  rows, seen, quantized = [], [], []
  for path, module, x, result in inspect.layer_calls(
    # Not training: there a stage that is computed again, see `Network.remat`, gets a copy of its map.
    lambda: method.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False),
    layers.Activation,
    layers.MaxPool,
    layers.Conv,
    layers.Dense,
  ):
    # An input is on the grid of a quantizer if it is that quantizer's output, the same array: any operation but maxima
    # takes it off the grid.
    bits = next((bits for map_, bits in quantized if map_ is x), FULL_PRECISION)
    if isinstance(module, layers.MaxPool):
      quantized.append((result, bits))
      continue
    seen.append(path)
    if isinstance(module, layers.Activation):
      quantized.append((result, module.policy.resolve_activation_bits(path)))
      continue
    if isinstance(module, layers.Conv):
      fan_in = module.kernel**2 * (x.shape[-1] // module.groups)
    else:
      fan_in = math.prod(x.shape[1:])
    kernel = fan_in * module.features
    positions = result.shape[1] * result.shape[2] if result.ndim == 4 else 1
    rows.append(LayerCost(path, module.policy.resolve_weight_bits(path, module.role), bits, kernel, kernel * positions))
  for rule in rules:
    own = [path for path in seen if _split(path)[0] not in method.frozen]  # trained teachers keep the rules they had
    if not any(re.fullmatch(rule.pattern, path) for path in own):
      raise UserError(
        f'config.bits.rules: {rule.pattern!r} matches no layer that is trained; layers are named like '
        f'{", ".join(own[:3])}, ..., {own[-1]}'
      )
  return rows


class Total(NamedTuple):
  """What one network costs. size: bits of its weights; bops: bit operations of one image, MACs x both widths."""

  parameters: int
  size: int
  macs: int
  bops: int


def total(rows):
  """Returns the `Total` of `rows`; a full-precision operand counts 32 bits."""
  return Total(
    sum(row.parameters for row in rows),
    sum(row.parameters * row.weight_bits for row in rows),
    sum(row.macs for row in rows),
    sum(row.macs * row.weight_bits * row.activation_bits for row in rows),
  )


def render(rows):
  """Returns the table as text: a row per layer and shape, a column of W/A bits per network, and each network's cost."""
  networks = list(dict.fromkeys(_split(row.layer)[0] for row in rows))
  cells = {}  # one line per layer; networks of other shapes get their own
  for row in rows:
    network, layer = _split(row.layer)
    line = layer, f'{row.parameters:,}', f'{row.macs:,}'
    cells.setdefault(line, {})[network] = f'{row.weight_bits}/{row.activation_bits}'
  header = ['layer', 'parameters', 'MACs', *networks]
  body = [[*line, *(bits.get(n, '-') for n in networks)] for line, bits in cells.items()]
  by_network = {n: total([row for row in rows if _split(row.layer)[0] == n]) for n in networks}
  body += [
    ['size of the weights, KiB', '', '', *(f'{by_network[n].size / 8192:,.1f}' for n in networks)],
    ['bit operations, millions', '', '', *(f'{by_network[n].bops / 1e6:,.1f}' for n in networks)],
  ]
  return '\n'.join(['bits of weights/input of every layer (32 = full precision)', *text_table.lines(header, body)])


def _split(path):
  network, _, layer = path.partition('/')
  return (network, f'head/{layer}') if network == 'combined_head' else (network, layer)
