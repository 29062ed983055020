"""CTKD on SVHN (cropped digits), without augmentation: WRN-16-1, scratch and expert WRN-40-1.

Published figures are not at hand. Not run here yet.
Run: python -m cmtkd_jax.main --config=configs/ctkd_svhn.py --config.data.dir=TFDS_DIR
Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'ctkd_cifar10')
  config.data.name = 'svhn_cropped'
  config.data.augment = 'none'
  config.data.mean = config.data.std = (0.5, 0.5, 0.5)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
