"""Progressive, two-stage, guided training on the bundled digits (PQ + TS + Guided): a 2-bit ResNet8.

From full precision over 8 and 4 to 2 bits; at each width the weights first, then the activations too; at every stage
the low-precision and the full-precision network guide each other.
Run: python -m cmtkd_jax.main --config=configs/digits_guided.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8', argument)
  config.method.name, before = 'guided', 'full_precision'
  config.prerequisites.full_precision = dict(
    method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32)
  )
  for weights, activations in ((8, 32), (8, 8), (4, 8), (4, 4), (2, 4)):
    name = f'w{weights}a{activations}'
    config.prerequisites[name] = dict(
      student=dict(weight_bits=weights, activation_bits=activations), init_from=f'{{{before}}}'
    )
    before = name
  config.init_from = f'{{{before}}}'
  return config
