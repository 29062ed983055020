"""Tables 4 and 5 of CMT-KD in small: 1- and 2-bit networks beside other quantizers, ResNet8 on 72 of the digits.

Network, data and steps are those of few_digits_resnet8.py. Rows are those of configs/table4_cifar100.py, CMT-KD without
its feature loss, and those of configs/table5_imagenet.py with LSQ. The latter start from full precision, with their
teachers, at a lower rate. Ten seeds that no other study uses show a difference of 0.8 to 1.8 points at two standard
errors. A seed takes about a quarter of an hour on one busy core of an AMD EPYC without AVX-512.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_low_bits.py
"""

from cmtkd_jax import config as base

TITLES = {
  'lq_nets': 'LQ-Nets',
  'lqw_caq': 'LQW+CAQ',
  'hwgq': 'HWGQ',
  'cmtkd_fitnet': 'CMT-KD, FitNet',
  'cmtkd': 'CMT-KD, attention',
  'without_features': 'CMT-KD without feature loss',
}
TEACHERS = {'1/2': '2, 4, 8', '2/2': '4, 6, 8'}  # bits
LSQ = {'lsq': 'LSQ', 'kd_lsq': 'LSQ, KD from full precision', 'cmtkd_lsq': 'LSQ, CMT-KD, attention'}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  table4 = base.load_config(__file__, '../configs/table4_cifar100').table.runs.to_dict()
  table5 = base.load_config(__file__, '../configs/table5_imagenet').table.runs.to_dict()
  for bits in ('w1a2', 'w2a2'):
    table4[f'without_features_{bits}'] = table4[f'cmtkd_{bits}'] | dict(feature_loss=dict(name='none'))
  table5['kd_lsq'].pop('bits')  # first and last layers as in the other rows
  sums = dict(name='lqw_caq', lqw_caq=dict(weight=dict(gradient='sum')))
  table4['lqw_caq_sums_w1a2'] = table4['lqw_caq_w1a2'] | dict(quantizer=sums)
  table5['without_features_lsq'] = table5['cmtkd_lsq'] | dict(feature_loss=dict(name='none'))
  lines = {  # run: (title, bits)
    'full_precision': ('full precision', '32/32'),
    **{f'{name}_w1a2': (title, '1/2') for name, title in TITLES.items()},
    'lqw_caq_sums_w1a2': ('LQW+CAQ, sums of gradients', '1/2'),
    **{f'{name}_w2a2': (title, '2/2') for name, title in TITLES.items()},
    **{name: (title, '2/2') for name, title in LSQ.items()},
    'without_features_lsq': ('LSQ, CMT-KD without feature loss', '2/2'),
  }
  config.table.title = '72 digits, ResNet8, 1,200 steps: 1 and 2 bits'
  config.table.seeds = tuple(range(800, 810))
  config.table.baseline = 'hwgq_w1a2'
  config.table.runs = {name: (table4 | table5)[name] for name in lines}
  config.table.lines = (
    *((title, bits, name, 'student', (None, None)) for name, (title, bits) in lines.items()),
    *(
      (f'combined teacher of {title}', TEACHERS[bits], name, 'combined_teacher', (None, None))
      for name, (title, bits) in lines.items()
      if 'CMT-KD' in title
    ),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
