"""Does a recipe make a 2-bit student of 72 digits better than full precision? A search in two passes, which found none.

First pass: one seed, a change at a time, of the 2-bit network alone, of CMT-KD whose target passes gradients, and of
other methods. Second pass (argument `closer`): what was best there, combined, with five other seeds. The best of these
(SAWB and PACT, beta 4) was tried with three times the width and ten seeds more. benchmarks/results/few_digits_search
has the figures.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_search.py[:closer]
       python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_search.py:closer --config.model.width=3 \
           --config.table.seeds='(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)' \
           --config.table.only="('full_precision', 'cmtkd_beta_4_sawb')" --workdir=runs/width3
"""

from cmtkd_jax import config as base

SAWB = dict(name='sawb', sawb=dict(activation=dict(init_clip=2.0)))
ALONE = {  # {run: changes}, of the 2-bit network alone
  'lsq': dict(quantizer=dict(name='lsq')),
  'lsq_plus': dict(quantizer=dict(name='lsq_plus')),
  'qil': dict(quantizer=dict(name='qil')),
  'dorefa': dict(quantizer=dict(name='dorefa')),
  'ewgs': dict(quantizer=dict(name='ewgs')),
  'sawb': dict(quantizer=SAWB),
  'label_smoothing': dict(label_smoothing=0.1),
  'lr_05': dict(optimizer=dict(learning_rate=0.05)),
  'lr_2': dict(optimizer=dict(learning_rate=0.2)),
  'decay_1e4': dict(optimizer=dict(weight_decay_low_bits=1e-4)),
  'decay_5e4': dict(optimizer=dict(weight_decay_low_bits=5e-4)),
  'decay_2e3': dict(optimizer=dict(weight_decay_low_bits=2e-3)),
  'pretrained': dict(init_from='{full_precision}'),
  'adamw': dict(optimizer=dict(name='adamw', learning_rate=0.003)),
  'clipped': dict(optimizer=dict(grad_clip_norm=1.0)),
}
FULL_PRECISION = {  # {run: changes}, of full precision
  'label_smoothing': dict(label_smoothing=0.1),
  'decay_5e4': dict(optimizer=dict(weight_decay=5e-4)),
  'decay_2e3': dict(optimizer=dict(weight_decay=2e-3)),
}
LONG = dict(duration='2400 steps', eval_every='2400 steps', checkpoint_every='2400 steps')
CMTKD = {  # {run: (options of CMT-KD, changes)}, of CMT-KD whose target passes gradients
  'target': ({}, {}),
  'sawb': (dict(teacher_bits=(4, 5, 8)), dict(quantizer=SAWB)),
  'lsq': ({}, ALONE['lsq']),
  'label_smoothing': ({}, ALONE['label_smoothing']),
  'decay_5e4': ({}, ALONE['decay_5e4']),
  'lr_05': ({}, ALONE['lr_05']),
  'lr_2': ({}, ALONE['lr_2']),
  'beta_025': (dict(beta=0.25), {}),
  'beta_1': (dict(beta=1.0), {}),
  'beta_2': (dict(beta=2.0), {}),
  'temperature_1': (dict(temperature=1.0), {}),
  'temperature_4': (dict(temperature=4.0), {}),
  'two_teachers': (dict(teacher_bits=(4, 8)), {}),
  'one_teacher': (dict(teacher_bits=(8,)), {}),
  'high_bits': (dict(teacher_bits=(8, 8, 8)), {}),
  'five_teachers': (dict(teacher_bits=(3, 4, 5, 6, 8)), {}),
  'attention': ({}, dict(feature_loss=dict(name='attention'))),
  'fitnet': ({}, dict(feature_loss=dict(name='fitnet'))),
  'clipped': ({}, ALONE['clipped']),
  'pretrained': ({}, ALONE['pretrained']),
  'long': ({}, LONG),
}
CLOSER = {  # the same, of the second pass
  'beta_2': CMTKD['beta_2'],
  'beta_4': (dict(beta=4.0), {}),
  'beta_8': (dict(beta=8.0), {}),
  'beta_4_temperature_1': (dict(beta=4.0, temperature=1.0), {}),
  'beta_1_temperature_4': (dict(beta=1.0, temperature=4.0), {}),
  'beta_2_sawb': (dict(beta=2.0, teacher_bits=(4, 5, 8)), dict(quantizer=SAWB)),
  'beta_4_sawb': (dict(beta=4.0, teacher_bits=(4, 5, 8)), dict(quantizer=SAWB)),
  'beta_2_two_teachers': (dict(beta=2.0, teacher_bits=(4, 8)), {}),
  'beta_4_two_teachers': (dict(beta=4.0, teacher_bits=(4, 8)), {}),
  'beta_2_attention': (dict(beta=2.0), dict(feature_loss=dict(name='attention'))),
  'beta_2_lr_2': (dict(beta=2.0), ALONE['lr_2']),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  rows = config.table.runs.to_dict()
  first_pass(config, rows)
  return base.apply_argument(
    config, argument, closer=lambda c: second_pass(c, rows), smoke=lambda c: base.smoke(c, 8, channels=1)
  )


def first_pass(config, rows):
  alone = {f'single2_{name}': merged(rows['single2'], changes) for name, changes in ALONE.items()}
  alone |= {f'full_precision_{name}': merged(rows['full_precision'], new) for name, new in FULL_PRECISION.items()}
  others = {f'kd_{name}': merged(rows['kd'], dict(logit_loss=dict(name=name))) for name in ('dist', 'dkd')}
  for run, name, options in (('dml', 'dml', {}), ('dml_8bit', 'dml', dict(peer_bits=(8,))), ('kdcl', 'kdcl', {})):
    others[run] = merged(rows['single2'], dict(method={'name': name, name: options}))
  fill(config, 'first', (300,), rows, {'cmtkd': rows['without_attention']} | cmtkd(rows, CMTKD) | alone | others)


def second_pass(config, rows):
  alone = {'single2_sawb': merged(rows['single2'], ALONE['sawb'])}
  fill(config, 'second', range(301, 306), rows, alone | cmtkd(rows, CLOSER))


def cmtkd(rows, table):
  """Runs of CMT-KD whose target passes gradients."""
  method = lambda options: dict(method=dict(cmtkd=dict(stop_gradient_target=False) | options))
  return {
    f'cmtkd_{name}': merged(rows['without_attention'], method(options) | changes)
    for name, (options, changes) in table.items()
  }


def fill(config, word, seeds, rows, runs):
  config.table.title = f'72 digits, ResNet8: search for a recipe, {word} pass'
  config.table.seeds = tuple(seeds)
  config.table.runs = {name: rows[name] for name in ('full_precision', 'single2')} | runs
  bits = lambda run: '32/32' if run.startswith('full_precision') else '2/2'
  config.table.lines = tuple((run, bits(run), run, 'student', (None, None)) for run in config.table.runs)


def merged(row, changes):
  """Returns a run's changes with more of them."""
  inner = {key: merged(row[key], value) for key, value in changes.items() if isinstance(row.get(key), dict)}
  return row | changes | inner
