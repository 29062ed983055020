"""Convolutions in a row with a max-pool at the end: the stage of networks without residual blocks."""

from typing import NamedTuple

import flax.linen as nn

from cmtkd_jax.errors import UserError
from cmtkd_jax.models.layers import LayerFactory, MaxPool


class ConvSpec(NamedTuple):
  """One convolution of a `ConvStage`. padding: None keeps the size. role: see `bit_policy.ROLES`."""

  features: int
  kernel: int
  stride: int = 1
  padding: int | None = None
  role: str = 'body'


class ConvStage(nn.Module):
  """One or more convolutions, a max-pool after the last: images or a quantized map -> the map to quantize.

  Each layer is conv - [pool] - BN - quantizer: HWGQ's constants want the normalization right before the quantizer.

  pool: (window, stride).
  smallest: what the user should do about images that are too small, such as 'use 32'.
  """

  convs: tuple[ConvSpec, ...]
  pool: tuple[int, int]
  smallest: str
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    for i, conv in enumerate(self.convs, 1):
      if conv.padding is not None and min(x.shape[1:3]) + 2 * conv.padding < conv.kernel:
        raise self._too_small(f'a {conv.kernel}x{conv.kernel} convolution reads {x.shape[1]}x{x.shape[2]} maps')
      x = self.layers.conv(**conv._asdict(), name=f'conv{i}')(x, train)
      if i == len(self.convs):
        if min(x.shape[1:3]) < self.pool[0]:
          raise self._too_small(f'{x.shape[1]}x{x.shape[2]} maps are left to pool')
        return self.layers.norm(name=f'norm{i}')(MaxPool(*self.pool, name='pool')(x), train)
      x = self.layers.norm(name=f'norm{i}')(x, train)
      x = self.layers.activation(name=f'activation{i}')(x, train)

  def _too_small(self, where):
    return UserError(f'config.data.image_size is too small for this network: {where}; {self.smallest}')
