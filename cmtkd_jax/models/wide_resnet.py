"""Wide residual networks WRN-d-k with pre-activation blocks (Zagoruyko and Komodakis, BMVC 2016).

A 3x3 stem, then three groups of (d - 4) / 6 blocks. Each block normalizes and activates its input, and its
shortcut is the input itself, or where channels or resolution change a 1x1 convolution of the activated input. The
tap of a group is what attention transfer compares: its raw sum, before the normalization and the quantizer that open
the next group.
"""

import functools

import flax.linen as nn

from cmtkd_jax.errors import UserError
from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.network import Network, check_form, scaled
from cmtkd_jax.models.products import values
from cmtkd_jax.models.resnet import PooledHead


class Stem(nn.Module):
  """The first convolution alone, so that two networks can share it: images -> raw map."""

  features: int
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    return self.layers.conv(self.features, 3, role='first', name='conv')(x, train)


class NormActivation(nn.Module):
  """Normalization and quantizer (or ReLU) of a raw map."""

  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    return self.layers.activation(name='activation')(self.layers.norm(name='norm')(x, train), train)


class Group(nn.Module):
  """The blocks of one resolution: raw map in group 1, else activated map -> raw sum."""

  features: int
  blocks: int
  stride: int
  activated: bool  # whether the input comes activated, as it does after another group
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    for b in range(1, self.blocks + 1):
      stride = self.stride if b == 1 else 1
      o = x if self.activated and b == 1 else NormActivation(self.layers, name=f'block{b}_input')(x, train)
      y = self.layers.conv(self.features, 3, stride, name=f'block{b}_conv1')(o, train)
      y = NormActivation(self.layers, name=f'block{b}_middle')(y, train)
      y = self.layers.conv(self.features, 3, name=f'block{b}_conv2')(y, train)
      if stride != 1 or x.shape[-1] != self.features:
        x = self.layers.conv(self.features, 1, stride, role='shortcut', name=f'block{b}_shortcut')(o, train)
      x = y + values(x).astype(y.dtype)
    return x


def wide_resnet(depth, widen, num_classes, layers, width=1.0, stem='cifar', block_order='pre'):
  """WRN-depth-widen, widths 16 | 16, 32, 64 times `widen`, one tap per group; for 32x32 images."""
  if depth < 10 or (depth - 4) % 6:
    raise UserError(f'a wide residual network has a depth of 6 n + 4 with n >= 1, not {depth}')
  check_form('a wide residual network', 'stem', stem, ('cifar',))
  check_form('a wide residual network', 'block_order', block_order, ('pre',))
  blocks = (depth - 4) // 6
  make_groups = tuple(
    functools.partial(Group, scaled(16 * 2**k * widen, width), blocks, 1 if k == 0 else 2, k > 0, layers)
    for k in range(3)
  )
  return Network(
    taps=tuple(1 + 2 * blocks * (k + 1) for k in range(3)),
    make_stages=make_groups,
    make_activation=functools.partial(NormActivation, layers),
    make_head=functools.partial(PooledHead, num_classes, layers),
    make_stem=functools.partial(Stem, scaled(16, width), layers),
    activate_normalizes=True,
  )
