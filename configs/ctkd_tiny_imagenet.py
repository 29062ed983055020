"""CTKD on Tiny ImageNet, 64x64 images cropped to 32x32: WRN-16-2, scratch and expert WRN-40-2.

Published figures are not at hand. Not run here yet. tensorflow-datasets has no such set: give a folder with
train/<class>/*.JPEG and val/<class>/*.JPEG.
Run: python -m cmtkd_jax.main --config=configs/ctkd_tiny_imagenet.py --config.data.name=folder:DIR
Variant after a colon: smoke.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'ctkd_cifar10')
  config.data.name = 'folder:tiny-imagenet-200'
  config.data.augment = 'inception_crop_flip'
  config.data.resize = 64
  config.data.image_size = 32
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.model.name = 'wrn16_2'
  config.method.ctkd.teacher_model = 'wrn40_2'
  config.prerequisites.expert.model.name = 'wrn40_2'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32, classes=200))
