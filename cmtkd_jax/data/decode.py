"""Preprocessing on the host, for streaming: decode, resize and crop, one image at a time.

JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the crop still has as many pixels as the network wants.
PIL cannot decode the crop alone; little is lost: four fifths of the time go into undoing the Huffman code, which has no
random access.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from cmtkd_jax.data import boxes, order, tensorflow_decode
from cmtkd_jax.errors import UserError

_MODES = {1: 'L', 3: 'RGB'}
_BROKEN_AT_FIRST = 100  # images in a row, before a set is taken for broken


class BrokenImage(UserError):
  """One image cannot be decoded; others can."""


@contextlib.contextmanager
def blame(source, record: int):
  """Turns a failed decoding into a `BrokenImage` that names the record."""
  try:
    yield
  except UserError:
    raise
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    # PIL would name the buffer, by its address.
    why = 'it is no image' if isinstance(e, UnidentifiedImageError) else ' '.join(str(e).split())[:200]
    raise BrokenImage(f'config.data.name: {source.describe(record)} cannot be decoded ({why}); '
                      'repair or remove it') from e


def first_shape(shape_of: Callable[[int], tuple[int, int, int]], count: int) -> tuple[int, int, int]:
  """Returns the shape of the first of `count` records whose header can be read; gives up after some."""
  errors = []
  for record in range(min(count, _BROKEN_AT_FIRST)):
    try:
      return shape_of(record)
    except BrokenImage as e:
      errors.append(e)
  raise errors[0]


def to_array(image: np.ndarray | bytes | Image.Image, channels: int) -> np.ndarray:
  """Decodes to uint8[h, w, channels]; arrays pass through."""
  if isinstance(image, np.ndarray):
    return image
  array = np.asarray(_convert(_open(image), channels))
  return array[..., None] if channels == 1 else array


def _open(image):
  """Reads the header of an encoded image; others pass through."""
  return Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image


def _convert(image: Image.Image, channels: int) -> Image.Image:
  # PIL would copy even where there is nothing to convert.
  return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def _resample(image: np.ndarray | Image.Image, box, size: int, channels: int) -> np.ndarray:
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image[..., 0] if channels == 1 else image)
  (top, left, height, width), whole = map(float, box), image.width
  # A smaller version of a JPEG, as long as its box has `size` pixels; other images, and arrays, have none.
  smaller = image.draft(None, (math.ceil(image.width * size / width), math.ceil(image.height * size / height)))
  scale = smaller[1][2] / whole if smaller else 1
  corners = (left * scale, top * scale, min((left + width) * scale, image.width),
             min((top + height) * scale, image.height))
  resized = _convert(image, channels).resize((size, size), Image.Resampling.BILINEAR, box=corners)
  return to_array(resized, channels)


def _size(image) -> tuple[int, int]:
  return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


@dataclasses.dataclass(frozen=True)
class Transform:
  """Decodes, crops and resizes: (image, position, record) -> uint8[size, size, channels]. Picklable.

  Attributes:
    augment: as in `augment.AUGMENTS`; here only the kinds of random resized crop matter.
    size: side of the result.
    resize: shorter side after resizing; 0: images must have the right size already.
    channels: 1 or 3 (any number where nothing is resized).
    seed: seed of the random crops; None: evaluation, always the centre.
    decoder: 'pil' (antialiased) or 'tensorflow' (see `tensorflow_decode`).
  """
  augment: str
  size: int
  resize: int
  channels: int
  seed: int | None
  decoder: str = 'pil'

  def __call__(self, image: np.ndarray | bytes, position: int, record: int) -> np.ndarray:
    encoded, image = image if isinstance(image, bytes) else None, _open(image)
    height, width = _size(image)
    if self.seed is not None and self.augment in ('inception_crop_flip', 'resize_crop_flip'):
      u = order.record_rng(self.seed, position, record).random(boxes.NUM_DRAWS)
      if self.augment == 'inception_crop_flip':
        box = boxes.inception_box(np, u, height, width)
      else:
        box = boxes.resize_crop_box(np, u, height, width, self.resize, self.size)
    elif self.resize:
      box = boxes.centre_box(height, width, self.resize, self.size)
    elif (height, width) != (self.size, self.size):
      raise UserError(f'config.data.resize=0, but an image is {height}x{width}, not '
                      f'{self.size}x{self.size} (config.data.image_size); set config.data.resize')
    else:
      return to_array(image, self.channels)
    if self.decoder == 'tensorflow':
      return tensorflow_decode.resample(encoded, image, box, self.size, self.channels)
    return _resample(image, box, self.size, self.channels)
