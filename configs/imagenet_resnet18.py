"""CMT-KD on ImageNet: a 2-bit ResNet18 taught by its 4-, 6- and 8-bit versions, HWGQ, attention loss.

The paper's row reads 65.6 / 86.5 (top-1 / top-5) with HWGQ and 67.8 / 87.8 with LSQ. Not run here: for several
accelerators (4 networks of 1.8 GMAC an image, 100 epochs of 1.28 million images). The paper crops resized images; the
default here are crops of random area and aspect ratio, as EdMIPS, whose HWGQ this is, trains. `resize_crop` does as the
text.
Run: python -m cmtkd_jax.main --config=configs/imagenet_resnet18.py --config.data.dir=TFDS_DIR
Variants after a colon: lsq, w1a2, resize_crop, smoke. For LSQ start from a full-precision run: --config.init_from=DIR.
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.data.name = 'imagenet2012'
  config.data.augment = 'inception_crop_flip'
  config.data.resize = 256
  config.data.image_size = 224
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.data.num_workers = 16
  config.model.name = 'resnet18'
  config.model.stem = 'imagenet'
  config.dtype = 'bfloat16'  # levels of quantized tensors stay exact; cmtkd_jax/README.md says what is rounded
  config.method.cmtkd.teacher_bits = (4, 6, 8)
  config.method.cmtkd.alpha = 1.0
  config.method.cmtkd.beta = 0.5
  config.feature_loss.attention.weight = 100.0
  config.batch_size = 256
  config.eval_batch_size = 1000
  config.duration = '100 epochs'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'step'
  config.optimizer.decay_at = '30, 60, 90 epochs'
  config.eval_every = '1 epochs'
  config.checkpoint_every = '1000 steps'
  return base.apply_argument(
    config, argument, lsq=lsq, w1a2=w1a2, resize_crop=resize_crop, smoke=lambda c: base.smoke(c, 32)
  )


def lsq(config):
  """LSQ for teachers and student; its paper starts from full precision at 0.01 with cosine decay."""
  config.quantizer.name = 'lsq'
  config.quantizer.lsq.activation.count = 'batch'  # as in hustzxd/LSQuantization, which the authors used
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = 'cosine'
  config.optimizer.decay_at = ''


def resize_crop(config):
  """The text's 'resizing and random cropping', from 256, instead of crops of random area and aspect ratio."""
  config.data.augment = 'resize_crop_flip'


def w1a2(config):
  """1-bit weights, 2-bit activations, teachers at 2, 4, 8 bits: 60.6 / 83.5 in the paper."""
  config.student.weight_bits = 1
  config.method.cmtkd.teacher_bits = (2, 4, 8)
