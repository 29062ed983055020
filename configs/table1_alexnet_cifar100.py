"""Table 1 of CMT-KD: AlexNet on CIFAR-100, the ablation. Not run here yet; for an accelerator.

Run: python -m cmtkd_jax.main --mode=table --config=configs/table1_alexnet_cifar100.py --config.data.dir=TFDS_DIR
One row: --config=configs/table1_alexnet_cifar100.py:kd. Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar100_alexnet')
  single = lambda bits: dict(method=dict(name='single'), student=dict(weight_bits=bits, activation_bits=bits))
  config.table.title = 'Table 1: AlexNet, CIFAR-100'
  config.table.runs = dict(
    full_precision=single(32),
    single8=single(8),
    single6=single(6),
    single4=single(4),
    single2=single(2),
    kd=dict(method=dict(name='kd'), teacher_workdirs=('{full_precision}',)),
    average_teacher=dict(method=dict(name='average_teacher'), teacher_workdirs=('{single4}', '{single6}', '{single8}')),
    without_attention=dict(feature_loss=dict(name='none')),
    without_mutual_learning=dict(method=dict(cmtkd=dict(beta=0.0))),
    cmtkd=dict(),
  )
  config.table.lines = (  # (top-1, top-5) as published
    ('single model, full precision', '32/32', 'full_precision', 'student', (72.4, 91.3)),
    ('single model', '8/8', 'single8', 'student', (70.9, 90.9)),
    ('single model', '6/6', 'single6', 'student', (70.8, 90.8)),
    ('single model', '4/4', 'single4', 'student', (70.7, 90.8)),
    ('single model', '2/2', 'single2', 'student', (69.4, 90.5)),
    ('KD from full precision', '2/2', 'kd', 'student', (71.3, 91.6)),
    ('average teacher', '2/2', 'average_teacher', 'student', (71.0, 91.6)),
    ('CMT-KD without attention', '2/2', 'without_attention', 'student', (71.8, 91.8)),
    ('CMT-KD without mutual learning', '2/2', 'without_mutual_learning', 'student', (70.9, 91.3)),
    ('CMT-KD', '2/2', 'cmtkd', 'student', (72.1, 91.9)),
    ('combined teacher', '4, 6, 8', 'cmtkd', 'combined_teacher', (72.3, 91.7)),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 67, classes=100))
