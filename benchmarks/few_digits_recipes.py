"""What each recipe adds to a 2-bit network alone and to CMT-KD's student, on the digits of few_digits_resnet8.py.

The recipes of recipes_resnet8.py, one change at a time, with lengths for 1,200 steps and sizes for images of 8x8;
settings were not searched. CMT-KD is without its feature loss, but in the two rows named attention. What helps is also
given to full precision. Five seeds that no other study uses show a difference of 0.5 to 2 points at two standard
errors. A seed takes 10 minutes on one core of an AMD EPYC.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_recipes.py
"""

from cmtkd_jax import config as base

RECIPES = {  # {name: (title, changes)}
  'plain': ('as it is', {}),
  'label_smoothing': ('label smoothing 0.1', dict(label_smoothing=0.1)),
  'mixup': ('mixup 0.2', dict(data=dict(mixup=0.2))),
  'cutmix': ('CutMix 1', dict(data=dict(cutmix=1.0))),
  'trivial_augment': ('TrivialAugment', dict(data=dict(trivial_augment=True))),
  'random_erasing': ('random erasing 0.25', dict(data=dict(random_erasing=0.25))),
  'cutout': ('cutout 3', dict(data=dict(cutout=3))),
  'ema': ('EMA 0.99', dict(averaging=dict(name='ema', decay=0.99))),
  'swa': (
    'SWA of the last 300 steps, statistics measured again',
    dict(averaging=dict(name='swa', start='900 steps', every='15 steps'), bn_reestimation=30),
  ),
  'bn_reestimation': ('statistics measured again', dict(bn_reestimation=30)),
  'freezing': ('oscillating weights frozen', dict(freezing=dict(threshold=0.02))),
  'adamw': (
    'AdamW',
    dict(optimizer=dict(name='adamw', learning_rate=0.002, weight_decay=0.01, weight_decay_low_bits=0.0025)),
  ),
}
ALSO_FULL_PRECISION = ('plain', 'mixup', 'cutmix', 'random_erasing', 'cutout')
SCHEDULES = {  # of CMT-KD; the second has a feature loss
  'beta_warmup': ('beta rises for 600 steps', dict(beta_schedule=dict(warmup='600 steps'))),
  'attention': ('attention', {}),
  'gamma_warmup': ('attention, gamma rises for 600 steps', dict(gamma_schedule=dict(warmup='600 steps'))),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  rows = config.table.runs.to_dict()
  single, cmtkd = rows['single2'], rows['without_attention']
  config.table.title = '72 digits, ResNet8, 1,200 steps: recipes, one at a time'
  config.table.seeds = tuple(range(300, 305))
  config.table.baseline = 'single_plain'
  config.table.runs = (
    {f'single_{name}': single | changes for name, (_, changes) in RECIPES.items()}
    | {f'cmtkd_{name}': cmtkd | changes for name, (_, changes) in RECIPES.items()}
    | {f'full_precision_{name}': rows['full_precision'] | RECIPES[name][1] for name in ALSO_FULL_PRECISION}
    | {f'cmtkd_{name}': (cmtkd if name == 'beta_warmup' else {}) | changes for name, (_, changes) in SCHEDULES.items()}
  )
  line = lambda title, run, bits='2/2': (title, bits, run, 'student', (None, None))
  config.table.lines = (
    *(line(f'2-bit network alone, {title}', f'single_{name}') for name, (title, _) in RECIPES.items()),
    *(line(f'full precision, {RECIPES[name][0]}', f'full_precision_{name}', '32/32') for name in ALSO_FULL_PRECISION),
    *(line(f'CMT-KD, {title}', f'cmtkd_{name}') for name, (title, _) in (RECIPES | SCHEDULES).items()),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
