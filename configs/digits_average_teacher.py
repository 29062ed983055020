"""CMT-KD's baseline on the bundled digits: a 2-bit ResNet8 taught by the average of trained 4-, 6- and 8-bit ones.

One command trains the three teachers one after the other, then the student.
Run: python -m cmtkd_jax.main --config=configs/digits_average_teacher.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'average_teacher'
  for bits in (4, 6, 8):
    config.prerequisites[f'teacher{bits}'] = dict(
      method=dict(name='single'), student=dict(weight_bits=bits, activation_bits=bits)
    )
  config.teacher_workdirs = ('{teacher4}', '{teacher6}', '{teacher8}')
  return config
