"""KDCL on the bundled digits: a 2-bit ResNet8 and peers of 4, 6 and 8 bits, each with its own augmentation.

The ensemble is one of naive, linear, min_logit, general; the last is weighted on a held-out slice (data.minival).
Run: python -m cmtkd_jax.main --config=configs/digits_kdcl.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'kdcl'
  config.method.kdcl.ensemble = 'min_logit'
  return config
