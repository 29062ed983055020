"""A trained network as data: a list of operations on integer codes and real maps, free of Flax and of training.

Maps are [B, H, W, C]. A map is *codes* (integers from 0) after `quantize`, *sums* (exact integers) after a convolution
of codes, or real (float32). The operations, with their attributes and arrays:

  image        uint8 pixels to real: (pixel / 255 - mean) / std; arrays mean, std [C]
  pixels       uint8 pixels to codes, [B, H, W, C + 1]: after their channels one of 255s, so that a kernel can hold the
               mean and std, and padding stays worth 0
  convolution  of codes with integer weights: exact integer sums; else real. stride, padding; weights as below,
               [k, k, C / groups, O]: `groups`, 1 where it is left out, are parts of the channels and of the outputs
  dense        the same for a matrix product of the flattened map
  affine       (x + bias) * scale; arrays bias, scale, scalar or [C], bias also [H, W, C]
  quantize     to codes 0..levels - 1: clip(round half to even (x), 0, levels - 1), or how many of the array
               thresholds [levels - 1] are <= x
  lookup       codes to real: values[code]; array values [levels], of grids that are not uniform
  add, relu    of real maps
  max_pool     window, stride, padding
  sum          over the positions: [B, H, W, C] -> [B, C]

Weights are bits (1..8) and the arrays codes (uint8) [..., O] with either factor and shift, which make the integer
weights factor * code - shift, or values [levels] or [O, levels], what the codes stand for; at 32 bits the array kernel,
which in a product of codes holds whole numbers up to 2^22: `Graph.by_bytes` says how that is summed exactly. The scale
of whole numbers is in the affine that follows. In an affine the addition comes first: a product before a sum might be
contracted to one rounding or not, and answers would depend on the compiler.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

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
  def groups(self):
    """Parts of the channels of a convolution, each with its own part of the outputs; 1 for other operations."""
    return self.attributes.get('groups', 1)

  @property
  def weights(self):
    """The weights as they enter the sum: float32 [..., O], integers where `is_integer`."""
    return self.decoded(self.arrays['codes'], np) if 'codes' in self.arrays else self.arrays['kernel']

  def kernel_bytes(self):
    """The bytes, -128..127 and lowest first, of a kernel of whole numbers: float32 b0 + 256 b1 + 65536 b2."""
    rest, found = self.arrays['kernel'].astype(np.int64), []
    for _ in range(2):
      found.append((rest + 128) % 256 - 128)
      rest = (rest - found[-1]) // 256
    return [byte.astype(np.float32) for byte in (*found, rest)]

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
        case 'quantize' | 'pixels':
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
      if node.op == 'pixels':
        levels[node.output] = 256
      elif node.op == 'quantize':
        levels[node.output] = node.attributes['levels']
      elif node.op == 'max_pool' and kinds[node.output] == 'codes':
        levels[node.output] = levels[node.inputs[0]]
    return levels

  def by_bytes(self):
    """Returns the network as it is evaluated: with integer weights in every product of codes.

    A product with a kernel of whole numbers becomes three, with the kernel's bytes: each sum is exact, and they are put
    together, (s0 + 256 s1) + 65536 s2, in float32 and in this order. So a first layer in full precision gives the same
    on every runtime, to the last bit, and so do all thresholds after it.
    """
    kinds, nodes = self.kinds(), []
    for node in self.nodes:
      if node.op not in ('convolution', 'dense') or 'kernel' not in node.arrays or kinds[node.inputs[0]] != 'codes':
        nodes.append(node)
        continue
      total = None
      for place, byte in enumerate(node.kernel_bytes()):
        name = f'{node.output}/byte{place}'
        nodes += [
          Node(
            node.op,
            node.inputs,
            name,
            {**node.attributes, 'bits': 8, 'factor': 1, 'shift': 128},
            {'codes': (byte + 128).astype(np.uint8)},
          ),
          Node('affine', (name,), f'{name}/real', arrays={'bias': np.float32(0), 'scale': np.float32(256**place)}),
        ]
        if total is not None:
          nodes.append(Node('add', (total, f'{name}/real'), f'{name}/total' if place == 1 else node.output))
        total = nodes[-1].output
    return Graph(tuple(nodes), self.image_shape)
