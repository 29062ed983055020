"""CTKD on CIFAR-100: WRN-16-2 taught by a scratch WRN-40-2 beside it and an expert WRN-40-2 trained before.

Published: student alone 72.27, teacher 75.42, CTKD 74.70 (as quoted by Gou et al.'s survey). Not run here yet.
Images are normalized by mean and deviation of CIFAR-10, as in the published code.
Run: python -m cmtkd_jax.main --config=configs/ctkd_cifar100.py --config.data.dir=TFDS_DIR
Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'ctkd_cifar10')
  config.data.name = 'cifar100'
  config.model.name = 'wrn16_2'
  config.method.ctkd.teacher_model = 'wrn40_2'
  config.prerequisites.expert.model.name = 'wrn40_2'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32, classes=100))
