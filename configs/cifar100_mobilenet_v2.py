"""CMT-KD without attention on CIFAR-100: a 4-bit MobileNetV2 taught by its 6- and 8-bit versions, HWGQ.

The other settings are those of `cifar100_resnet18.py`; the paper has no such row, and it has not been run here yet. On
ten classes, at a quarter of the width, a student with the attention loss (gamma 100) was at chance after six epochs,
and one without it learned (benchmarks/results/networks_cifar10c). So there is no feature loss, but a warm-up.
Run: python -m cmtkd_jax.main --config=configs/cifar100_mobilenet_v2.py --config.data.dir=TFDS_DIR
Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'cifar100_resnet18')
  config.model.name = 'mobilenet_v2'
  config.quantizer.hwgq.weight.per_channel = True  # depthwise filters differ in range, each has 9 weights
  config.student.weight_bits = config.student.activation_bits = 4  # of 2 bits little is left in published results
  config.method.cmtkd.teacher_bits = (6, 8)
  config.feature_loss.name = 'none'
  config.optimizer.warmup = '5 epochs'  # gradients are large at the start
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32, classes=100))
