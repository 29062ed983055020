"""CMT-KD on ImageNet: a 2-bit ResNet50 taught by its 4-, 6- and 8-bit versions, HWGQ, attention loss.

The settings are those of `imagenet_resnet18.py`; the paper has no such row, and it has not been run here: for several
accelerators (4 networks of 4.1 GMAC an image). PyTorch's weights fit: config.init_from, config.model.block_order=post.
Run: python -m cmtkd_jax.main --config=configs/imagenet_resnet50.py --config.data.dir=TFDS_DIR
Variants after a colon: lsq, w1a2, resize_crop, smoke. For LSQ start from a full-precision run: --config.init_from=DIR.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'imagenet_resnet18', argument)
  config.model.name = 'resnet50'
  return config
