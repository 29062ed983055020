"""Knowledge distillation on the bundled digits: a 2-bit ResNet8 taught by a trained full-precision one.

One command trains the teacher, then the student; the teacher stays in runs/digits_kd/teacher.
Run: python -m cmtkd_jax.main --config=configs/digits_kd.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name = 'kd'
  config.prerequisites.teacher = dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32))
  config.teacher_workdirs = ('{teacher}',)
  return config
