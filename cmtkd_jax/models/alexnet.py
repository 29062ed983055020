"""AlexNet with batch normalization after every convolution and dense layer (HWGQ, LQ-Nets): no groups, no dropout.

Each layer is conv - [pool] - BN - quantizer: pooling comes before the normalization. Stages end at layers 1, 2 and 5,
the last convolution before each max-pool (CMT-KD section 4.1 taps "the last convolution of each block").
"""

import functools

import flax.linen as nn

from cmtkd_jax.errors import UserError
from cmtkd_jax.models.layers import LayerFactory, MaxPool
from cmtkd_jax.models.network import Network

# First layer: (kernel, stride, padding); pooling: (window, stride).
FORMS = {
  'imagenet': ((11, 4, 0), (3, 2)),  # 227x227 input, 6x6 before the dense layers
  'cifar': ((5, 1, 2), (2, 2)),  # 32x32 input, 4x4 before the dense layers
}


class Stage(nn.Module):
  """One or more convolutions, a max-pool after the last: images or a quantized map -> the map to quantize."""

  convs: tuple[tuple[int, int, int, int | None, str], ...]  # features, kernel, stride, padding, role
  pool: tuple[int, int]
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    for i, (features, kernel, stride, padding, role) in enumerate(self.convs, 1):
      x = self.layers.conv(features, kernel, stride, padding, role, name=f'conv{i}')(x, train)
      if i == len(self.convs):
        if min(x.shape[1:3]) < self.pool[0]:
          raise UserError(
            f'config.data.image_size is too small for alexnet: {x.shape[1]}x{x.shape[2]} maps are left '
            f"to pool; use 227, or 32 with config.model.stem='cifar'"
          )
        return self.layers.norm(name=f'norm{i}')(MaxPool(*self.pool, name='pool')(x), train)
      x = self.layers.norm(name=f'norm{i}')(x, train)
      x = self.layers.activation(name=f'activation{i}')(x, train)


class DenseHead(nn.Module):
  """fc6 - BN - quantizer - fc7 - BN - ReLU - fc8: [B, H, W, C] -> logits float32 [B, classes]."""

  features: int
  num_classes: int
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    x = self.layers.dense(self.features, name='fc6')(x, train)
    x = self.layers.norm(name='norm6')(x, train)
    x = self.layers.activation(name='activation6')(x, train)
    x = self.layers.dense(self.features, name='fc7')(x, train)
    x = nn.relu(self.layers.norm(name='norm7')(x, train))  # the last layer reads an unquantized map
    return self.layers.dense(self.num_classes, role='last', name='fc8')(x, train)


def alexnet_torchvision(num_classes, layers, **settings):
  """AlexNet-BN with the widths of torchvision, 64-192-384-256-256, and its padding of 2; for its weights, at 224."""
  return alexnet(num_classes, layers, widths=(64, 192, 384, 256, 256), first_padding=2, **settings)


def alexnet(
  num_classes, layers, width=1.0, stem='imagenet', block_order='pre', widths=(96, 256, 384, 384, 256), first_padding=0
):
  """AlexNet-BN, widths 96-256-384-384-256 and 4096-4096, taps at layers 1, 2, 5 (CMT-KD section 4.1)."""
  if block_order != 'pre':
    raise UserError(f"config.model.block_order={block_order!r}; alexnet has no residual blocks, use 'pre'")
  (kernel, stride, padding), pool = FORMS[stem]
  padding = padding or first_padding
  scaled = lambda features: max(1, round(features * width))
  convs = (
    ((scaled(widths[0]), kernel, stride, padding, 'first'),),
    ((scaled(widths[1]), 5, 1, None, 'body'),),
    tuple((scaled(features), 3, 1, None, 'body') for features in widths[2:]),
  )
  make_stages = tuple(functools.partial(Stage, stage_convs, pool, layers) for stage_convs in convs)
  return Network(
    (1, 2, 5), make_stages, layers.activation, functools.partial(DenseHead, scaled(4096), num_classes, layers)
  )
