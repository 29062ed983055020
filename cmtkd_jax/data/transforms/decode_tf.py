"""Decoding the crop alone, and resizing it without antialiasing, as pipelines of tf.data do.

It takes about four fifths of PIL's time, from reading to pixels. Pixels differ from PIL's, so this is a choice
(`config.data.decoder`) and not what happens to be installed. A file that is cut short is broken only if its crop is.
"""

import math
from typing import Any

import numpy as np
from PIL import Image

from cmtkd_jax.data.transforms import image_file
from cmtkd_jax.runtime import tensorflow_host

_RATIOS = (8, 4, 2, 1)  # by which libjpeg makes a JPEG smaller
_GRAY_OR_COLOR = ('L', 'RGB')


def resample(encoded: bytes | None, image: Any, box, size: int, channels: int) -> np.ndarray:
  """Decodes and resizes a box, rounded to whole pixels.

  Args:
    encoded: the file, None for what is decoded already.
    image: the same opened by `image_file`, or uint8[h, w, channels].
    box: (top, left, height, width) in pixels as they are stored.
    size: side of the result.
    channels: 1 or 3.

  Returns:
    uint8[size, size, channels], as `tf.image.resize` gives it.

  Raises:
    ValueError: the file cannot be decoded.
  """
  box = tuple(map(float, box))
  if encoded is not None and image.format == 'JPEG' and image.mode in _GRAY_OR_COLOR:
    crop = _decode_jpeg(encoded, image.height, image.width, box, size, channels)
  else:
    if isinstance(image, Image.Image):
      image = np.asarray(image_file.convert(image, channels)).reshape(image.height, image.width, channels)
    top, left, height, width = _whole(box, *image.shape[:2])
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
  ops = tensorflow_host.load().raw_ops
  resized = ops.ResizeBilinear(images=ops.ExpandDims(input=crop, axis=0), size=(size, size), half_pixel_centers=True)
  return (resized.numpy()[0] + np.float32(0.5)).astype(np.uint8)


def _decode_jpeg(encoded, height, width, box, size, channels):
  tf = tensorflow_host.load()
  ratio = next(r for r in _RATIOS if r == 1 or min(box[2:]) >= r * size)
  window = _whole([edge / ratio for edge in box], math.ceil(height / ratio), math.ceil(width / ratio))
  try:
    return tf.raw_ops.DecodeAndCropJpeg(
      contents=encoded, crop_window=window, channels=channels, ratio=ratio, dct_method='INTEGER_ACCURATE'
    )  # which takes no longer
  except tf.errors.InvalidArgumentError as e:
    raise ValueError('the data of the JPEG are cut short or damaged') from e


def _whole(box, height, width) -> tuple[int, int, int, int]:
  """The box at whole pixels, at least one, inside the image."""
  top, left = min(round(box[0]), height - 1), min(round(box[1]), width - 1)
  bottom, right = min(round(box[0] + box[2]), height), min(round(box[1] + box[3]), width)
  return top, left, max(bottom - top, 1), max(right - left, 1)
