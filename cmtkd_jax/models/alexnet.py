"""AlexNet with batch normalization after every convolution and dense layer (HWGQ, LQ-Nets): no groups, no dropout.

Stages end at layers 1, 2 and 5, the last convolution before each max-pool (CMT-KD section 4.1 taps "the last
convolution of each block").
"""

import functools

import flax.linen as nn

from cmtkd_jax.models.conv_stage import ConvSpec, ConvStage
from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.network import Network, check_form, scaled

# First layer: (kernel, stride, padding); pooling: (window, stride).
FORMS = {
  'imagenet': ((11, 4, 0), (3, 2)),  # 227x227 input, 6x6 before the dense layers
  'cifar': ((5, 1, 2), (2, 2)),  # 32x32 input, 4x4 before the dense layers
}


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
  check_form('alexnet', 'block_order', block_order, ('pre',))  # it has no residual blocks
  (kernel, stride, padding), pool = FORMS[stem]
  padding = padding or first_padding
  convs = (
    (ConvSpec(scaled(widths[0], width), kernel, stride, padding, role='first'),),
    (ConvSpec(scaled(widths[1], width), kernel=5),),
    tuple(ConvSpec(scaled(features, width), kernel=3) for features in widths[2:]),
  )
  smallest = "use 227, or 32 with config.model.stem='cifar'"
  make_stages = tuple(functools.partial(ConvStage, stage_convs, pool, smallest, layers) for stage_convs in convs)
  return Network(
    taps=(1, 2, 5),
    make_stages=make_stages,
    make_activation=layers.activation,
    make_head=functools.partial(DenseHead, scaled(4096, width), num_classes, layers),
  )
