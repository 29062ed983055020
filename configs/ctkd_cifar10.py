"""CTKD on CIFAR-10: WRN-16-1 taught by a scratch WRN-40-1 beside it and an expert WRN-40-1 trained before.

Published: student alone 91.28, teacher 93.43, CTKD 92.50 (as quoted by Gou et al.'s survey). Not run here yet. The
student is full precision; --config.student.weight_bits=2 --config.student.activation_bits=2 quantizes it.
Run: python -m cmtkd_jax.main --config=configs/ctkd_cifar10.py --config.data.dir=TFDS_DIR
Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.method.name = 'ctkd'
  config.data.name = 'cifar10'
  config.data.image_size = 32
  config.data.augment = 'pad_crop_flip'
  config.data.pad = 4
  config.data.pad_mode = 'symmetric'  # OpenCV's BORDER_REFLECT
  config.data.mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
  config.data.std = (63.0 / 255, 62.1 / 255, 66.7 / 255)
  config.model.name = 'wrn16_1'
  config.method.ctkd.teacher_model = 'wrn40_1'
  config.model.init = 'ctkd'
  config.student.weight_bits = config.student.activation_bits = 32
  config.prerequisites.expert = dict(
    method=dict(name='single'), model=dict(name='wrn40_1'), student=dict(weight_bits=32, activation_bits=32)
  )
  config.teacher_workdirs = ('{expert}',)
  config.batch_size = 128
  config.eval_batch_size = 1000
  config.duration = '200 epochs'
  config.optimizer.learning_rate = 0.1
  config.optimizer.decay_factor = 0.2
  config.optimizer.decay_at = '60, 120, 160 epochs'
  config.optimizer.weight_decay = config.optimizer.weight_decay_low_bits = 5e-4
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
