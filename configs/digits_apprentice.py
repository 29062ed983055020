"""Apprentice on the bundled digits, scheme C: a 2-bit ResNet8 that starts from its trained full-precision teacher.

Scheme A (both from scratch): --config.method.apprentice.scheme=A --config.teacher_workdirs='()' --config.init_from=''.
Run: python -m cmtkd_jax.main --config=configs/digits_apprentice.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'apprentice'
  config.method.apprentice.scheme = 'C'
  config.prerequisites.teacher = dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32))
  config.teacher_workdirs = ('{teacher}',)
  config.init_from = '{teacher}'
  return config
