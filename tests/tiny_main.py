"""The command with a network of two convolutions behind a stem in place of ResNet8, for tests that start processes."""

from cmtkd_jax import main, models
from tests import networks

models.MODELS['resnet8'] = networks.two_convolutions

if __name__ == '__main__':
  main.run()
