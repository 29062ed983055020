"""2-bit students of CMT-KD and of an ensemble against full precision: 72 digits, ResNet8, CutMix.

Network and data of few_digits_resnet8.py. Trained networks have all 72 images right, so their predictions may say
little more than the labels. With CutMix every batch is new, and predictions differ from labels (as in Beyer et al.,
"Knowledge distillation: a good teacher is patient and consistent", CVPR 2022). The student starts from full precision
with learned steps (LSQ), in 1,200 or 2,400 steps more. It learns from an ensemble of full precision and the networks
with 8 and 6 bits, in one row also of a ResNet20, or in CMT-KD without feature loss. Full precision gets more steps,
too, in one schedule or two, fewer steps, and other learning rates. Settings were chosen with seed 600 (learning rates,
weights, temperatures, steps, members of the ensemble; for CMT-KD also teachers, attention, gradient of the target),
which is not used here. Two rows are recipes, too: configs/few_digits_average_teacher.py and few_digits_cmtkd.py. A seed
takes about 11 minutes on one core of an AMD EPYC without AVX-512.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_cutmix.py
"""

from cmtkd_jax import config as base

ENSEMBLE = ('full', 'single8', 'single6')


def lasting(steps):
  return dict.fromkeys(('duration', 'eval_every', 'checkpoint_every'), f'{steps} steps')


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  config.data.cutmix = 1.0
  rows = config.table.runs.to_dict()
  full = rows['full_precision']
  continued = lambda rate: dict(init_from='student={full}', optimizer=dict(learning_rate=rate))
  lsq = continued(0.05) | dict(quantizer=dict(name='lsq'))

  def distilled(ensemble=ENSEMBLE, **settings):
    teachers = dict(teacher_workdirs=tuple(f'{{{name}}}' for name in ensemble))
    return lsq | teachers | dict(method=dict(name='average_teacher', average_teacher=settings))

  lines = {  # run: (title, bits, run's changes)
    'full': ('full precision', '32/32', full),
    **{f'full_{n}': (f'full precision, {n:,} steps', '32/32', full | lasting(n)) for n in (600, 900, 1600, 2400, 3600)},
    'full_rate_half': ('full precision, learning rate 0.05', '32/32', full | dict(optimizer=dict(learning_rate=0.05))),
    'full_rate_double': ('full precision, learning rate 0.2', '32/32', full | dict(optimizer=dict(learning_rate=0.2))),
    'full_continued': ('full precision, 1,200 steps more, learning rate 0.01', '32/32', full | continued(0.01)),
    'full_continued_5': ('full precision, 1,200 steps more, learning rate 0.05', '32/32', full | continued(0.05)),
    'single8': ('8 bits alone', '8/8', rows['single8']),
    'single6': ('6 bits alone', '6/6', rows['single6']),
    'deep': ('ResNet20, full precision', '32/32', rows['full_precision_deep']),
    'lsq': ('LSQ from full precision, alone', '2/2', rows['single2'] | lsq),
    'imitation': ('LSQ from full precision, the ensemble without labels', '2/2', distilled(alpha=0.0)),
    'average': ('LSQ from full precision, ensemble with weight 4', '2/2', distilled(beta=4.0)),
    'average_deep': (
      'LSQ from full precision, 2,400 steps, ensemble and ResNet20 with weight 4',
      '2/2',
      distilled((*ENSEMBLE, 'deep'), beta=4.0) | lasting(2400),
    ),
    'cmtkd': (
      'LSQ from full precision, CMT-KD with weight 4',
      '2/2',
      rows['without_attention'] | lsq | dict(method=dict(name='cmtkd', cmtkd=dict(beta=4.0))),
    ),
  }
  config.table.title = '72 digits, ResNet8, CutMix: a 2-bit student against full precision'
  config.table.seeds = tuple(range(700, 720))
  config.table.runs = {name: run for name, (*_, run) in lines.items()}
  config.table.baseline = 'full'
  config.table.lines = (
    *((title, bits, name, 'student', (None, None)) for name, (title, bits, _) in lines.items()),
    ('ensemble of full precision, 8 and 6 bits', '32, 8, 6', 'average', 'combined_teacher', (None, None)),
    ('the same and ResNet20', '32, 8, 6, 32', 'average_deep', 'combined_teacher', (None, None)),
    ('combined teacher of CMT-KD', '4, 6, 8', 'cmtkd', 'combined_teacher', (None, None)),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
