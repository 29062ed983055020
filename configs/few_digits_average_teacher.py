"""A 2-bit student of an ensemble, with CutMix: ResNet8, 72 of the bundled digits.

The best 2-bit student of these images that we know. Five runs: teachers in full precision and with 8 and 6 bits, and a
ResNet20, then a student that starts from full precision with learned steps (LSQ). Expected on the other 1,370 images
after the last step: 95.4 % (20 seeds; benchmarks/few_digits_cutmix.py: full precision 94.8 % after 1,200 steps, the
2-bit network alone 93.0 %). Four and a half minutes on two cores of an AMD EPYC without AVX-512.
Run: python -m cmtkd_jax.main --config=configs/few_digits_average_teacher.py
"""

from cmtkd_jax import config as base

TEACHERS = {'full': (32, 'resnet8'), 'single8': (8, 'resnet8'), 'single6': (6, 'resnet8'), 'deep': (32, 'resnet20')}


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8')
  config.data.minival, config.data.cutmix = 0.95, 1.0
  config.batch_size, config.optimizer.warmup = 24, '50 steps'
  config.log_every = '300 steps'
  for name, (bits, network) in TEACHERS.items():
    config.prerequisites[name] = dict(
      method=dict(name='single'),
      student=dict(weight_bits=bits, activation_bits=bits),
      model=dict(name=network),
      quantizer=dict(name='hwgq'),
      optimizer=dict(learning_rate=0.1),
      **dict.fromkeys(('duration', 'eval_every', 'checkpoint_every'), '1200 steps'),
    )
  config.method.name, config.method.average_teacher.beta = 'average_teacher', 4.0
  config.teacher_workdirs = tuple(f'{{{name}}}' for name in TEACHERS)
  config.init_from, config.quantizer.name = 'student={full}', 'lsq'
  config.optimizer.learning_rate = 0.05
  config.duration = config.eval_every = config.checkpoint_every = '2400 steps'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
