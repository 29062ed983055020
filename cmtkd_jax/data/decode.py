"""Preprocessing on the host, for streaming: decode, resize and crop, one image at a time."""

import contextlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from cmtkd_jax.data import boxes, order
from cmtkd_jax.errors import UserError

_MODES = {1: 'L', 3: 'RGB'}


@contextlib.contextmanager
def blame(source, record: int):
  """Turns a failed decoding into a UserError that names the record."""
  try:
    yield
  except UserError:
    raise
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise UserError(f'config.data.name: {source.describe(record)} cannot be decoded ({e}); '
                    'repair or remove it') from e


def to_array(image: np.ndarray | Image.Image, channels: int) -> np.ndarray:
  """Decodes to uint8[h, w, channels]; arrays pass through."""
  if isinstance(image, np.ndarray):
    return image
  array = np.asarray(_convert(image, channels))
  return array[..., None] if channels == 1 else array


def _convert(image: Image.Image, channels: int) -> Image.Image:
  # PIL would copy even where there is nothing to convert.
  return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def _resample(image: np.ndarray | Image.Image, box, size: int, channels: int) -> np.ndarray:
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image[..., 0] if channels == 1 else image)
  top, left, height, width = map(float, box)
  corners = (left, top, min(left + width, image.width), min(top + height, image.height))
  resized = _convert(image, channels).resize((size, size), Image.Resampling.BILINEAR, box=corners)
  return to_array(resized, channels)


def _size(image) -> tuple[int, int]:
  return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def build(augment: str, *, size: int, resize: int, channels: int, seed: int | None) -> Callable:
  """Returns transform(image, position, record) -> uint8[size, size, channels].

  Args:
    augment: as in `augment.AUGMENTS`; here only the kinds of random resized crop matter.
    size: side of the result.
    resize: shorter side after resizing; 0: images must have the right size already.
    channels: 1 or 3 (any number where nothing is resized).
    seed: seed of the random crops; None: evaluation, always the centre.
  """
  def transform(image, position, record):
    height, width = _size(image)
    if seed is not None and augment in ('inception_crop_flip', 'resize_crop_flip'):
      u = order.record_rng(seed, position, record).random(boxes.NUM_DRAWS)
      if augment == 'inception_crop_flip':
        box = boxes.inception_box(np, u, height, width)
      else:
        box = boxes.resize_crop_box(np, u, height, width, resize, size)
    elif resize:
      box = boxes.centre_box(height, width, resize, size)
    elif (height, width) != (size, size):
      raise UserError(f'config.data.resize=0, but an image is {height}x{width}, not '
                      f'{size}x{size} (config.data.image_size); set config.data.resize')
    else:
      return to_array(image, channels)
    return _resample(image, box, size, channels)

  return transform
