"""Which weight does FitNet need? CMT-KD with ResNet8 on ten classes of CIFAR-100, on held-out training images.

In ladder_resnet8.py, FitNet with its default weight, gamma 1, costs the 2-bit student 4.6 points. Here gamma goes over
two decades, beside CMT-KD without a feature loss. A tenth of the 5,000 training images is held out (`data.minival`),
and the figures are those of the held-out images. One figure of 500 images has a standard error of 2 points, pairs of
rows less: three seeds show differences of about 2.5.

Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/fitnet_gamma_cifar10c.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/fitnet_gamma_cifar10c.py \
           --workdir=benchmarks/results/fitnet_gamma_cifar10c
"""

from cmtkd_jax import config as base

GAMMAS = {'0_01': 0.01, '0_1': 0.1, '1': 1.0}


def get_config(argument=''):
  config = base.load_config(__file__, 'ladder_resnet8')
  config.data.minival, config.table.split = 0.1, 'minival'
  config.table.seeds = (0, 1, 2)
  config.table.title = 'Weight of FitNet, held-out training images: ten classes of CIFAR-100, ResNet8, 20 epochs'
  rows = config.table.runs.to_dict()
  fitnet = lambda gamma: dict(feature_loss=dict(name='fitnet', fitnet=dict(weight=gamma)))
  config.table.runs = dict(without=rows['without_attention']) | {
    f'gamma_{name}': fitnet(gamma) for name, gamma in GAMMAS.items()
  }
  config.table.baseline = 'without'
  titles = {'without': 'no feature loss'} | {f'gamma_{name}': f'FitNet, gamma {g:g}' for name, g in GAMMAS.items()}
  config.table.lines = tuple(
    line
    for run, title in titles.items()
    for line in (
      (title, '2/2', run, 'student', (None, None)),
      (f'combined teacher, {title}', '4, 6, 8', run, 'combined_teacher', (None, None)),
    )
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
