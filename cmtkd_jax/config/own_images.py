"""Settings for a folder of images, chosen by what is in the folder and by the machine."""

import shlex
import statistics
import sys
from typing import Any, NamedTuple, cast

from cmtkd_jax.config.variants import smoke
from cmtkd_jax.data.broken import CorruptImageError
from cmtkd_jax.data.sources.folder import FolderSource, read
from cmtkd_jax.errors import UserError, printable
from cmtkd_jax.runtime import chips, local_file

_LOOKED_AT = 200  # images of training and of test each, whose size is read
_FEW = 1500  # images of which a CPU can train on 64x64 pixels in ten minutes
_CPU_SECONDS = 420  # of training, beside compilation and evaluation
# Of one image of 32x32 pixels through a step of four ResNet8: measured on two cores of an Intel Xeon.
_CPU_IMAGE_SECONDS = 0.005
_ACCELERATOR_IMAGES = 3_000_000
_CACHE = 2**30  # bytes
_TAKEN_AS_THEY_ARE = 64  # pixels a side


class Found(NamedTuple):
  """The contents of a folder.

  train, test, classes: numbers of images and classes.
  held_out: which part of train the test images are, in words; '' where there are test images.
  short: shorter sides of the training images that were looked at, in pixels, sorted.
  square: whether these and the test images all have one size, and are square.
  """

  train: int
  test: int
  classes: int
  held_out: str
  short: list[int]
  square: bool


class Choice(NamedTuple):
  """The value of a field, and the reason for it."""

  field: str
  value: Any
  reason: str


def look(path, test_fraction) -> Found:
  """Returns the contents of the folder `path`; reads the headers of some images, evenly spread.

  Raises:
    UserError: it holds no images that can be trained on.
  """
  splits = read(path, 3, test_fraction)
  (sizes, errors), (others, _) = (_sizes(cast(FolderSource, source)) for source in (splits.train, splits.test))
  if not sizes:
    raise errors[0]
  return Found(
    len(splits.train),
    len(splits.test),
    len(splits.class_names),
    splits.held_out,
    sorted(map(min, sizes)),
    len({*sizes, *others}) == 1 and sizes[0][0] == sizes[0][1],
  )


