"""Does distillation help a network that fits its training images? 100 images a class, ResNet8, a CPU.

The 2-bit network of ladder_resnet8.py underfits its 5,000 training images (74 % right, seeds 0 and 1). Here it sees
1,000 of them, in about as many steps (750, there 780) of half the batch; the 1,000 test images are the same.

A run with teachers takes about 5 minutes on one idle core, a single network 2; a seed has 9 runs.
Data:  python launch/prepare_cifar.py cifar-100-python.tar.gz DIR --classes=10 --images=100
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/few_images_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/few_images_resnet8.py \
           --workdir=benchmarks/results/few_images_resnet8
"""

from cmtkd_jax import config as base

ROWS = (
  'full_precision',
  'single8',
  'single6',
  'single4',
  'single2',
  'kd',
  'average_teacher',
  'without_attention',
  'cmtkd',
)


def get_config(argument=''):
  config = base.load_config(__file__, 'ladder_resnet8')
  config.batch_size = 64
  config.duration, config.optimizer.warmup = '50 epochs', '3 epochs'
  config.log_every = config.eval_every = config.checkpoint_every = '5 epochs'
  config.table.seeds = (0, 1, 2)
  config.table.title = 'Ten classes of CIFAR-100, 100 training images each, ResNet8, 50 epochs'
  rows = config.table.runs.to_dict()
  config.table.runs = {name: rows[name] for name in ROWS}
  config.table.lines = tuple(line for line in config.table.lines if line[2] in ROWS)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
