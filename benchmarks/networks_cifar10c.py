"""VGG-small and MobileNetV2 at a quarter of their width: full precision, 4 and 2 bits, on ten classes of CIFAR-100.

Data and schedule of benchmarks/cifar10c_resnet8.py, 20 epochs, each network alone. MobileNetV2 is quantized by LSQ,
with a step for each channel of its weights, since its depthwise layers have one kernel per channel. Its quantized
networks start from the full-precision one and train for 10 epochs more, at a fifth of the learning rate. The steps
learn at a hundredth of that: as fast as the weights, some cross zero within a few updates. Gradients are clipped,
because with 2 bits their norm reaches 10^5.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/networks_cifar10c.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/networks_cifar10c.py \
           --workdir=benchmarks/results/networks_cifar10c
"""

from cmtkd_jax import config as base

NETWORKS = {  # {name: (title, changes, more of them where it is quantized)}
  'vgg_small': ('VGG-small', {}, {}),
  'mobilenet_v2': (
    'MobileNetV2',
    dict(quantizer=dict(name='lsq', lsq=dict(weight=dict(per_channel=True)))),
    dict(
      init_from='{mobilenet_v2_32bit}',
      optimizer=dict(learning_rate=0.02, quantizer_lr_factor=0.01, grad_clip_norm=1.0),
      duration='10 epochs',
    ),
  ),
}
BITS = (32, 4, 2)


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar10c_resnet8')
  config.duration, config.model.width = '20 epochs', 0.25
  config.method.name = 'single'
  config.table.baseline = ''
  config.table.title = 'Networks alone, a quarter of their width: ten classes of CIFAR-100, 20 epochs'
  config.table.runs = {
    f'{name}_{bits}bit': dict(model=dict(name=name), student=dict(weight_bits=bits, activation_bits=bits))
    | (changes | quantized if bits < 32 else changes)
    for name, (_, changes, quantized) in NETWORKS.items()
    for bits in BITS
  }
  config.table.lines = tuple(
    (title, f'{bits}/{bits}', f'{name}_{bits}bit', 'student', (None, None))
    for name, (title, *_) in NETWORKS.items()
    for bits in BITS
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
