"""Every quantizer as a 2-bit single model (xnor: 1 bit): ResNet8 on ten classes of CIFAR-100 at 32x32, for a CPU.

Network, data and epochs of benchmarks/cifar10c_resnet8.py; about 2 minutes a run on one core.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/quantizers_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/quantizers_resnet8.py \
           --workdir=benchmarks/results/quantizers_resnet8
"""

from cmtkd_jax import config as base

# Of weights, and of activations: ternary weights have no activations of their own and read HWGQ's.
QUANTIZERS = {
  'hwgq': 'HWGQ, published step',
  'lsq': 'LSQ',
  'lsq_plus': 'LSQ+',
  'dorefa': 'DoReFa',
  'pact': 'PACT, DoReFa weights',
  'sawb': 'PACT, SAWB weights',
  'qil': 'QIL',
  'lq_nets': 'LQ-Nets',
  'ewgs': 'EWGS',
  'n2uq': 'N2UQ',
  'apot': 'APoT',
  'lqw_caq': 'LQW+CAQ, as its abstract reads',
  'twn': 'TWN weights, HWGQ activations',
}


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar10c_resnet8')
  two_bits = dict(weight_bits=2, activation_bits=2)
  runs = {name: dict(method=dict(name='single'), student=two_bits, quantizer=dict(name=name)) for name in QUANTIZERS}
  runs['twn']['quantizer']['activations'] = 'hwgq'
  one_bit = dict(weight_bits=1, activation_bits=1)
  runs |= {
    'full_precision': dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32)),
    'hwgq1': dict(method=dict(name='single'), student=one_bit),
    'xnor': dict(method=dict(name='single'), student=one_bit, quantizer=dict(name='xnor')),
  }
  # Wide clips are made for a hundred epochs, and some quantizers for networks that were trained before.
  clip = lambda name: {name: {'activation': {'init_clip': 2.0}}, 'name': name}
  runs |= {f'{name}_clip2': runs[name] | dict(quantizer=clip(name)) for name in ('pact', 'sawb', 'apot')}
  runs |= {
    f'{name}_after': runs[name] | dict(init_from='{full_precision}', optimizer=dict(learning_rate=0.01))
    for name in ('lsq', 'qil', 'ewgs')
  }
  config.table.baseline = ''
  config.table.title = 'Quantizers, from scratch where not said otherwise: ten classes of CIFAR-100, ResNet8, 10 epochs'
  config.table.runs = runs
  config.table.lines = tuple(
    (title, bits, run, 'student', (None, None))
    for title, bits, run in (
      ('full precision', '32/32', 'full_precision'),
      *((title, '2/2', name) for name, title in QUANTIZERS.items()),
      *((f'{QUANTIZERS[name]}, clip from 2', '2/2', f'{name}_clip2') for name in ('pact', 'sawb', 'apot')),
      *((f'{QUANTIZERS[name]}, from full precision', '2/2', f'{name}_after') for name in ('lsq', 'qil', 'ewgs')),
      ('HWGQ, published step', '1/1', 'hwgq1'),
      ('XNOR-Net', '1/1', 'xnor'),
    )
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
