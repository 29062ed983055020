"""ResNets: ResNet18/34/50 with ImageNet or CIFAR stem, and the CIFAR family of He et al. (ResNet8/20/32/56/110).

Blocks have two 3x3 convolutions (`BASIC`), those of ResNet50 a 3x3 one between two of 1x1 (`BOTTLENECK`), which takes
the stride, as in torchvision's version 1.5. Below conv2 stands for the last convolution of a block; between each two
are BN and quantizer.

A stage takes a quantized map and returns the map before its closing quantizer. Its first block has a 1x1 convolution as
shortcut where features or resolution change; that reads the stage's input, as the main branch does. `block_order`:

- `pre` (as in He et al. 2016b, pre-activation): conv1 - BN - quantizer - conv2 + shortcut, then BN - quantizer. The
  shortcut is the 1x1 convolution alone, or the sum before its BN. HWGQ's constants assume the BN right before each
  quantizer.
- `edmips` (Cai and Vasconcelos 2020): conv1 - BN - quantizer - conv2 - BN + shortcut, then BN - quantizer. The shortcut
  is the 1x1 convolution - BN, or the sum before its BN. The stem is convolution - max-pool - BN: this map is the
  identity of the first block, whose main branch reads it through a BN and a quantizer of its own. As in the other
  orders, BN - quantizer follows the last sum, too, since a method may tap it; EdMIPS' own network has a ReLU there.
- `post` (He et al. 2016a): conv1 - BN - quantizer - conv2 - BN + shortcut, then quantizer. The shortcut is the 1x1
  convolution - BN, or the quantized map.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from cmtkd_jax.models.layers import LayerFactory, MaxPool
from cmtkd_jax.models.network import Network, scaled
from cmtkd_jax.models.products import values


class Order(NamedTuple):
  """Where the normalizations of a block stand, besides that between its convolutions."""

  after_branches: bool  # after the second convolution, and after a 1x1 shortcut
  after_sum: bool  # so that an identity shortcut adds the sum before it, which is not quantized


ORDERS = {'pre': Order(False, True), 'edmips': Order(True, True), 'post': Order(True, False)}


class Convolution(NamedTuple):
  """One convolution of a block. multiple: of the block's features; strided: whether the block's stride is its own."""

  multiple: int
  kernel: int
  strided: bool


BASIC = (Convolution(1, 3, True), Convolution(1, 3, False))
BOTTLENECK = (Convolution(1, 1, False), Convolution(1, 3, True), Convolution(4, 1, False))


class Stem(nn.Module):
  """The first convolution up to the map that stage 1 reads: 3x3, or 7x7/2 with a 3x3/2 max-pool.

  The map is quantized, but in order `edmips`, where the first block starts with its normalization.
  """

  features: int
  form: str
  order: str
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    imagenet = self.form == 'imagenet'
    kernel, stride = (7, 2) if imagenet else (3, 1)
    x = self.layers.conv(self.features, kernel, stride, role='first', name='conv')(x, train)
    # HWGQ's constants want the normalization right before the quantizer, so that pooling comes before both.
    if imagenet and self.order != 'post':
      x = MaxPool(3, 2, padding=1, name='pool')(x)
    x = self.layers.norm(name='norm')(x, train)
    if self.order == 'edmips':
      return x
    x = self.layers.activation(name='activation')(x, train)
    if imagenet and self.order == 'post':
      x = MaxPool(3, 2, padding=1, name='pool')(x)
    return x


class Block(nn.Module):
  """Some convolutions and a shortcut: returns the sum, without what follows it.

  `x` is the quantized input, `identity` what an identity shortcut adds: x, or the sum before x's normalization.
  """

  features: int
  stride: int
  order: str
  layers: LayerFactory
  convolutions: tuple[Convolution, ...] = BASIC

  @nn.compact
  def __call__(self, x, identity, train):
    y, last = x, len(self.convolutions)
    for i, (multiple, kernel, strided) in enumerate(self.convolutions, 1):
      y = self.layers.conv(multiple * self.features, kernel, self.stride if strided else 1, name=f'conv{i}')(y, train)
      if i < last or ORDERS[self.order].after_branches:
        y = self.layers.norm(name=f'norm{i}')(y, train)
      if i < last:
        y = self.layers.activation(name=f'activation{i}')(y, train)
    if self.stride != 1 or identity.shape[-1] != y.shape[-1]:
      identity = self.layers.conv(y.shape[-1], 1, self.stride, role='shortcut', name='shortcut')(x, train)
      if ORDERS[self.order].after_branches:
        identity = self.layers.norm(name='shortcut_norm')(identity, train)
    return y + values(identity).astype(y.dtype)


class Stage(nn.Module):
  """The blocks of one resolution, after the stem if there is one: images or a quantized map -> the map to quantize."""

  features: int
  blocks: int
  stride: int
  order: str
  layers: LayerFactory
  stem: str = ''
  convolutions: tuple[Convolution, ...] = BASIC

  @nn.compact
  def __call__(self, x, train):
    if self.stem:
      x = Stem(self.features, self.stem, self.order, self.layers, name='stem')(x, train)
    identity = x  # of another stage the sum is not known, only the quantized map
    if self.stem and self.order == 'edmips':
      x = self.layers.activation(name='activation0')(self.layers.norm(name='norm0')(x, train), train)
    for b in range(1, self.blocks + 1):
      stride = self.stride if b == 1 else 1
      block = Block(self.features, stride, self.order, self.layers, self.convolutions, name=f'block{b}')
      total = block(x, identity, train)
      y = self.layers.norm(name=f'norm{b}')(total, train) if ORDERS[self.order].after_sum else total
      if b < self.blocks:
        x = self.layers.activation(name=f'activation{b}')(y, train)
        identity = total if ORDERS[self.order].after_sum else x
    return y


class PooledHead(nn.Module):
  """Global average pooling and one dense layer: [B, H, W, C] -> logits float32 [B, classes]."""

  num_classes: int
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    x = jnp.mean(values(x).astype(jnp.float32), axis=(1, 2))
    return self.layers.dense(self.num_classes, role='last', name='classifier')(x, train)


def _resnet(blocks, widths, num_classes, layers, width=1.0, stem='cifar', block_order='pre', convolutions=BASIC):
  features = [scaled(w, width) for w in widths]
  taps = tuple(1 + len(convolutions) * sum(blocks[: k + 1]) for k in range(len(blocks)))
  stage = functools.partial(Stage, order=block_order, layers=layers, convolutions=convolutions)
  make_stages = tuple(
    functools.partial(stage, features[k], blocks[k], 1 if k == 0 else 2, stem=stem if k == 0 else '')
    for k in range(len(blocks))
  )
  return Network(
    taps=taps,
    make_stages=make_stages,
    make_activation=layers.activation,
    make_head=functools.partial(PooledHead, num_classes, layers),
  )


def resnet18(**settings):
  """ResNet18, widths 64-128-256-512, taps at layers 5, 9, 13, 17 (He et al. 2016; CMT-KD section 4.1)."""
  return _resnet((2, 2, 2, 2), (64, 128, 256, 512), **settings)


def resnet34(**settings):
  """ResNet34, widths 64-128-256-512, taps at layers 7, 15, 27, 33 (He et al. 2016)."""
  return _resnet((3, 4, 6, 3), (64, 128, 256, 512), **settings)


def resnet50(**settings):
  """ResNet50, widths 256-512-1024-2048, taps at layers 10, 22, 40, 49 (He et al. 2016; stride in the 3x3)."""
  return _resnet((3, 4, 6, 3), (64, 128, 256, 512), convolutions=BOTTLENECK, **settings)


def resnet_cifar(depth, **settings):
  """The CIFAR ResNet of 6n + 2 layers, widths 16-32-64, one tap per stage (He et al. 2016, section 4.2)."""
  n = (depth - 2) // 6
  return _resnet((n, n, n), (16, 32, 64), **settings)
