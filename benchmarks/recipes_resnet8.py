"""What each recipe adds to a 2-bit network alone and to CMT-KD's student: ResNet8 on ten classes of CIFAR-100.

Network and data of benchmarks/cifar10c_resnet8.py, 20 epochs. A single network takes about 4 minutes on one core of an
Intel Xeon, CMT-KD 6 on one of an AMD EPYC. Every recipe is one change, with settings of its source or common ones,
which were not searched.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/recipes_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/recipes_resnet8.py \
           --workdir=benchmarks/results/recipes_resnet8
"""

from cmtkd_jax import config as base

RECIPES = {
  'plain': ('as it is', {}),
  'label_smoothing': ('label smoothing 0.1', dict(label_smoothing=0.1)),
  'mixup': ('mixup 0.2', dict(data=dict(mixup=0.2))),
  'cutmix': ('CutMix 1', dict(data=dict(cutmix=1.0))),
  'trivial_augment': ('TrivialAugment', dict(data=dict(trivial_augment=True))),
  'random_erasing': ('random erasing 0.25', dict(data=dict(random_erasing=0.25))),
  'cutout': ('cutout 8', dict(data=dict(cutout=8))),
  'ema': ('EMA 0.99', dict(averaging=dict(name='ema', decay=0.99))),
  'swa': (
    'SWA of the last 5 epochs, statistics measured again',
    dict(averaging=dict(name='swa', start='15 epochs', every='1 epochs'), bn_reestimation=30),
  ),
  'bn_reestimation': ('statistics measured again', dict(bn_reestimation=30)),
  'freezing': ('oscillating weights frozen', dict(freezing=dict(threshold=0.02))),
  'adamw': ('AdamW', dict(optimizer=dict(name='adamw', learning_rate=0.002, weight_decay=0.01))),
}
MORE = {
  'cmtkd_beta_warmup': ('beta rises for 10 epochs', dict(beta_schedule=dict(warmup='10 epochs'))),
  'cmtkd_gamma_warmup': ('gamma rises for 10 epochs', dict(gamma_schedule=dict(warmup='10 epochs'))),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar10c_resnet8')
  config.duration = '20 epochs'
  single = dict(method=dict(name='single'))
  runs = {f'single_{name}': single | changes for name, (_, changes) in RECIPES.items()}
  runs |= {f'cmtkd_{name}': changes for name, (_, changes) in RECIPES.items()}
  runs |= {name: changes for name, (_, changes) in MORE.items()}
  for run in (runs['single_adamw'], runs['cmtkd_adamw']):
    run['optimizer']['weight_decay_low_bits'] = 0.0025  # a quarter, as of SGD
  line = lambda title, run, network: (title, '2/2' if network == 'student' else '4, 6, 8', run, network, (None, None))
  config.table.title = 'Recipes, one at a time: ten classes of CIFAR-100, ResNet8, 20 epochs'
  config.table.runs, config.table.baseline = runs, 'single_plain'
  config.table.lines = (
    *(line(f'2-bit network alone, {title}', f'single_{name}', 'student') for name, (title, _) in RECIPES.items()),
    *(line(f'CMT-KD, {title}', f'cmtkd_{name}', 'student') for name, (title, _) in RECIPES.items()),
    *(line(f'CMT-KD, {title}', name, 'student') for name, (title, _) in MORE.items()),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
