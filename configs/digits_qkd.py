"""QKD on the bundled digits: a 2-bit ResNet8 and a full-precision teacher in three phases.

A full-precision network first; then self-studying, co-studying and tutoring, a run each.
Run: python -m cmtkd_jax.main --config=configs/digits_qkd.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'qkd'
  config.method.qkd.phase = 'tutoring'
  config.init_from = '{co_studying}'
  config.prerequisites.full_precision = dict(
    method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32)
  )
  config.prerequisites.self_studying = dict(method=dict(qkd=dict(phase='self_studying')), init_from='{full_precision}')
  config.prerequisites.co_studying = dict(
    method=dict(qkd=dict(phase='co_studying')), init_from='student={self_studying},teacher={full_precision}'
  )
  return config