def _sizes(source):
  """(sizes of some images, evenly spread; errors of those that cannot be read)."""
  sizes, errors = [], []
  looked_at = min(len(source), _LOOKED_AT)
  for i in range(looked_at):
    try:
      sizes.append(source.shape_of(i * len(source) // looked_at)[:2])
    except CorruptImageError as e:  # replaced, or an error, in training
      errors.append(e)
  return sizes, errors


def choose(found: Found, accelerator: bool) -> list[Choice]:
  """Returns the fields that depend on the images and on whether a GPU or TPU trains on them."""
  images = _images(found, accelerator)
  size = images[0].value
  most, full_rate_batch = (256, 256) if accelerator else (64, 64)
  batch = 2 ** (max(1, min(found.train // 8, most)).bit_length() - 1)
  batch = min(max(batch, 8), 2 ** (found.train.bit_length() - 1))
  network, epochs, length = (_on_accelerator if accelerator else _on_cpu)(found, size)
  every = f'{max(1, epochs // 10)} epochs'
  return [
    *images,
    *network,
    Choice('model.stem', 'imagenet' if size > 128 else 'cifar', f'for {size}x{size} pixels'),
    Choice('batch_size', batch, f'of {found.train:,} images'),
    Choice('optimizer.learning_rate', min(0.1, 0.1 * batch / full_rate_batch), 'with the batch'),
    Choice('duration', f'{epochs} epochs', length),
    Choice('eval_every', every, 'ten evaluations'),
    Choice('checkpoint_every', every, 'at every evaluation'),
  ]


def _images(found, accelerator):
  """The `Choice`s of image size, the first, and augmentation."""
  short = round(statistics.median(found.short))
  if found.square and short <= _TAKEN_AS_THEY_ARE:
    return [
      Choice('data.image_size', short, 'all images have this size'),
      Choice('data.augment', 'pad_crop_flip', 'shifts by up to an eighth, mirrored'),
      Choice('data.pad', max(1, short // 8), 'an eighth of the image'),
    ]
  if accelerator:
    size, resize, why, augment = 224, 256, 'as for ImageNet', 'inception_crop_flip'
  elif found.train <= _FEW and short >= 64:
    size, resize, why, augment = 64, 72, f'{found.train:,} images are few enough', 'resize_crop_flip'
  else:
    size, resize, why, augment = 32, 36, 'for so many images, or such small ones', 'resize_crop_flip'
  fits = found.train * 1.5 * resize**2 * 3 < _CACHE  # with sides of 2 to 3
  return [
    Choice('data.image_size', size, why),
    Choice('data.resize', resize, 'shorter side, from which the network sees a crop'),
    Choice('data.augment', augment, 'crops at random, mirrored'),
    *([Choice('data.cache', True, 'each file is decoded once')] if fits else []),
  ]


def _on_accelerator(found, size):
  """(`Choice`s of the network, epochs, what they come to)."""
  del size
  epochs = min(200, max(60, _ACCELERATOR_IMAGES // found.train))
  network = [Choice('model.name', 'resnet18', 'for a GPU or TPU'), Choice('dtype', 'bfloat16', 'the same')]
  return network, epochs, f'about {epochs * found.train / 1e6:.2g} million images'


def _on_cpu(found, size):
  """As `_on_accelerator`."""
  seconds = found.train * _CPU_IMAGE_SECONDS * (size / 32) ** 2  # of an epoch
  epochs = min(300, max(10, round(_CPU_SECONDS / seconds)))
  network = [Choice('model.name', 'resnet8', 'small enough to train student and teachers on a CPU')]
  return network, epochs, f'about {max(1, round(epochs * seconds / 60))} min of training on two cores'


def apply(config, argument):
  """Sets and prints what suits the folder that `--config=FILE:DIR[,cpu|,accelerator|,smoke]` names; returns `config`.

  Args:
    config: changed in place.
    argument: the text after the colon. 'cpu' or 'accelerator' stands in for the machine that is found.

  Raises:
    UserError: there is no folder in it, or it holds no images that can be trained on.
  """
  path, *words = argument.split(',') if argument else ['']
  if 'smoke' in (path, *words):
    smoke(config, 32)
    return config
  if unknown := set(words) - {'cpu', 'accelerator'}:
    raise UserError(
      f'--config=...:{argument}: {sorted(unknown)[0]!r} is not one of cpu, accelerator, smoke, the words after a '
      "comma; a folder's name cannot have a comma here, so rename it"
    )
  if not path:
    raise UserError('--config: the folder of images is missing; name it after a colon, e.g. --config=FILE.py:DIR')
  local_file.check_schemes('--config=...', path)
  found = look(path, config.data.test_fraction)
  accelerator = words[-1] == 'accelerator' if words else chips.expects_accelerator()
  choices = choose(found, accelerator)
  config.data.name = f'folder:{path}'
  config.update_from_flattened_dict({choice.field: choice.value for choice in choices})
  print(describe(path, found, accelerator, choices), file=sys.stderr, flush=True)
  return config


def describe(path, found, accelerator, choices):
  """Returns what was found and chosen, and how to choose otherwise, as text."""
  machines = [('a CPU', 'cpu'), ('a GPU or TPU', 'accelerator')]
  (other, word), (machine, _) = machines if accelerator else machines[::-1]
  test = f'{found.test:,} to test on{f" ({found.held_out})" if found.held_out else ""}'
  sides = ' to '.join(map(str, sorted({found.short[0], found.short[-1]})))
  fields = [f'--config.{choice.field}={shlex.quote(str(choice.value))}' for choice in choices]
  width = max(map(len, fields))
  return '\n'.join(
    [
      f'{printable(path)}: {found.train:,} images to train on, {test}, {found.classes} classes; '
      f'shorter side {sides} pixels',
      f'chosen for {machine} (for {other}: --config=configs/folder.py:DIR,{word}):',
      *(f'  {field.ljust(width)}  {choice.reason}' for field, choice in zip(fields, choices)),
      'To change a choice, pass its flag with another value. The other choices stay as they are.',
    ]
  )
