"""Does distillation help a network with more capacity? ResNet8 of twice the width, on held-out training images.

At width 1 the 2-bit network of ladder_resnet8.py underfits its training images (74 % right, seeds 0 and 1), and so far
no distillation helps it measurably. Here the same rows have twice the channels. A fifth of the 5,000 training
images is held out (`data.minival`), and the figures are those of the held-out images.

Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/width_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/width_resnet8.py \
           --workdir=benchmarks/results/width_resnet8
"""

from cmtkd_jax import config as base

ROWS = ('full_precision', 'single2', 'kd', 'without_attention', 'cmtkd')


def get_config(argument=''):
  config = base.load_config(__file__, 'ladder_resnet8')
  config.model.width = 2.0
  config.data.minival, config.table.split = 0.2, 'minival'
  config.table.seeds = (0, 1, 2)
  config.table.title = 'Twice the width, held-out training images: ten classes of CIFAR-100, ResNet8, 20 epochs'
  rows = config.table.runs.to_dict()
  config.table.runs = {name: rows[name] for name in ROWS}
  config.table.lines = tuple(line for line in config.table.lines if line[2] in ROWS)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
