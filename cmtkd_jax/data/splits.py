"""From `config.data` to opened splits, and what training makes of them; no image is read yet, except for its shape."""

import functools
import math

from cmtkd_jax.data import sampling
from cmtkd_jax.data.sources import base, names, npy
from cmtkd_jax.data.transforms import augment, mix
from cmtkd_jax.errors import UserError

_ON_DEVICE_LIMIT = 2**30
_MOST_IN_A_BATCH = 2**20
_MUCH_LARGER = 2  # times the side to which images are resized
_SMALL = 64  # pixels a side of images that networks take as they are


def open_splits(config) -> base.Splits:
  """Returns the splits of the data set that `config`, a `Settings`, names.

  Raises:
    UserError: there is none of that name, it cannot be read, or it has fewer than two classes.
  """
  splits = _open(config)
  check_classes(config, splits)
  return splits


def check_classes(config, splits):
  """Raises `UserError` where there is nothing to tell apart, or labels in memory have classes without a name."""
  if len(splits.class_names) < 2:
    raise UserError(f'config.data.name={config.name!r}: there is one class; give images of two or more')
  for source in splits[:2]:
    if isinstance(source, base.ArraySource) and source.labels.max(initial=0) >= len(splits.class_names):
      raise UserError(
        f'config.data.name={config.name!r}: there is the label {source.labels.max()}, but there are '
        f'{len(splits.class_names)} class names; number the classes from 0'
      )


def _open(config) -> base.Splits:
  kind, _, rest = config.name.partition(':')
  if config.name == 'digits':
    return base.digits()
  if kind == 'generated':
    return base.generated(rest)
  if kind in ('npy', 'folder') and not rest:
    raise UserError(f'config.data.name={config.name!r} lacks the path of a folder; write {kind}:DIR')
  if kind == 'npy':
    return npy.read(rest, channels=len(config.mean))
  if kind == 'folder':
    from cmtkd_jax.data.sources import folder

    return folder.read(rest, channels=len(config.mean), test_fraction=config.test_fraction)
  if names.is_path(config.name):
    raise names.unknown(config.name)  # type: ignore[misc]  # a path resembles something
  from cmtkd_jax.data.sources import tfds_source  # Imports tensorflow_datasets, which may not be installed.

  return tfds_source.read(rest if kind == 'tfds' else config.name, config.dir)


def check_batch_sizes(batch_size, eval_batch_size, devices):
  """Raises `UserError` unless the batches can be shared by so many devices."""
  if batch_size < 1 or batch_size % devices:
    lower = batch_size // devices * devices
    nearest = f'{lower} or {lower + devices}' if lower > 0 else f'{devices}'
    raise UserError(f'config.batch_size={batch_size} does not divide over {devices} devices; use {nearest}')
  if eval_batch_size < 1:
    raise UserError(f'config.eval_batch_size={eval_batch_size}: must be positive')
  if eval_batch_size > _MOST_IN_A_BATCH:
    raise UserError(f'config.eval_batch_size={eval_batch_size} is more than {_MOST_IN_A_BATCH}; lower it')


def check_images(config, splits):
  """Raises `UserError` unless the images become what `config` says that the network takes."""
  size, channels = config.image_size, len(config.mean)
  for which, source in zip(('training', 'test'), splits):
    h, w, c = source.first_shape
    if c != channels:
      raise UserError(
        f'config.data.mean={tuple(config.mean)} is for {channels} channels, but the images of '
        f'{config.name!r} have {c} channels; give mean and std of length {c}'
      )
    if not config.resize and (h, w) != (size, size):
      sizes = [other.shape and other.shape[:2] for other in splits[:2]]
      fits = sizes == [(h, h)] * 2 and h <= _SMALL
      unchanged = f'config.data.image_size={h}, which takes them as they are, or set ' if fits else ''
      raise UserError(
        f'config.data.image_size={size} and config.data.resize=0, but the {which} images of {config.name!r} are '
        f'{h}x{w}{"" if source.shape else " and of other sizes"}; set {unchanged}config.data.resize={size} or more, '
        f'which scales the shorter side to that and crops {size}x{size}'
      )


def is_on_device(config, splits) -> bool:
  """Whether the images are kept on the devices, decoded."""
  if config.on_device == 'no':
    return False
  total = sum(len(s) * math.prod(s.first_shape) for s in splits[:2])
  largest = max(min(s.first_shape[:2]) for s in splits[:2])
  if config.on_device == 'auto':  # Decided before `shape`, which may open every file.
    if total > _ON_DEVICE_LIMIT:
      return False
    if config.resize and largest > _MUCH_LARGER * config.resize:
      return False  # Every step would resize them again.
  same = all(s.shape is not None for s in splits[:2])
  if config.on_device == 'yes' and not same:
    raise UserError(f"config.data.on_device='yes', but images of {config.name!r} differ in size; set on_device='no'")
  return same


def split_train(config, splits, batch_size):
  """Returns the record numbers of training, and of its held-out slice."""
  train_records, minival_records = sampling.split_minival(len(splits.train), config.minival)
  if config.minival and not len(minival_records):
    raise UserError(
      f'config.data.minival={config.minival} of {len(splits.train)} training examples is none; raise it, or set it to 0'
    )
  if len(train_records) < batch_size:
    or_less = f', or config.data.minival={config.minival}' if batch_size <= len(splits.train) else ''
    raise UserError(
      f'config.batch_size={batch_size} is more than the {len(train_records)} training examples of {config.name!r}; '
      f'lower it{or_less}'
    )
  return train_records, minival_records


def transforms(config, is_on_device):
  """Returns (augment, normalize) for images kept on the device, or resized where they are decoded: `augment.build`."""
  return augment.build(
    config.augment,
    size=config.image_size,
    resize=config.resize,
    pad=config.pad,
    mean=tuple(config.mean),
    std=tuple(config.std),
    raw=is_on_device,
    pad_mode=config.pad_mode,
    trivial_augment=config.trivial_augment,
    cutout=config.cutout,
    random_erasing=config.random_erasing,
  )


def mixing(config):
  """Returns the function (key, images) -> (images, share) of `mix.mix`, or None where nothing is mixed."""
  if not (config.mixup or config.cutmix):
    return None
  return functools.partial(mix.mix, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)
