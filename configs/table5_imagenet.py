"""Table 5 of CMT-KD: 1- and 2-bit networks on ImageNet beside other methods. Not run here yet; for many accelerators.

Run: python -m cmtkd_jax.main --mode=table --config=configs/table5_imagenet.py --config.data.dir=TFDS_DIR
Variants after a colon: alexnet (else ResNet18), smoke. The paper's crops: --config.data.augment=resize_crop_flip.

All stages of QKD and of PQ+TS+Guided train as long and at the same rate as the other rows; the published code of the
latter trains its later stages for 30 epochs at 0.001 or 0.005.
"""

from cmtkd_jax import config as base

ROWS = (  # title, bits, run, published AlexNet, published ResNet18
  ('full precision', '32/32', 'full_precision', (61.8, 83.5), (70.3, 89.5)),
  ('DoReFa-Net', '1/2', 'dorefa_w1a2', (49.8, None), (53.4, None)),
  ('LQ-Nets', '1/2', 'lq_nets_w1a2', (55.7, 78.8), (62.6, 84.3)),
  ('HWGQ', '1/2', 'hwgq_w1a2', (52.7, 76.3), (59.6, 82.2)),
  ('CMT-KD (HWGQ)', '1/2', 'cmtkd_w1a2', (56.2, 79.1), (60.6, 83.5)),
  ('DoReFa-Net', '2/2', 'dorefa_w2a2', (48.3, 71.6), (57.6, 80.8)),
  ('QKD', '2/2', 'qkd', (None, None), (67.4, 87.5)),
  ('PQ+TS+Guided', '2/2', 'guided', (52.5, 77.3), (None, None)),
  ('LQ-Nets', '2/2', 'lq_nets_w2a2', (57.4, 80.1), (64.9, 85.9)),
  ('SPEQ', '2/2', 'speq', (59.3, None), (67.4, None)),
  ('HWGQ', '2/2', 'hwgq_w2a2', (58.6, 80.9), (65.1, 86.2)),
  ('CMT-KD (HWGQ)', '2/2', 'cmtkd_w2a2', (59.2, 81.3), (65.6, 86.5)),
  ('LSQ with distillation', '2/2', 'kd_lsq', (None, None), (67.9, 88.1)),
  ('LSQ', '2/2', 'lsq', (None, None), (66.7, 87.1)),
  ('CMT-KD (LSQ)', '2/2', 'cmtkd_lsq', (59.3, 81.5), (67.8, 87.8)),
)


def get_config(argument=''):
  network = 'alexnet' if 'alexnet' in argument.split(',') else 'resnet18'
  config = base.load_config(__file__, f'imagenet_{network}')
  chain = lambda name: {
    key: value
    for key, value in base.load_config(__file__, f'digits_{name}').to_dict().items()
    if key in ('method', 'prerequisites', 'init_from')
  }
  single = lambda weights, name: dict(
    method=dict(name='single'), student=dict(weight_bits=weights, activation_bits=2), quantizer=dict(name=name)
  )
  lsq = dict(
    quantizer=dict(name='lsq'),
    init_from='{full_precision}',  # from full precision, at a lower rate
    optimizer=dict(learning_rate=0.01, schedule='cosine', decay_at=''),
  )
  # The authors ran LSQ by hustzxd/LSQuantization, which counts the whole batch in the step's gradient scale. The row of
  # LSQ with distillation is from LSQ's own paper, which counts the features of one example and has ends of 8 bits.
  authors_lsq = dict(lsq, quantizer=dict(name='lsq', lsq=dict(activation=dict(count='batch'))))
  kd = dict(name='kd', kd=dict(temperature=1.0))
  config.table.title = f'Table 5: {network}, ImageNet'
  config.table.runs = dict(
    full_precision=dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32)),
    dorefa_w1a2=single(1, 'dorefa'),
    lq_nets_w1a2=single(1, 'lq_nets'),
    hwgq_w1a2=single(1, 'hwgq'),
    cmtkd_w1a2=dict(student=dict(weight_bits=1), method=dict(cmtkd=dict(teacher_bits=(2, 4, 8)))),
    dorefa_w2a2=single(2, 'dorefa'),
    qkd=dict(chain('qkd'), quantizer=dict(name='qil')),  # learns intervals like QIL's
    guided=dict(chain('guided'), quantizer=dict(name='dorefa')),
    lq_nets_w2a2=single(2, 'lq_nets'),
    speq=dict(method=dict(name='speq')),
    hwgq_w2a2=single(2, 'hwgq'),
    cmtkd_w2a2=dict(),
    kd_lsq=dict(lsq, method=kd, teacher_workdirs=('{full_precision}',), bits=dict(first_last=8)),
    lsq=dict(authors_lsq, method=dict(name='single')),
    cmtkd_lsq=authors_lsq,
  )
  config.table.lines = tuple(
    (title, widths, run, 'student', alexnet if network == 'alexnet' else resnet18)
    for title, widths, run, alexnet, resnet18 in ROWS
  )
  return base.apply_argument(
    config, argument, alexnet=lambda c: None, smoke=lambda c: base.smoke(c, 67 if network == 'alexnet' else 32)
  )
