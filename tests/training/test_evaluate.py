"""An evaluation counts every image once, and reports percent and nats."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmtkd_jax.methods import Outputs
from cmtkd_jax.training.evaluate import Evaluator

LABELS = np.array([0, 1, 2, 3, 4, 5, 6], np.int32)
# Images are logits of 8 classes. The label comes first, first, second, fifth, sixth, last, first.
RANKS = np.array([0, 0, 1, 4, 5, 7, 0])


def images():
  found = np.zeros((7, 1, 1, 8), np.uint8)
  for row, (label, rank) in enumerate(zip(LABELS, RANKS)):
    order = [k for k in range(8) if k != label]
    order.insert(rank, label)
    found[row, 0, 0, order] = np.arange(8, 0, -1)
  return found


def batches():
  """Two batches of four; the last row is padding, whose label is right."""
  for rows in ([0, 1, 2, 3], [4, 5, 6, 6]):
    yield {'image': images()[rows], 'label': LABELS[rows], 'mask': np.arange(4) < (4 if rows[0] == 0 else 3)}


def evaluator(num_examples):
  loader = types.SimpleNamespace(num_examples=num_examples, batches=batches)
  dataset = types.SimpleNamespace(evals={'test': loader}, normalize=lambda images: images.astype(np.float32))
  method = types.SimpleNamespace(
    apply=lambda variables, x, train: Outputs({'student': variables['factor'] * x[:, 0, 0]})
  )
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
  return Evaluator(method, dataset, NamedSharding(mesh, P()))


def test_percent_and_nats_of_every_image_once():
  found = evaluator(7).evaluate({'factor': np.float32(0.5)})
  z = 0.5 * images()[:, 0, 0].astype(np.float64)
  cross_entropy = np.log(np.exp(z).sum(1)) - z[np.arange(7), LABELS]
  expected = {'top1': 100 * 3 / 7, 'top5': 100 * 5 / 7, 'cross_entropy': cross_entropy.mean()}
  assert found == {f'test/student/{name}': pytest.approx(value, rel=1e-6) for name, value in expected.items()}


def test_images_that_are_missing_are_noticed():
  with pytest.raises(AssertionError, match='test: counted 7.0 of 8 examples'):
    evaluator(8).evaluate({'factor': np.float32(1)})
