"""Batches of a loader, taken and compared."""

import itertools

import jax
import numpy as np


def take(loader, start, count):
  """Host copies of `count` batches; the iterator is closed."""
  iterator = loader.batches(start)
  batches = [jax.device_get(b) for b in itertools.islice(iterator, count)]
  iterator.close()
  return batches


def assert_equal(left, right):
  assert len(left) == len(right) > 0
  jax.tree.map(np.testing.assert_array_equal, left, right)
