"""Backbones, cut into stages at the tapped layers.

MODELS: `{name: function}` of (num_classes, layers, width, stem, block_order), which returns a `Network`.
"""

import functools

from cmtkd_jax.models import alexnet, mobilenet, resnet, vgg, wide_resnet
from cmtkd_jax.models.network import STUDENT, Network
from cmtkd_jax.models.resnet import ORDERS

# Adding a backbone: its file, one line here, its config, its test.
MODELS = {
  'resnet8': functools.partial(resnet.resnet_cifar, 8),
  'resnet20': functools.partial(resnet.resnet_cifar, 20),
  'resnet32': functools.partial(resnet.resnet_cifar, 32),
  'resnet56': functools.partial(resnet.resnet_cifar, 56),
  'resnet110': functools.partial(resnet.resnet_cifar, 110),
  'resnet18': resnet.resnet18,
  'resnet34': resnet.resnet34,
  'resnet50': resnet.resnet50,
  'alexnet': alexnet.alexnet,
  'alexnet_torchvision': alexnet.alexnet_torchvision,
  'vgg_small': vgg.vgg_small,
  'mobilenet_v2': mobilenet.mobilenet_v2,
  'wrn16_1': functools.partial(wide_resnet.wide_resnet, 16, 1),
  'wrn16_2': functools.partial(wide_resnet.wide_resnet, 16, 2),
  'wrn40_1': functools.partial(wide_resnet.wide_resnet, 40, 1),
  'wrn40_2': functools.partial(wide_resnet.wide_resnet, 40, 2),
}

__all__ = ['MODELS', 'ORDERS', 'STUDENT', 'Network']
