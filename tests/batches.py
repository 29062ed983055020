"""Data sets of the tests, and batches of a loader, taken and compared."""

import itertools

import jax
import numpy as np
from jax.sharding import AxisType
from ml_collections import ConfigDict

from cmtkd_jax import data, options
from cmtkd_jax.data.loading import on_device
from cmtkd_jax.data.settings import Settings


def make_mesh(devices=8):
  return jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def make_config(**fields):
  """The fields of `data.Settings`, with those of digits that are not augmented."""
  defaults = {field.name: field.default for field in options.fields(Settings)}
  return ConfigDict(defaults | dict(augment='none', pad=2, mean=(0.3,), std=(0.35,), num_workers=2) | fields)


def load(batch_size=64, eval_batch_size=100, seed=0, devices=8, **fields):
  return data.load(
    make_config(**fields), batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, mesh=make_mesh(devices)
  )


def is_on_device(dataset):
  """Whether the images lie on the device."""
  return isinstance(dataset.train._reader, on_device.Reader)


def take(loader, start, count):
  """Host copies of `count` batches; the iterator is closed."""
  iterator = loader.batches(start)
  batches = [jax.device_get(b) for b in itertools.islice(iterator, count)]
  iterator.close()
  return batches


def assert_equal(left, right):
  assert len(left) == len(right) > 0
  jax.tree.map(np.testing.assert_array_equal, left, right)
