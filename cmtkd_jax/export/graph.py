"""A trained network as data: a list of operations on integer codes and real maps, free of Flax and of training.

Maps are [B, H, W, C]. A map is *codes* (integers from 0) after `quantize`, *sums* (exact integers) after a convolution
of codes, or real (float32). The operations, with their attributes and arrays:

  image        uint8 pixels to real: (pixel / 255 - mean) / std; arrays mean, std [C]
  convolution  of codes with integer weights: exact integer sums; else real. stride, padding; weights as below
  dense        the same for a matrix product of the flattened map
  affine       (x + bias) * scale; arrays bias, scale, scalar or [C], bias also [H, W, C]
  quantize     to codes 0..levels - 1: clip(round half to even (x), 0, levels - 1), or how many of the array
               thresholds [levels - 1] are <= x
  lookup       codes to real: values[code]; array values [levels], of grids that are not uniform
  add, relu    of real maps
  max_pool     window, stride, padding
  sum          over the positions: [B, H, W, C] -> [B, C]

Weights are bits (1..8) and the arrays codes (uint8) [..., O] with either factor and shift, which make the integer
weights factor * code - shift, or values [levels] or [O, levels], what the codes stand for; at 32 bits the array kernel.
The scale of integer weights is in the affine that follows. In an affine the addition comes first: a product before a
sum might be contracted to one rounding or not, and answers would depend on the compiler.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# {operation: number of inputs}
OPERATIONS = {'image': 1, 'convolution': 1, 'dense': 1, 'affine': 1, 'quantize': 1, 'lookup': 1, 'add': 2, 'relu': 1,
              'max_pool': 1, 'sum': 1}
IMAGES = 'images'  # the name of what goes in


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation. `output` is the name of its result; of layers that of the layer, as in the bit table."""
  op: str
  inputs: tuple[str, ...]
  output: str
  attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def is_integer(self):
    """Whether the weights are integers, which stand for themselves in an exact sum."""
    return 'factor' in self.attributes

  @property
  def weights(self):
    """The weights as they enter the sum: float32 [..., O], integers where `is_integer`."""
    return self.decoded(self.arrays['codes'], np) if 'codes' in self.arrays else self.arrays['kernel']

  def decoded(self, codes, xp):
    """The weights of `codes`, which take the place of its own; `xp` is numpy or jax.numpy."""
    if self.is_integer:
      return np.float32(self.attributes['factor']) * codes.astype(xp.float32) - np.float32(self.attributes['shift'])
    values = xp.asarray(self.arrays['values'])
    return values[codes] if values.ndim == 1 else values[xp.arange(len(values)), codes]


@dataclasses.dataclass(frozen=True)
class Graph:
  """The operations in the order in which they run; the last one's result are the logits.

  image_shape: (H, W, C) of the uint8 images that go in.
  """
  nodes: tuple[Node, ...]
  image_shape: tuple[int, int, int]

  def kinds(self):
    """Returns `{name: 'codes', 'sums' or 'real'}` of every result."""
    kinds = {}
    for node in self.nodes:
      match node.op:
        case 'quantize':
          kind = 'codes'
        case 'max_pool':
          kind = kinds[node.inputs[0]]
        case 'sum':
          kind = 'real' if kinds[node.inputs[0]] == 'real' else 'sums'
        case 'convolution' | 'dense':
          kind = 'sums' if kinds[node.inputs[0]] == 'codes' and node.is_integer else 'real'
        case _:
          kind = 'real'
      kinds[node.output] = kind
    return kinds

  def levels(self):
    """Returns `{name: number of codes}` of every result that is codes."""
    levels, kinds = {}, self.kinds()
    for node in self.nodes:
      if node.op == 'quantize':
        levels[node.output] = node.attributes['levels']
      elif node.op == 'max_pool' and kinds[node.output] == 'codes':
        levels[node.output] = levels[node.inputs[0]]
    return levels
