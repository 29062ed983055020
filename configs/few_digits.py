"""A 2-bit student of 72 digits that is better than full precision: CMT-KD in ResNet8 of three times the width.

The recipe of benchmarks/few_digits_search.py: quantizers are SAWB and PACT, there is no feature loss, mutual learning
counts eight times as much as in the paper, and gradients also pass through its target. Figures are in
benchmarks/README.md. About a minute of training on one core.
Run: python -m cmtkd_jax.main --config=configs/few_digits.py
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.load_config(__file__, 'digits_resnet8')
  config.data.minival = 0.95  # 72 images are left to train on
  config.batch_size, config.duration, config.optimizer.warmup = 24, '1200 steps', '50 steps'
  config.eval_every = config.checkpoint_every = '1200 steps'
  config.log_every = '300 steps'
  config.model.width = 3.0
  config.quantizer.name, config.quantizer.sawb.activation.init_clip = 'sawb', 2.0
  config.feature_loss.name = 'none'
  config.method.cmtkd.teacher_bits = (4, 5, 8)  # SAWB has no 6 bits
  config.method.cmtkd.beta, config.method.cmtkd.stop_gradient_target = 4.0, False
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
