"""CMT-KD on your own images: a folder for each class, in one folder, or in train/ and test/ inside it.

What suits the images and this machine is chosen and printed: image size, network, batch, augmentation and duration. On
a CPU a run takes about ten minutes. Where there is no folder of test images, a fifth of every class is held out.
Run: python -m cmtkd_jax.main --config=configs/folder.py:DIR
Words after a comma: cpu or accelerator, for another machine than this one; smoke; e.g. DIR,accelerator.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet
  config.data.std = (0.229, 0.224, 0.225)
  config.method.cmtkd.teacher_bits = (4, 6, 8)
  config.feature_loss.attention.weight = 5.0  # 100 belongs to networks that train for long
  config.eval_batch_size = 64
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup = '2 epochs'
  return base.own_images.apply(config, argument)
