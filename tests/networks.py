"""Networks that compile quickly: what a method does with a network does not depend on its depth."""

import functools

import pytest

from cmtkd_jax import models
from cmtkd_jax.models import conv_stage, mobilenet, resnet

# A MobileNetV2 with every kind of row, in two stages.
MOBILENET_ROWS = (
  (mobilenet.BlockGroup(1, 16, 1, 1), mobilenet.BlockGroup(3, 24, 2, 2, full_on_cifar=True)),
  (mobilenet.BlockGroup(2, 32, 1, 2),),
)
small_mobilenet = functools.partial(mobilenet.mobilenet_v2, stages=MOBILENET_ROWS)


def tiny(*convolutions, stem=None):
  """A model with one stage for each convolution (features, stride, role), behind a stem of so many features."""

  def model(num_classes, layers, width, **unused):
    stages = tuple(
      functools.partial(
        conv_stage.ConvStage,
        (conv_stage.ConvSpec(round(features * width), 3, stride, role=role),),
        (1, 1),
        '',
        layers,
      )
      for features, stride, role in convolutions
    )
    head = functools.partial(resnet.PooledHead, num_classes, layers)
    first = 2 if stem else 1  # a stem of its own is tap 1
    taps = tuple(range(first, first + len(stages)))
    stems = (functools.partial(resnet.Stem, stem, 'cifar', 'pre', layers),) if stem else ()
    return models.Network(taps, stages, layers.activation, head, *stems)

  return model


# For tests of runs, in place of ResNet8, which takes twice as long to compile.
two_convolutions = tiny((64, 2, 'body'), (64, 2, 'body'), stem=4)


def named(model, name='tiny'):
  """A fixture that makes `model` the network `name` for all tests of a module."""

  @pytest.fixture(scope='module', autouse=True)
  def named_model():
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(models.MODELS, name, model)
      yield

  return named_model
