"""Does each row of ladder_resnet8.py need a learning rate of its own? On held-out training images.

A distillation term makes the gradient of the student's loss larger, as a higher learning rate does. So rows are
compared at 0.05, 0.1 (that of all rows of the ladder) and 0.2. A fifth of the 5,000 training images is held out
(`data.minival`), and the figures are those of the held-out images: what is chosen here is not chosen on test.

A run of CMT-KD takes about 8 minutes on one idle core, the others 3; a seed has 13 runs.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/learning_rates_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/learning_rates_resnet8.py \
           --workdir=benchmarks/results/learning_rates_resnet8
"""

from cmtkd_jax import config as base

ROWS = ('single2', 'kd', 'without_attention', 'cmtkd')
RATES = (0.05, 0.1, 0.2)


def get_config(argument=''):
  config = base.load_config(__file__, 'ladder_resnet8')
  config.data.minival, config.table.split = 0.2, 'minival'
  config.table.seeds = (0, 1, 2)
  config.table.title = 'Learning rates, held-out training images: ten classes of CIFAR-100, ResNet8, 20 epochs'
  rows = config.table.runs.to_dict()
  name = lambda row, rate: f'{row}_{rate * 1000:03.0f}'
  tried = [(row, rate) for rate in RATES for row in ROWS]
  config.table.runs = {'full_precision': rows['full_precision']} | {
    name(row, rate): rows[row] | dict(optimizer=dict(learning_rate=rate)) for row, rate in tried
  }
  titles = {line[2]: line[0] for line in config.table.lines if line[3] == 'student'}
  config.table.lines = tuple(
    (f'{titles[row]}, {rate:g}', '2/2', name(row, rate), 'student', (None, None)) for row, rate in tried
  )
  config.table.baseline = name('single2', 0.1)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
