"""CMT-KD on the bundled digits: a 2-bit ResNet8 taught by its 4-, 6- and 8-bit versions.

Expected after 80 epochs: student 99.2 %, combined teacher 99.5 % (10 seeds; the 2-bit network alone: 99.0 %). About 2
minutes of training on 2 CPU cores.
Run: python -m cmtkd_jax.main --config=configs/digits_resnet8.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.data.name = 'digits'
  config.data.image_size = 8
  config.data.augment = 'pad_crop'
  config.data.pad = 1
  config.data.mean = (0.305,)
  config.data.std = (0.377,)
  config.model.name = 'resnet8'
  config.model.stem = 'cifar'
  config.feature_loss.attention.weight = 5.0  # 100 belongs to larger maps: the attention loss is a mean over positions
  config.batch_size = 64
  config.eval_batch_size = 360
  config.duration = '80 epochs'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup = '2 epochs'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
