"""Table 3 of CMT-KD: three teachers (4, 6, 8 bit) or two (4, 8), a 2-bit student, CIFAR-100. Not run here yet.

Run: python -m cmtkd_jax.main --mode=table --config=configs/table3_teachers_cifar100.py --config.data.dir=TFDS_DIR
Variants after a colon: alexnet (else ResNet18), smoke; and the runs: three, two.
"""

from cmtkd_jax import config as base

PUBLISHED = {'resnet18': ((78.3, 94.4), (78.1, 94.3)), 'alexnet': ((72.1, 91.9), (71.1, 91.2))}


def get_config(argument=''):
  network = 'alexnet' if 'alexnet' in argument.split(',') else 'resnet18'
  config = base.load_config(__file__, f'cifar100_{network}')
  config.table.title = f'Table 3: number of teachers, {network}, CIFAR-100'
  teachers = lambda *bits: dict(method=dict(cmtkd=dict(teacher_bits=bits)))
  config.table.runs = dict(three=teachers(4, 6, 8), two=teachers(4, 8))
  three, two = PUBLISHED[network]
  config.table.lines = (
    ('CMT-KD, teachers of 4, 6, 8 bit', '2/2', 'three', 'student', three),
    ('CMT-KD, teachers of 4, 8 bit', '2/2', 'two', 'student', two),
  )
  return base.apply_argument(
    config,
    argument,
    alexnet=lambda c: None,
    smoke=lambda c: base.smoke(c, 67 if network == 'alexnet' else 32, classes=100),
  )
