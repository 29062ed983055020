"""Table 4 of CMT-KD: 1- and 2-bit networks on CIFAR-100 beside other quantizers. Not run here yet.

The rows LQW+CAQ train `quantizers/lqw_caq.py`, a reading of its abstract and not the authors' code. All stages of
PQ+TS+Guided train as long and at the same rate as the other rows; its published code trains the later ones for 30
epochs at 0.001 or 0.005.

Run: python -m cmtkd_jax.main --mode=table --config=configs/table4_cifar100.py --config.data.dir=TFDS_DIR
Variants after a colon: alexnet (else ResNet18), smoke; and the runs, e.g. hwgq_w1a2.
"""

from cmtkd_jax import config as base

ROWS = (  # title, bits, run, published AlexNet, published ResNet18
  ('full precision', '32/32', 'full_precision', (72.4, 91.3), (75.3, 93.1)),
  ('LQ-Nets', '1/2', 'lq_nets_w1a2', (68.7, 90.5), (70.4, 91.2)),
  ('LQW+CAQ', '1/2', 'lqw_caq_w1a2', (69.3, 91.2), (72.1, 91.6)),
  ('HWGQ', '1/2', 'hwgq_w1a2', (68.6, 90.8), (71.0, 90.8)),
  ('CMT-KD-FitNet', '1/2', 'cmtkd_fitnet_w1a2', (69.9, 91.3), (76.1, 93.7)),
  ('CMT-KD-Att', '1/2', 'cmtkd_w1a2', (70.4, 91.1), (75.6, 93.5)),
  ('PQ+TS+Guided', '2/2', 'guided_w2a2', (64.6, 87.8), (None, None)),
  ('LQ-Nets', '2/2', 'lq_nets_w2a2', (69.2, 91.2), (70.8, 91.3)),
  ('LQW+CAQ', '2/2', 'lqw_caq_w2a2', (69.9, 91.3), (72.1, 91.6)),
  ('HWGQ', '2/2', 'hwgq_w2a2', (69.4, 90.5), (72.9, 91.9)),
  ('CMT-KD-FitNet', '2/2', 'cmtkd_fitnet_w2a2', (70.0, 90.7), (78.7, 94.6)),
  ('CMT-KD-Att', '2/2', 'cmtkd_w2a2', (72.1, 91.9), (78.3, 94.4)),
)


def get_config(argument=''):
  network = 'alexnet' if 'alexnet' in argument.split(',') else 'resnet18'
  config = base.load_config(__file__, f'cifar100_{network}')
  bits = lambda weights, activations: dict(student=dict(weight_bits=weights, activation_bits=activations))
  single = lambda *widths, **more: dict(method=dict(name='single'), **bits(*widths), **more)
  w1a2 = dict(**bits(1, 2), method=dict(cmtkd=dict(teacher_bits=(2, 4, 8))))
  fitnet = dict(feature_loss=dict(name='fitnet'))
  guided = base.load_config(__file__, 'digits_guided')
  config.table.title = f'Table 4: {network}, CIFAR-100'
  config.table.runs = dict(
    full_precision=single(32, 32),
    lq_nets_w1a2=single(1, 2, quantizer=dict(name='lq_nets')),
    lqw_caq_w1a2=single(1, 2, quantizer=dict(name='lqw_caq')),
    hwgq_w1a2=single(1, 2),
    cmtkd_fitnet_w1a2=dict(w1a2, **fitnet),
    cmtkd_w1a2=w1a2,
    guided_w2a2=dict(
      method=dict(name='guided'),
      prerequisites=guided.prerequisites.to_dict(),
      init_from=guided.init_from,
      quantizer=dict(name='dorefa'),
    ),
    lq_nets_w2a2=single(2, 2, quantizer=dict(name='lq_nets')),
    lqw_caq_w2a2=single(2, 2, quantizer=dict(name='lqw_caq')),
    hwgq_w2a2=single(2, 2),
    cmtkd_fitnet_w2a2=fitnet,
    cmtkd_w2a2=dict(),
  )
  config.table.lines = tuple(
    (title, widths, run, 'student', alexnet if network == 'alexnet' else resnet18)
    for title, widths, run, alexnet, resnet18 in ROWS
  )
  return base.apply_argument(
    config,
    argument,
    alexnet=lambda c: None,
    smoke=lambda c: base.smoke(c, 67 if network == 'alexnet' else 32, classes=100),
  )
