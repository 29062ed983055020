"""Data sets that are described without being read: what a step sees of them is what it sees when they are read."""

import jax
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import data
from cmtkd_jax.data.outline import outline
from cmtkd_jax.data.sources import known
from cmtkd_jax.errors import UserError
from cmtkd_jax.training import build

pytestmark = pytest.mark.usefixtures('eight_devices')

COLOR = dict(mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
  'changes',
  [
    dict(),
    dict(minival=0.1),
    dict(name='generated:8x8x3:7:160', **COLOR),
    dict(name='generated:12x9x3:7:160', resize=10, **COLOR),
    dict(name='generated:12x9x3:7:160', resize=10, on_device='no', **COLOR),
    dict(name='generated:12x9x3:7:160', augment='inception_crop_flip', resize=9, **COLOR),
  ],
  ids=str,
)
def test_as_when_it_is_read(changes):
  settings, mesh = config_lib.default().data, build.make_mesh()
  settings.update(changes)
  described = outline(settings, batch_size=16, mesh=mesh)
  read = data.load(settings, batch_size=16, eval_batch_size=16, seed=0, mesh=mesh)
  assert (described.num_classes, described.input_shape) == (read.num_classes, read.input_shape)
  assert (described.steps_per_epoch, described.batch_spec) == (read.train.steps_per_epoch, read.train.batch_spec)
  augmented = [
    jax.eval_shape(one.augment, jax.random.key(0), one.batch_spec['image'] if one is described else _image(read))
    for one in (described, read)
  ]
  assert augmented[0].shape == augmented[1].shape == (16, *read.input_shape)
  pixels = sum(read.num_examples.values()) * _pixels(read.train.batch_spec['image'].shape[1:])
  assert described.on_device_bytes == (0 if settings.on_device == 'no' else pixels)


def _image(dataset):
  return dataset.train.batch_spec['image']


def _pixels(shape):
  height, width, channels = shape
  return height * width * channels


def test_data_sets_that_are_known():
  settings, mesh = config_lib.default().data, build.make_mesh()
  settings.update(name='imagenet2012', image_size=224, resize=256, augment='inception_crop_flip', **COLOR)
  imagenet = outline(settings, batch_size=256, mesh=mesh)
  assert (imagenet.num_classes, imagenet.steps_per_epoch, imagenet.on_device_bytes) == (1000, 5004, 0)
  assert imagenet.batch_spec['image'].shape == (256, 224, 224, 3)
  settings.update(name='tfds:cifar100:3.*.*', image_size=32, resize=0, augment='pad_crop_flip')
  cifar = outline(settings, batch_size=250, mesh=build.make_mesh(jax.devices()[:2]))
  assert (cifar.num_classes, cifar.steps_per_epoch) == (100, 200)
  assert cifar.on_device_bytes == 60_000 * 32 * 32 * 3
  assert known.describe('digits') is None


def test_what_does_not_fit_is_refused_as_when_it_is_read():
  settings, mesh = config_lib.default().data, build.make_mesh()
  settings.update(name='imagenet2012', **COLOR)
  with pytest.raises(UserError, match='and of other sizes; set config.data.resize=8 or more'):
    outline(settings, batch_size=16, mesh=mesh)
  settings.update(name='generated:8x8x3:1:160')
  with pytest.raises(UserError, match='there is one class'):
    outline(settings, batch_size=16, mesh=mesh)
  settings.update(name='generated:8x8x3:7')
  with pytest.raises(UserError, match='does not parse'):
    outline(settings, batch_size=16, mesh=mesh)
