"""CMT-KD on CIFAR-100: a 2-bit ResNet18 taught by its 4-, 6- and 8-bit versions, HWGQ, attention loss.

The paper's row reads 78.3 / 94.4 (top-1 / top-5), combined teacher 79.5 / 94.9. Not reproduced here yet: 36 epochs gave
68.3 / 91.3 and 73.6 / 93.4 (benchmarks/results/cifar100_resnet18). By the time of a step, 120 epochs would take an H200
eight to eleven minutes, and one core of an AMD EPYC about six days.
Run: python -m cmtkd_jax.main --config=configs/cifar100_resnet18.py --config.data.dir=TFDS_DIR
Variants after a colon: fitnet, w1a2, w3a3, w4a4, upsampled (256, crop 224, ImageNet stem), smoke; e.g. :fitnet,smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.data.name = 'cifar100'
  config.data.image_size = 32
  config.data.augment = 'pad_crop_flip'
  config.data.pad = 4
  config.data.mean = (0.507, 0.487, 0.441)
  config.data.std = (0.267, 0.256, 0.276)
  config.model.name = 'resnet18'
  config.model.stem = 'cifar'
  config.method.cmtkd.teacher_bits = (4, 6, 8)
  config.method.cmtkd.alpha = 1.0
  config.method.cmtkd.beta = 0.5
  config.feature_loss.attention.weight = 100.0
  config.batch_size = 256
  config.eval_batch_size = 1000
  config.duration = '120 epochs'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'step'
  config.optimizer.decay_at = '50, 100 epochs'
  config.eval_every = config.checkpoint_every = '1 epochs'
  return base.apply_argument(
    config,
    argument,
    fitnet=fitnet,
    w1a2=w1a2,
    w3a3=w3a3,
    w4a4=w4a4,
    upsampled=upsampled,
    smoke=lambda c: base.smoke(c, 32, classes=100),
  )


def fitnet(config):
  """CMT-KD-FitNet: 78.7 / 94.6 in the paper."""
  config.feature_loss.name = 'fitnet'


def w1a2(config):
  """1-bit weights, 2-bit activations, teachers at 2, 4, 8 bits: 75.6 / 93.5 in the paper (FitNet 76.1 / 93.7)."""
  config.student.weight_bits = 1
  config.method.cmtkd.teacher_bits = (2, 4, 8)


def w3a3(config):
  """3 bits, teachers at 4, 6, 8 bits; not in the paper."""
  config.student.weight_bits = config.student.activation_bits = 3


def w4a4(config):
  """4 bits, teachers at 5, 6, 8 bits; not in the paper."""
  config.student.weight_bits = config.student.activation_bits = 4
  config.method.cmtkd.teacher_bits = (5, 6, 8)


def upsampled(config):
  """The text's 'resizing and random cropping' to 224, with the ImageNet network from scratch."""
  config.data.augment = 'resize_crop_flip'
  config.data.resize = 256
  config.data.image_size = 224
  config.model.stem = 'imagenet'
