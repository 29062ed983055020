"""Where EWGS' output scale starts: ResNet8 at 2 bits on ten classes of CIFAR-100 at 32x32, for a CPU.

The published code keeps the mean magnitude of a convolution's output, ours that of its weights, times `start`.
Network, data and epochs of benchmarks/cifar10c_resnet8.py, but 4,000 images of train to train on and the other 1,000
in place of test: what is chosen here is not chosen on test. DIR holds them as .npy arrays; about 2 minutes a run.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/ewgs_start.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/ewgs_start.py \
           --workdir=benchmarks/results/ewgs_start
"""

from cmtkd_jax import config as base

STARTS = {'ours': 1.0, 'published': 3.2}


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar10c_resnet8')
  runs = {'full_precision': dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32))}
  lines = [('full precision', '32/32', 'full_precision')]
  for title, start in STARTS.items():
    scratch = dict(
      method=dict(name='single'),
      student=dict(weight_bits=2, activation_bits=2),
      quantizer=dict(name='ewgs', ewgs=dict(weight=dict(start=start))),
    )
    after = scratch | dict(init_from='{full_precision}', optimizer=dict(learning_rate=0.01))
    for name, changes, how in (('scratch', scratch, 'from scratch'), ('after', after, 'from full precision')):
      runs[f'{name}_{title}'] = changes
      lines.append((f'EWGS, {how}, start {start:g} ({title})', '2/2', f'{name}_{title}'))
  config.table.title = "EWGS' output scale: held-out train images of ten classes of CIFAR-100, ResNet8, 10 epochs"
  config.table.runs = runs
  config.table.lines = tuple((*line, 'student', (None, None)) for line in lines)
  config.table.seeds = (0, 1, 2)
  config.table.baseline = ''
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
