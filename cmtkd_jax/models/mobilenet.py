"""MobileNetV2: inverted residuals with depthwise convolutions (Sandler et al., CVPR 2018), cut by resolution.

A block expands its input by 1x1, filters each channel on its own by 3x3, and projects by 1x1 to few features. Between
these are BN and quantizer. What follows the projection, `block_order`:

- `pre`: projection + sum before, then BN - quantizer of what the next block reads. HWGQ's constants assume the BN right
  before each quantizer. The default of the library.
- `post` (the published places of BN): projection - BN + sum before, then a quantizer of what the next block reads.

The published network has no activation after a projection: blocks read what is signed, and low widths come from signed
or shifted quantizers there (Bhalgat et al., CVPR Workshops 2020; Nagel et al., ICML 2022, put one at the input of every
convolution). Quantizers here are quantized ReLUs, from 0 up. So the sums of blocks stay real, signed and linear, as
published, and are what identity shortcuts add. The 1x1 that expands a block reads them through a quantizer (a ReLU at
32 bits), which is 0 for negative values; in `pre`, the BN before it can learn to shift the sum up. ReLU6 is replaced by
ReLU, because a quantizer has an upper bound of its own. For both reasons weights of PyTorch do not fit. There is no
dropout before the classifier.

The stem `cifar` has stride 1 in the first convolution and in the first block of 24 features, as kuangliu/pytorch-cifar
has; the 1x1 shortcuts that it adds are not in the paper and not here. `width` scales all features, without the
published rounding to multiples of 8.
"""

import functools
from typing import NamedTuple

import flax.linen as nn

from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.network import Network, check_form, scaled
from cmtkd_jax.models.resnet import ORDERS, PooledHead

EXPANSION = 6
STEM_FEATURES, LAST_FEATURES = 32, 1280


class BlockGroup(NamedTuple):
  """Blocks of one number of features (table 2 of the paper); the first takes the stride, 1 where `full_on_cifar`."""

  expansion: int
  features: int
  blocks: int
  stride: int
  full_on_cifar: bool = False


# A tuple a stage; the first row follows the stem.
STAGES = (
  (BlockGroup(1, 16, 1, 1), BlockGroup(EXPANSION, 24, 2, 2, full_on_cifar=True)),
  (BlockGroup(EXPANSION, 32, 3, 2),),
  (BlockGroup(EXPANSION, 64, 4, 2), BlockGroup(EXPANSION, 96, 3, 1)),
  (BlockGroup(EXPANSION, 160, 3, 2), BlockGroup(EXPANSION, 320, 1, 1)),
)


class Branch(nn.Module):
  """One block without its shortcut: a quantized map -> the real map of the projection, with its BN in order `post`."""

  expansion: int
  features: int
  stride: int
  order: str
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    wide = self.expansion * x.shape[-1]
    if self.expansion > 1:
      x = self.layers.conv(wide, 1, name='expand')(x, train)
      x = self.layers.norm(name='expand_norm')(x, train)
      x = self.layers.activation(name='expand_activation')(x, train)
    x = self.layers.conv(wide, 3, self.stride, groups=wide, name='depthwise')(x, train)
    x = self.layers.norm(name='depthwise_norm')(x, train)
    x = self.layers.activation(name='depthwise_activation')(x, train)
    x = self.layers.conv(self.features, 1, name='project')(x, train)
    return self.layers.norm(name='project_norm')(x, train) if ORDERS[self.order].after_branches else x


class Stage(nn.Module):
  """The blocks of one stage: images, where it has the stem, or a quantized map -> the map to quantize.

  stem, last: features of the first convolution and of the 1x1 convolution after the last block; 0: none.
  """

  rows: tuple[BlockGroup, ...]
  order: str
  layers: LayerFactory
  stem: int = 0
  stem_stride: int = 1
  last: int = 0

  @nn.compact
  def __call__(self, x, train):
    if self.stem:
      x = self.layers.conv(self.stem, 3, self.stem_stride, role='first', name='stem')(x, train)
      x = self.layers.norm(name='stem_norm')(x, train)
      x = self.layers.activation(name='stem_activation')(x, train)
    blocks, total = [(row, i) for row in self.rows for i in range(row.blocks)], None
    for b, (row, i) in enumerate(blocks, 1):
      branch = Branch(row.expansion, row.features, 1 if i else row.stride, self.order, self.layers, name=f'block{b}')
      y = branch(x, train)
      total = y if i == 0 else total + y  # the first of a row changes features, so that nothing is to be added
      y = self.layers.norm(name=f'norm{b}')(total, train) if ORDERS[self.order].after_sum else total
      if b < len(blocks) or self.last:
        x = self.layers.activation(name=f'activation{b}')(y, train)
    if not self.last:
      return y
    x = self.layers.conv(self.last, 1, name='last')(x, train)
    return self.layers.norm(name='last_norm')(x, train)


def mobilenet_v2(num_classes, layers, width=1.0, stem='cifar', block_order='pre', stages=STAGES):
  """MobileNetV2, features 24-32-96-1280, taps at layers 9, 18, 39, 52 (Sandler et al. 2018)."""
  check_form('mobilenet_v2', 'block_order', block_order, ('pre', 'post'))  # one BN per convolution, as published
  small = stem == 'cifar'
  make_stages, taps, layer = [], [], 1
  for rows in stages:
    own = tuple(
      row._replace(features=scaled(row.features, width), stride=1 if small and row.full_on_cifar else row.stride)
      for row in rows
    )
    layer += sum(row.blocks * (3 if row.expansion > 1 else 2) for row in rows)
    taps.append(layer)
    make_stages.append(functools.partial(Stage, own, block_order, layers))
  make_stages[0] = functools.partial(make_stages[0], stem=scaled(STEM_FEATURES, width), stem_stride=1 if small else 2)
  make_stages[-1] = functools.partial(make_stages[-1], last=scaled(LAST_FEATURES, width))
  taps[-1] += 1
  return Network(
    taps=tuple(taps),
    make_stages=tuple(make_stages),
    make_activation=layers.activation,
    make_head=functools.partial(PooledHead, num_classes, layers),
  )
