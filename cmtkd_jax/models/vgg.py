"""VGG-small, the network of CIFAR-10 in many papers on quantization: six 3x3 convolutions and one dense layer.

2 x 128 - pool - 2 x 256 - pool - 2 x 512 - pool - dense, with batch normalization. Stages end before each max-pool's
quantizer. Source: Zhang et al., LQ-Nets, ECCV 2018, section 5.
"""

import functools

import flax.linen as nn

from cmtkd_jax.models.conv_stage import ConvSpec, ConvStage
from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.network import Network, check_form, scaled


class FlatHead(nn.Module):
  """One dense layer on all positions of the last map: [B, H, W, C] -> logits float32 [B, classes]."""

  num_classes: int
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    return self.layers.dense(self.num_classes, role='last', name='classifier')(x, train)


def vgg_small(num_classes, layers, width=1.0, stem='cifar', block_order='pre'):
  """VGG-small, widths 128-256-512, taps at layers 2, 4, 6 (Zhang et al. 2018, section 5); for 32x32 images."""
  check_form('vgg_small', 'stem', stem, ('cifar',))
  check_form('vgg_small', 'block_order', block_order, ('pre',))
  features = [scaled(w, width) for w in (128, 256, 512)]
  convs = [(ConvSpec(f, 3, role='first' if k == 0 else 'body'), ConvSpec(f, 3)) for k, f in enumerate(features)]
  make_stages = tuple(functools.partial(ConvStage, stage, (2, 2), 'use 8 or more', layers) for stage in convs)
  return Network(
    taps=(2, 4, 6),
    make_stages=make_stages,
    make_activation=layers.activation,
    make_head=functools.partial(FlatHead, num_classes, layers),
  )
