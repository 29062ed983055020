"""Is a 2-bit student better than full precision? The recipe of configs/few_digits.py on 72 digits, on test.

It was chosen on held-out training images with five other seeds, see few_digits_search.py. Figures here are of the 355
test images, which nothing was chosen on; `minival` in the summaries is of the 1,370 held-out ones.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_recipe.py
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/few_digits_recipe.py \
           --workdir=benchmarks/results/few_digits_recipe
"""

from cmtkd_jax import config as base

ROWS = {  # {run: (title, W/A bits, changes)}
  'full_precision': (
    'single model, full precision',
    '32/32',
    dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32)),
  ),
  'single2_hwgq': ('single model, HWGQ', '2/2', dict(method=dict(name='single'), quantizer=dict(name='hwgq'))),
  'single2': ('single model, SAWB and PACT', '2/2', dict(method=dict(name='single'))),
  'constant_target': (
    'CMT-KD, beta 0.5, constant target',
    '2/2',
    dict(method=dict(cmtkd=dict(beta=0.5, stop_gradient_target=True))),
  ),
  'recipe': ('CMT-KD, beta 4, the target passes gradients', '2/2', {}),
}


def get_config(argument=''):
  config = base.load_config(__file__, '../configs/few_digits')
  config.table.title = '72 digits, ResNet8 of three times the width, 1,200 steps'
  config.table.seeds = tuple(range(20))
  config.table.baseline = 'full_precision'
  config.table.runs = {name: changes for name, (_, _, changes) in ROWS.items()}
  line = lambda name, network: (ROWS[name][0], ROWS[name][1], name, network, (None, None))
  config.table.lines = (
    *(line(name, 'student') for name in ROWS),
    ('combined teacher of the last', '4, 5, 8', 'recipe', 'combined_teacher', (None, None)),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
