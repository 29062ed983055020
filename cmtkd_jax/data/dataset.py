"""`load`: from `config.data` to loaders and preprocessing."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmtkd_jax import options
from cmtkd_jax.data import broken
from cmtkd_jax.data import splits as splits_lib
from cmtkd_jax.data.loading import host_reader, loaders, on_device, worker_pool
from cmtkd_jax.data.settings import Settings, input_shape
from cmtkd_jax.data.transforms import decode_pil
from cmtkd_jax.data.transforms.augments import AUGMENTS
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import tensorflow_host


class Dataset(NamedTuple):
  """What training needs of a data set.

  Attributes:
    num_classes: number of classes.
    class_names: their names, in the order of the labels.
    input_shape: (H, W, C) of the network's input.
    train: training batches.
    evals: 'test' and, where config.data.minival > 0, 'minival'.
    augment: (key, uint8[B, h, w, C]) -> float32[B, H, W, C]; pure, to be called inside the train step.
    normalize: uint8[B, h, w, C] -> float32[B, H, W, C]; pure, to be called inside the eval step.
    num_examples: {'train': images to train on and of the held-out slice, 'test': images to test on}.
    held_out: which part of train the test images are, in words; '' where they are a split of their own.
    held_out_digest: of their names, see `sources.base.Splits`.
    summary: one line for the start of a run: images of each split, classes, and what the user should know about them.
    mix: (key, float32[..., B, H, W, C]) -> (the same, share of image i in the mixture of i and i - 1), see
      `transforms.mix`; pure, to be called inside the train step on what `augment` returns. None: nothing is mixed.
  """

  num_classes: int
  class_names: tuple[str, ...]
  input_shape: tuple[int, int, int]
  train: loaders.TrainLoader
  evals: Mapping[str, loaders.EvalLoader]
  augment: Callable[[jax.Array, jax.Array], jax.Array]
  normalize: Callable[[jax.Array], jax.Array]
  num_examples: Mapping[str, int]
  held_out: str
  held_out_digest: str
  summary: str
  mix: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None


def load(
  fields: Mapping[str, Any], *, batch_size: int, eval_batch_size: int, seed: int, mesh: jax.sharding.Mesh
) -> Dataset:
  """Opens a data set.

  Args:
    fields: of `Settings`, a mapping such as `config.data`; those that are missing have their defaults.
    batch_size: global batch size for training.
    eval_batch_size: global batch size for evaluation; rounded up to a multiple of the device count.
    seed: seed of the order and, when streaming, of the random crops; the held-out slice is always the same.
    mesh: devices, with an axis 'data' over which batches are sharded.

  Returns:
    The data set.

  Raises:
    UserError: a field is out of range or does not fit the images, or the data are missing or broken.
  """
  config = options.create(Settings, 'data', fields)
  splits_lib.check_batch_sizes(batch_size, eval_batch_size, mesh.shape['data'])
  splits = splits_lib.open_splits(config)
  splits_lib.check_images(config, splits)
  images_on_device = splits_lib.is_on_device(config, splits)
  train_records, minival_records = splits_lib.split_train(config, splits, batch_size)
  readers = (_on_device_readers if images_on_device else _streaming_readers)(config, splits, train_records, seed, mesh)

  devices = mesh.shape['data']
  eval_batch_size = -(-eval_batch_size // devices) * devices
  make_eval = functools.partial(loaders.EvalLoader, batch_size=eval_batch_size, sharding=NamedSharding(mesh, P('data')))
  evals = {'minival': make_eval(readers.minival, minival_records)} if config.minival else {}
  evals['test'] = make_eval(readers.test, np.arange(len(splits.test)))
  augment, normalize = splits_lib.transforms(config, images_on_device)
  return Dataset(
    num_classes=len(splits.class_names),
    class_names=splits.class_names,
    input_shape=input_shape(config),
    train=loaders.TrainLoader(readers.train, train_records, batch_size, seed),
    evals=evals,
    augment=augment,
    normalize=normalize,
    num_examples={'train': len(splits.train), 'test': len(splits.test)},
    held_out=splits.held_out,
    held_out_digest=splits.held_out_digest,
    summary=_summary(config.name, splits, train_records, len(minival_records)),
    mix=splits_lib.mixing(config),
  )


class _Readers(NamedTuple):
  """Readers of batches, see `loaders`."""

  train: Any
  minival: Any
  test: Any


def _on_device_readers(config, splits, train_records, seed, mesh):
  """Readers of images on the device, which are decoded at the start."""
  del seed
  # Broken images are replaced in training; an accuracy on other images would be another accuracy.
  images, labels, replaced = on_device.read_all(splits.train, config.num_workers, train_records)
  broken.check_count(replaced, config.max_corrupt_fraction * len(train_records))
  train = on_device.Reader(images, labels, replaced, mesh)
  return _Readers(train, train, on_device.Reader(*on_device.read_all(splits.test, config.num_workers), mesh))


def _streaming_readers(config, splits, train_records, seed, mesh):
  """Readers of images that are decoded batch by batch."""
  from cmtkd_jax.data.loading import streaming  # Needs grain, which images on the device do not need.

  channels, size = len(config.mean), config.image_size
  resizes = config.resize or AUGMENTS[config.augment].random_box
  if resizes and channels not in (1, 3):
    raise UserError(
      f'config.data.on_device={config.on_device!r}: resizing streamed images works for 1 or 3 '
      f"channels, not {channels}; set on_device='yes', or resize=0 and another augment"
    )
  _check_decoder(config)
  processes = worker_pool.Workers(config.num_workers) if config.workers == 'processes' else None
  max_broken = config.max_corrupt_fraction * len(train_records)

  def reader(source, seed, substitutes=None, cache=False):
    transform = decode_pil.Transform(
      config.augment, size=size, resize=config.resize, channels=channels, seed=seed, decoder=config.decoder
    )
    host = host_reader.HostReader(source, (size, size, channels), transform, substitutes, cache)
    return streaming.Reader(host, config.num_workers, processes, max_broken, mesh)

  return _Readers(
    train=reader(splits.train, seed, train_records, config.cache),
    minival=reader(splits.train, None),
    test=reader(splits.test, None),
  )


def _summary(name, splits, train_records, num_minival):
  minival = f'minival {num_minival}, ' if num_minival else ''
  test = f'test {len(splits.test)}{f" ({splits.held_out})" if splits.held_out else ""}'
  counts = f'{name}: train {len(splits.train) - num_minival} images, {minival}{test}, {len(splits.class_names)} classes'
  return '; '.join((counts, *_class_notes(splits, train_records), *splits.notes))


def _class_notes(splits, train_records):
  """What the user should know about classes without images; the labels of tfds are not known before they are read."""
  if splits.train.labels is None or splits.test.labels is None:
    return
  count = len(splits.class_names)
  train, test = (
    np.bincount(labels, minlength=count) for labels in (splits.train.labels[train_records], splits.test.labels)
  )
  if empty := int(np.sum(train == 0)):
    used = ', '.join(map(str, np.flatnonzero(train)[:5])) + ', ...' * (count - empty > 5)
    yield f'{empty} of the {count} classes {_have(empty)} no training images (labels in use: {used})'
  if untested := int(np.sum((train > 0) & (test == 0))):
    yield f'{untested} of the {count} classes {_have(untested)} training images, but no test images'
  if strays := int(np.sum(test[train == 0])):
    yield f'{strays} test image{" belongs" if strays == 1 else "s belong"} to classes without training images'


def _have(count):
  return 'has' if count == 1 else 'have'


def _check_decoder(config):
  if config.decoder == 'tensorflow':
    try:
      tensorflow_host.load()  # here, before threads do
    except ImportError as e:
      raise UserError(
        f"config.data.decoder='tensorflow', which cannot be imported ({e}); pip install tensorflow, or "
        "set decoder='pil'"
      ) from e
