"""Preprocessing on the host, for streaming: decode, resize and crop, one image at a time.

JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the crop still has as many pixels as the network wants.
PIL cannot decode the crop alone; little is lost: four fifths of the time go into undoing the Huffman code, which has no
random access. Boxes are those of the picture the right way up; a file that stores it turned is cropped as it is stored,
and the crop is turned.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from cmtkd_jax.data import sampling
from cmtkd_jax.data.broken import WrongSizeError
from cmtkd_jax.data.transforms import crop_boxes, decode_tf, image_file
from cmtkd_jax.data.transforms.augments import AUGMENTS


def _opened(source: np.ndarray | bytes) -> tuple[Any, tuple[int, int], image_file.Orientation]:
  """(image, its height and width as stored, how it is turned upright) of pixels or of an encoded file."""
  if isinstance(source, np.ndarray):
    return source, source.shape[:2], image_file.UPRIGHT
  image = image_file.open_image(source)
  return image, (image.height, image.width), image_file.orientation(image)


def _resample(image: np.ndarray | Image.Image, box, size: tuple[int, int], channels: int) -> np.ndarray:
  """The box of the stored image, resampled to `size`, (width, height)."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image[..., 0] if channels == 1 else image)
  (top, left, height, width), whole = map(float, box), image.width
  # A smaller version of a JPEG, as long as its box has `size` pixels; other images, and arrays, have none.
  smaller = image.draft(None, (math.ceil(image.width * size[0] / width), math.ceil(image.height * size[1] / height)))
  scale = smaller[1][2] / whole if smaller else 1
  corners = (
    left * scale,
    top * scale,
    min((left + width) * scale, image.width),
    min((top + height) * scale, image.height),
  )
  resized = image_file.convert(image, channels).resize(size, Image.Resampling.BILINEAR, box=corners)
  array = np.asarray(resized)
  return array[..., None] if channels == 1 else array


@dataclasses.dataclass(frozen=True)
class Transform:
  """Decodes, crops and resizes: (image, position, record) -> uint8[size, size, channels]. Picklable.

  Attributes:
    augment: a name in `augments.AUGMENTS`; here only the kinds of random resized crop matter.
    size: side of the result.
    resize: shorter side after resizing; 0: images must have the right size already.
    channels: 1 or 3 (any number where nothing is resized).
    seed: seed of the random crops; None: evaluation, always the center.
    decoder: 'pil' (antialiased) or 'tensorflow' (see `decode_tf`).

  Calling it raises `image_file.UnreadableError` for a file that cannot be decoded, and `WrongSizeError`.
  """

  augment: str
  size: int
  resize: int
  channels: int
  seed: int | None
  decoder: str = 'pil'

  def __call__(self, source: np.ndarray | bytes, position: int, record: int) -> np.ndarray:
    image, stored, turned = _opened(source)
    height, width = turned.size(*stored)
    random_box = AUGMENTS[self.augment].random_box
    if self.seed is not None and random_box:
      u = sampling.record_rng(self.seed, position, record).random(crop_boxes.NUM_DRAWS)
      box = random_box(np, u, height, width, self.resize, self.size)
    elif self.resize:
      box = crop_boxes.center_box(height, width, self.resize, self.size)
    elif (height, width) != (self.size, self.size):
      raise WrongSizeError(f'{height}x{width}, not {self.size}x{self.size}')
    else:
      return image_file.to_array(image, self.channels)
    box = turned.stored_box(box, *stored)
    if self.decoder == 'tensorflow':
      crop = decode_tf.resample(source if isinstance(source, bytes) else None, image, box, self.size, self.channels)
    else:
      crop = _resample(image, box, (self.size, self.size), self.channels)
    return turned.apply(crop)

  def shrink(self, source: np.ndarray | bytes) -> np.ndarray:
    """Returns the whole picture, the right way up, its shorter side at most `resize`: uint8[h, w, channels]."""
    image, stored, turned = _opened(source)
    scale = self.resize / min(stored)
    if scale >= 1:
      return image_file.to_array(image, self.channels)
    height, width = (round(side * scale) for side in stored)
    return turned.apply(_resample(image, (0, 0, *stored), (width, height), self.channels))
