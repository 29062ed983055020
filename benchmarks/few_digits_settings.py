"""Which settings change what students gain? CMT-KD and KD, a setting at a time, on the digits of few_digits_resnet8.py.

Five seeds that no other study uses show a difference of 0.8 to 2.4 points at two standard errors. CMT-KD is without its
feature loss where nothing else is said. A seed takes 7 minutes on one core of an AMD EPYC.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_settings.py
"""

from cmtkd_jax import config as base

METHOD_SETTINGS = {  # {run: (title, options of CMT-KD)}
  'cmtkd': ('CMT-KD', {}),
  'beta_0': ('beta 0, without mutual learning', dict(beta=0.0)),
  # As large as a mutual term whose target is the label: beta tau^2 = 2.
  'warm_labels': ('beta 0, labels at temperature 2, alpha 2', dict(beta=0.0, alpha=2.0, ce_temperature=2.0)),
  'beta_1': ('beta 1', dict(beta=1.0)),
  'beta_2': ('beta 2', dict(beta=2.0)),
  'beta_4': ('beta 4', dict(beta=4.0)),
  'temperature_1': ('temperature 1', dict(temperature=1.0)),
  'temperature_4': ('temperature 4', dict(temperature=4.0)),
  'target_gradient': ('the target passes gradients', dict(stop_gradient_target=False)),
  'mean_head': ('a head for each teacher', dict(combined_head='mean')),
  'high_bits': ('teachers with 8 bits', dict(teacher_bits=(8, 8, 8))),
  'low_bits': ('teachers with 4 bits', dict(teacher_bits=(4, 4, 4))),
}
FEATURE_LOSSES = {  # {run: (title, the section feature_loss)}
  'attention_05': ('attention, gamma 0.5', dict(name='attention', attention=dict(weight=0.5))),
  'attention_50': ('attention, gamma 50', dict(name='attention', attention=dict(weight=50.0))),
  'fitnet_10': ('FitNet, gamma 10', dict(name='fitnet', fitnet=dict(weight=10.0))),
}
KD_SETTINGS = {  # {run: (title, options of KD)}
  'kd': ('KD', {}),
  'kd_beta_025': ('KD, beta 0.25', dict(beta=0.25)),
  'kd_temperature_4': ('KD, temperature 4', dict(temperature=4.0)),
}
RECIPES = {  # {run: (title, changes)}, for networks alone and for CMT-KD
  'long': ('2,400 steps', dict(duration='2400 steps', eval_every='2400 steps', checkpoint_every='2400 steps')),
  'ema': ('EMA 0.99', dict(averaging=dict(name='ema', decay=0.99))),
  'sawb': ('SAWB and PACT', dict(quantizer=dict(name='sawb', sawb=dict(activation=dict(init_clip=2.0))))),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  rows = config.table.runs.to_dict()
  full_precision, single, cmtkd = (rows[name] for name in ('full_precision', 'single2', 'without_attention'))
  config.table.title = '72 digits, ResNet8, 1,200 steps: settings of CMT-KD'
  config.table.seeds = tuple(range(200, 205))
  config.table.runs = (
    {'full_precision': full_precision, 'single2': single}
    | {name: cmtkd | dict(method=dict(cmtkd=options)) for name, (_, options) in METHOD_SETTINGS.items()}
    | {name: dict(feature_loss=options) for name, (_, options) in FEATURE_LOSSES.items()}
    | {name: rows['kd'] | dict(method=dict(name='kd', kd=options)) for name, (_, options) in KD_SETTINGS.items()}
  )
  line = lambda title, bits, run, network='student': (title, bits, run, network, (None, None))
  lines = [line('single model, full precision', '32/32', 'full_precision'), line('single model', '2/2', 'single2')]
  lines += [line(title, '2/2', name) for name, (title, _) in (METHOD_SETTINGS | FEATURE_LOSSES | KD_SETTINGS).items()]
  for recipe, (title, changes) in RECIPES.items():
    kinds = {'single2': (single, '2/2'), 'cmtkd': (cmtkd, '2/2')}
    if recipe != 'sawb':
      kinds['full_precision'] = (full_precision, '32/32')
    for kind, (row, bits) in kinds.items():
      config.table.runs[f'{kind}_{recipe}'] = row | changes
      lines.append(line(f'{"CMT-KD" if kind == "cmtkd" else "single model"}, {title}', bits, f'{kind}_{recipe}'))
  config.table.runs.cmtkd_sawb.method = dict(cmtkd=dict(teacher_bits=(4, 5, 8)))  # SAWB has no 6 bits
  config.table.lines = tuple(lines)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
