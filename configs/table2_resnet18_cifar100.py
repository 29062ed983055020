"""Table 2 of CMT-KD: ResNet18 on CIFAR-100, the ablation. Not run here yet; for an accelerator.

Run: python -m cmtkd_jax.main --mode=table --config=configs/table2_resnet18_cifar100.py --config.data.dir=TFDS_DIR
One row: --config=configs/table2_resnet18_cifar100.py:kd. Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar100_resnet18')
  rows = base.load_config(__file__, 'table1_alexnet_cifar100').table  # the same systems
  config.table.title = 'Table 2: ResNet18, CIFAR-100'
  config.table.runs = rows.runs
  published = (
    (75.3, 93.1),
    (75.2, 92.9),
    (74.9, 92.7),
    (74.9, 92.5),
    (72.9, 91.9),
    (75.1, 92.8),
    (76.0, 93.8),
    (76.5, 93.9),
    (75.0, 93.2),
    (78.3, 94.4),
    (79.5, 94.9),
  )
  config.table.lines = tuple((*line[:-1], figures) for line, figures in zip(rows.lines, published, strict=True))
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32, classes=100))
