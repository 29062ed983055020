"""The main job on the bundled digits beside the same network trained alone, three seeds; about 10 minutes on 2 cores.

Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/digits_resnet8.py
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/digits_resnet8.py \
           --workdir=benchmarks/results/digits_resnet8
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, '../configs/digits_resnet8')
  config.table.title = 'Digits, ResNet8, 80 epochs'
  config.table.runs = dict(single=dict(method=dict(name='single')), cmtkd=dict())
  config.table.lines = (
    ('single model', '2/2', 'single', 'student', (None, None)),
    ('CMT-KD', '2/2', 'cmtkd', 'student', (None, None)),
    ('combined teacher', '4, 6, 8', 'cmtkd', 'combined_teacher', (None, None)),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
