"""A 2-bit student of CMT-KD as good as full precision, with CutMix: ResNet8, 72 of the bundled digits.

Two runs: the network in full precision, then CMT-KD without feature loss, whose student starts from it with learned
steps (LSQ) and whose teachers (4, 6, 8 bits) start from scratch. Expected on the other 1,370 images after the last
step: student 95.1 %, combined teacher 96.2 % (20 seeds; benchmarks/few_digits_cutmix.py: full precision 94.8 %, the
2-bit network alone 93.0 %). Three minutes on two cores of an AMD EPYC without AVX-512.
Run: python -m cmtkd_jax.main --config=configs/few_digits_cmtkd.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8')
  config.data.minival, config.data.cutmix = 0.95, 1.0
  config.batch_size, config.optimizer.warmup = 24, '50 steps'
  config.duration = config.eval_every = config.checkpoint_every = '1200 steps'
  config.log_every = '300 steps'
  config.prerequisites.full = dict(
    method=dict(name='single'),
    student=dict(weight_bits=32, activation_bits=32),
    quantizer=dict(name='hwgq'),
    optimizer=dict(learning_rate=0.1),
  )
  config.method.cmtkd.beta, config.feature_loss.name = 4.0, 'none'
  config.init_from, config.quantizer.name, config.optimizer.learning_rate = 'student={full}', 'lsq', 0.05
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
