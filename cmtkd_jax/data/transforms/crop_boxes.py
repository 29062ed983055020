"""Crop boxes in source-image coordinates, for NumPy (host decoding) and jax.numpy (device) alike.

A box is (top, left, height, width), floats in pixels; resampling a box to S x S pixels is resize and crop in
one. `xp` is the array module; `u` holds uniform numbers in [0, 1) whose last axis is named in each function.
"""

import math

TRIES = 10
NUM_DRAWS = 2 * TRIES + 2
_AREA = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def center_box(height: int, width: int, resize: int, size: int) -> tuple[float, float, float, float]:
  """Box of "shorter side to `resize`, then center crop of `size`". 0 < size <= resize."""
  side = size * min(height, width) / resize
  return (height - side) / 2, (width - side) / 2, side, side


def resize_crop_box(xp, u, height: int, width: int, resize: int, size: int):
  """Box of "shorter side to `resize`, then random crop of `size`" at whole pixels of the resized image.

  Args:
    xp: numpy or jax.numpy.
    u: uniform [..., NUM_DRAWS]; the last two are used.
    height: height of the source image.
    width: width of the source image.
    resize: shorter side after resizing.
    size: side of the crop, size <= resize.

  Returns:
    (top, left, height, width), each of u's leading shape.
  """
  short = min(height, width)
  step = short / resize  # Source pixels per resized pixel.
  top = xp.floor(u[..., -2] * (height * resize // short - size + 1)) * step
  left = xp.floor(u[..., -1] * (width * resize // short - size + 1)) * step
  side = xp.full_like(top, size * step)
  return top, left, side, side


def draw_sides(xp, u, pixels: int, area: tuple[float, float], log_ratio: tuple[float, float]):
  """Returns `TRIES` draws of the sides (a, b) of a box: a b / pixels uniform in `area`, log(a / b) in `log_ratio`.

  u: uniform [..., n]; the first 2 `TRIES` are used. The sides are whole numbers, float32[..., TRIES].
  """
  area = pixels * (area[0] + (area[1] - area[0]) * u[..., :TRIES])
  ratio = xp.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[..., TRIES : 2 * TRIES])
  return xp.round(xp.sqrt(area * ratio)), xp.round(xp.sqrt(area / ratio))


def first_fit(xp, fits, *sides):
  """Returns the `sides` [..., TRIES] of the first draw that `fits`; of the first draw where none does."""
  first = xp.argmax(fits, axis=-1)[..., None]
  return (xp.take_along_axis(side, first, axis=-1)[..., 0] for side in sides)


def inception_box(xp, u, height: int, width: int, resize: int = 0, size: int = 0):
  """Box of random area (8-100 %) and aspect ratio (3/4-4/3): the first of ten draws that fits.

  Where none fits, the largest centered box of allowed ratio, as torchvision's RandomResizedCrop does.

  Args:
    xp: numpy or jax.numpy.
    u: uniform [..., NUM_DRAWS].
    height: height of the source image.
    width: width of the source image.
    resize, size: not used; the signature is that of `resize_crop_box`.

  Returns:
    (top, left, height, width), each of u's leading shape.
  """
  del resize, size
  w, h = draw_sides(xp, u, height * width, _AREA, _LOG_RATIO)
  fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
  w, h = first_fit(xp, fits, w, h)
  top = xp.floor(u[..., -2] * (height - h + 1))
  left = xp.floor(u[..., -1] * (width - w + 1))
  w0, h0 = min(width, height * 4 / 3), min(height, width * 4 / 3)
  whole = ((height - h0) / 2, (width - w0) / 2, h0, w0)
  found = xp.any(fits, axis=-1)
  return tuple(xp.where(found, box, other) for box, other in zip((top, left, h, w), whole))
