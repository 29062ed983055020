"""Deep mutual learning on the bundled digits: a 2-bit ResNet8 and peers of 4, 6 and 8 bits.

Run: python -m cmtkd_jax.main --config=configs/digits_dml.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'dml'
  return config
