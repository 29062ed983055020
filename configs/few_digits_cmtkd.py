"""A 2-bit student of CMT-KD as good as full precision, with CutMix: ResNet8, 72 of the bundled digits.

Two runs: the network in full precision, then CMT-KD without feature loss, whose student starts from it with learned
steps (LSQ) and whose teachers (4, 6, 8 bits) start from scratch. Expected on the other 1,370 images after the last
step: student 95.1 %, combined teacher 96.2 % (20 seeds; benchmarks/few_digits_cutmix.py: full precision 94.8 %, the
2-bit network alone 93.0 %). Three minutes on two cores of an AMD EPYC without AVX-512.
Run: python -m cmtkd_jax.main --config=configs/few_digits_cmtkd.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_average_teacher')
  full = config.prerequisites.full
  config.prerequisites = dict(full=full.to_dict() | dict(feature_loss=dict(name='attention')))
  config.teacher_workdirs, config.method.average_teacher.beta = (), 1.0
  config.method.name, config.method.cmtkd.beta, config.feature_loss.name = 'cmtkd', 4.0, 'none'
  config.duration = config.eval_every = config.checkpoint_every = '1200 steps'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
