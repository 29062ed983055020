"""Ten classes of CIFAR-100 at 32x32, ResNet8: the setting of `benchmarks/study.py`.

5,000 training and 1,000 test images of classes 0-9, from a folder of .npy arrays (`--config.data.name=npy:DIR`).
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.data.name = 'npy:data_cache/cifar100_classes_0_9'
  # Flips alone: with random crops too, a network this small underfits, and distillation has little to give it.
  config.data.image_size, config.data.augment, config.data.pad = 32, 'pad_crop_flip', 0
  config.data.mean, config.data.std = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
  config.model.name, config.model.stem, config.model.width = 'resnet8', 'cifar', 1.0
  config.batch_size, config.eval_batch_size = 128, 500
  config.duration = '10 epochs'
  config.optimizer.learning_rate, config.optimizer.schedule, config.optimizer.warmup = 0.1, 'cosine', '1 epochs'
  config.log_every, config.eval_every, config.checkpoint_every = '1 epochs', '2 epochs', '2 epochs'
  config.tensorboard = False
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
