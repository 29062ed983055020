"""Does distillation help a network with room to learn? VGG-small, a quarter of its width, ten classes of CIFAR-100.

The 2-bit ResNet8 of ladder_resnet8.py has 74 % of its training images right after 20 epochs. With the same data and
schedule this network has 97 % right, and is four points worse than full precision on test images.

A single network takes 3 minutes on one core of an AMD EPYC, CMT-KD 12. Rows and directories of the networks alone are
those of networks_cifar10c.py.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/vgg_small_cifar10c.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/vgg_small_cifar10c.py \
           --workdir=benchmarks/results/vgg_small_cifar10c
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'networks_cifar10c')
  config.table.title = 'VGG-small, a quarter of its width: ten classes of CIFAR-100, 20 epochs'
  config.table.baseline = 'vgg_small_2bit'
  alone = {
    name: row for name, row in config.table.runs.to_dict().items() if name in ('vgg_small_32bit', 'vgg_small_2bit')
  }
  student = lambda method, **changes: dict(model=dict(name='vgg_small'), method=dict(name=method), **changes)
  config.table.runs = alone | dict(
    vgg_small_kd=student('kd', teacher_workdirs=('{vgg_small_32bit}',)),
    vgg_small_without_attention=student('cmtkd', feature_loss=dict(name='none')),
    vgg_small_cmtkd=student('cmtkd', feature_loss=dict(attention=dict(weight=5.0))),  # as in ladder_resnet8.py
  )
  line = lambda title, bits, run, network='student': (title, bits, f'vgg_small_{run}', network, (None, None))
  config.table.lines = (
    line('single model, full precision', '32/32', '32bit'),
    line('single model', '2/2', '2bit'),
    line('KD from full precision', '2/2', 'kd'),
    line('CMT-KD without attention', '2/2', 'without_attention'),
    line('CMT-KD, gamma 5', '2/2', 'cmtkd'),
    line('combined teacher of CMT-KD without attention', '4, 6, 8', 'without_attention', 'combined_teacher'),
    line('combined teacher of CMT-KD, gamma 5', '4, 6, 8', 'cmtkd', 'combined_teacher'),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
