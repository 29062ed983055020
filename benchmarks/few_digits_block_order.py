"""Where batch normalization and quantizer lie in a block: ResNet8 on 72 of the digits.

Network, data and steps of few_digits_resnet8.py, with each `model.block_order`: in full precision, with 2 bits alone,
and with CMT-KD without attention. Ten seeds that no other study uses show a difference of 0.8 to 1.8 points at two
standard errors. A single network takes 10 seconds on one core of an AMD EPYC, one with teachers 30.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_block_order.py
"""

from cmtkd_jax import config as base
from cmtkd_jax.models import ORDERS

SYSTEMS = {  # row of few_digits_resnet8.py: (name here, title, bits)
  'full_precision': ('full', 'full precision', '32/32'),
  'single2': ('alone', '2 bits alone', '2/2'),
  'without_attention': ('cmtkd', 'CMT-KD without attention', '2/2'),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  rows = config.table.runs.to_dict()
  config.table.title = '72 digits, ResNet8, 1,200 steps: orders of a block'
  config.table.seeds = tuple(range(900, 910))
  config.table.baseline = 'alone_pre'
  config.table.runs, lines = {}, []
  for row, (name, title, bits) in SYSTEMS.items():
    for order in ORDERS:
      config.table.runs[f'{name}_{order}'] = rows[row] | dict(model=dict(block_order=order))
      lines.append((f'{title}, {order}', bits, f'{name}_{order}', 'student', (None, None)))
  combined = [(f'combined teacher, {order}', '4, 6, 8', f'cmtkd_{order}', 'combined_teacher') for order in ORDERS]
  config.table.lines = (*lines, *((*line, (None, None)) for line in combined))
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
