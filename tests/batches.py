"""Data sets of the tests, and batches of a loader, taken and compared."""

import itertools

import jax
import numpy as np
from jax.sharding import AxisType
from ml_collections import ConfigDict

from cmtkd_jax import data
from cmtkd_jax.data.loading import resident


def make_mesh(devices=8):
  return jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def make_config(**fields):
  config = ConfigDict(
    dict(
      name='digits',
      dir='',
      minival=0.0,
      augment='none',
      pad=2,
      pad_mode='zeros',
      image_size=8,
      resize=0,
      mean=(0.3,),
      std=(0.35,),
      resident='auto',
      num_workers=2,
      workers='threads',
      decoder='pil',
      max_corrupt_fraction=0.01,
    )
  )
  config.update(fields)
  return config


def load(batch_size=64, eval_batch_size=100, seed=0, devices=8, **fields):
  return data.load(
    make_config(**fields), batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, mesh=make_mesh(devices)
  )


def is_resident(dataset):
  """Whether the images lie on the device."""
  return isinstance(dataset.train._reader, resident.Reader)


def take(loader, start, count):
  """Host copies of `count` batches; the iterator is closed."""
  iterator = loader.batches(start)
  batches = [jax.device_get(b) for b in itertools.islice(iterator, count)]
  iterator.close()
  return batches


def assert_equal(left, right):
  assert len(left) == len(right) > 0
  jax.tree.map(np.testing.assert_array_equal, left, right)
