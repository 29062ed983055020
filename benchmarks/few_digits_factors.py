"""Why does CMT-KD's student gain two points in few_digits_cutmix.py? 72 digits, ResNet8, one change at a time.

There, CMT-KD has no feature loss and weight 4, images are mixed (CutMix), and the 2-bit student has learned steps (LSQ)
and starts from full precision. Here each of the five is undone by itself, and CutMix with the weight. Where a change
concerns the 2-bit network alone, it is made there, too: the gain is CMT-KD's student minus that network. Ten seeds that
no other study uses. A seed takes about 15 minutes on one busy core of an AMD EPYC without AVX-512.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_factors.py
"""

from cmtkd_jax import config as base

WITHOUT = {  # change: (title, settings of both rows)
  '': ('CutMix, LSQ from full precision', {}),
  'plain_': ('no CutMix, LSQ from full precision', dict(data=dict(cutmix=0.0), init_from='student={plain_full}')),
  'hwgq_': ('CutMix, HWGQ from full precision', dict(quantizer=dict(name='hwgq'))),
  'scratch_': ('CutMix, LSQ from scratch', dict(init_from='')),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_cutmix')
  rows = config.table.runs.to_dict()
  lines = {  # run: (title, bits, run's changes)
    'full': ('full precision, CutMix', '32/32', rows['full']),
    'plain_full': ('full precision, no CutMix', '32/32', rows['full'] | dict(data=dict(cutmix=0.0))),
  }
  for name, (title, settings) in WITHOUT.items():
    lines[f'{name}alone'] = (title, '2/2', rows['lsq'] | settings)
    lines[f'{name}cmtkd'] = (f'{title}, CMT-KD', '2/2', rows['cmtkd'] | settings)
  weight = dict(method=dict(name='cmtkd', cmtkd=dict(beta=1.0)))
  attention = dict(feature_loss=dict(name='attention'))
  for name, (title, settings) in {
    'weight_1': ('CutMix, LSQ from full precision, CMT-KD with weight 1', weight),
    'plain_weight_1': ('no CutMix, LSQ from full precision, CMT-KD with weight 1', WITHOUT['plain_'][1] | weight),
    'attention': ('CutMix, LSQ from full precision, CMT-KD with attention', attention),
  }.items():
    lines[name] = (title, '2/2', rows['cmtkd'] | settings)
  config.table.title = '72 digits, ResNet8: what CMT-KD gains, one change at a time'
  config.table.seeds = tuple(range(720, 730))
  config.table.runs = {name: run for name, (*_, run) in lines.items()}
  config.table.baseline = 'alone'
  config.table.lines = (
    *((title, bits, name, 'student', (None, None)) for name, (title, bits, _) in lines.items()),
    *(
      (f'combined teacher: {title}', '4, 6, 8', name, 'combined_teacher', (None, None))
      for name, (title, *_) in lines.items()
      if 'CMT-KD' in title
    ),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
