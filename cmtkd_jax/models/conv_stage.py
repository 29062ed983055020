"""Convolutions in a row with a max-pool at the end: the stage of networks without residual blocks."""

import flax.linen as nn

from cmtkd_jax.errors import UserError
from cmtkd_jax.models.layers import LayerFactory, MaxPool


class ConvStage(nn.Module):
  """One or more convolutions, a max-pool after the last: images or a quantized map -> the map to quantize.

  Each layer is conv - [pool] - BN - quantizer: HWGQ's constants want the normalization right before the quantizer.

  convs: (features, kernel, stride, padding, role) of each; padding None keeps the size.
  pool: (window, stride).
  smallest: what the user should do about images that are too small, such as 'use 32'.
  """

  convs: tuple[tuple[int, int, int, int | None, str], ...]
  pool: tuple[int, int]
  smallest: str
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    for i, (features, kernel, stride, padding, role) in enumerate(self.convs, 1):
      if padding is not None and min(x.shape[1:3]) + 2 * padding < kernel:
        raise self._too_small(f'a {kernel}x{kernel} convolution reads {x.shape[1]}x{x.shape[2]} maps')
      x = self.layers.conv(features, kernel, stride, padding, role, name=f'conv{i}')(x, train)
      if i == len(self.convs):
        if min(x.shape[1:3]) < self.pool[0]:
          raise self._too_small(f'{x.shape[1]}x{x.shape[2]} maps are left to pool')
        return self.layers.norm(name=f'norm{i}')(MaxPool(*self.pool, name='pool')(x), train)
      x = self.layers.norm(name=f'norm{i}')(x, train)
      x = self.layers.activation(name=f'activation{i}')(x, train)

  def _too_small(self, where):
    return UserError(f'config.data.image_size is too small for this network: {where}; {self.smallest}')
