"""SPEQ on the bundled digits: a 2-bit ResNet8, its own teacher at activations of 2 or 8 bits drawn for each layer.

Run: python -m cmtkd_jax.main --config=configs/digits_speq.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'speq'
  return config
