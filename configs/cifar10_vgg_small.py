"""CMT-KD on CIFAR-10 with VGG-small, the network of many papers on quantization.

The settings are those of `cifar100_resnet18.py`; the paper has no such row, and it has not been run here yet.
Run: python -m cmtkd_jax.main --config=configs/cifar10_vgg_small.py --config.data.dir=TFDS_DIR
Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar100_resnet18')
  config.data.name = 'cifar10'
  config.data.mean = (0.491, 0.482, 0.447)
  config.data.std = (0.247, 0.243, 0.262)
  config.model.name = 'vgg_small'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
