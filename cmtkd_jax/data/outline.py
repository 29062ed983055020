"""What a training step sees of a data set, found without reading an image."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmtkd_jax import options
from cmtkd_jax.data import splits as splits_lib
from cmtkd_jax.data.loading import loaders
from cmtkd_jax.data.settings import Settings, input_shape
from cmtkd_jax.data.sources import known
from cmtkd_jax.errors import UserError


class Outline(NamedTuple):
  """A data set that need not be there.

  num_classes, input_shape, augment, mix: as of a `Dataset`.
  steps_per_epoch, batch_spec: as of its `TrainLoader`.
  on_device_bytes: what the images take on each device.
  """

  num_classes: int
  input_shape: tuple[int, int, int]
  augment: Callable[[jax.Array, jax.Array], jax.Array]
  steps_per_epoch: int
  batch_spec: dict[str, jax.ShapeDtypeStruct]
  on_device_bytes: int
  mix: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None


def outline(fields: Mapping[str, Any], *, batch_size: int, mesh: jax.sharding.Mesh, advice: str = '') -> Outline:
  """Returns the `Outline` of a data set; opens it only where its name is none of those that `known` describes.

  Args and errors: as of `dataset.load`; the devices of `mesh` need not be there, either. `advice` is added to the
  error of a data set that cannot be opened.
  """
  config = options.create(Settings, 'data', fields)
  splits_lib.check_batch_sizes(batch_size, 1, mesh.shape['data'])
  splits = known.describe(config.name)
  if splits is None:
    try:
      splits = splits_lib.open_splits(config)
    except UserError as e:
      raise UserError(f'{e}{advice}') from e
  splits_lib.check_classes(config, splits)
  splits_lib.check_images(config, splits)
  is_on_device = splits_lib.is_on_device(config, splits)
  train_records, _ = splits_lib.split_train(config, splits, batch_size)
  shape = input_shape(config)
  image = splits.train.shape if is_on_device else shape
  return Outline(
    num_classes=len(splits.class_names),
    input_shape=shape,
    augment=splits_lib.transforms(config, is_on_device)[0],
    steps_per_epoch=len(train_records) // batch_size,
    batch_spec=loaders.batch_spec(batch_size, image, NamedSharding(mesh, P('data'))),
    on_device_bytes=sum(len(split) * math.prod(split.first_shape) for split in splits[:2]) if is_on_device else 0,
    mix=splits_lib.mixing(config),
  )
