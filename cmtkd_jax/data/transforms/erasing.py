"""Cutout and random erasing: a box of each image becomes the mean, on the device, after standardizing."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.data.transforms import crop_boxes

_AREA = (0.02, 0.33)
_LOG_RATIO = (math.log(0.3), math.log(3.3))


def in_box(top, left, bottom, right, height: int, width: int) -> jax.Array:
  """Which pixels lie in rows [top, bottom) and columns [left, right), int32[...] each. -> bool[..., H, W]."""
  top, left, bottom, right = (jnp.asarray(edge)[..., None, None] for edge in (top, left, bottom, right))
  # Of the same number of dimensions as the edges: ranks are not promoted silently.
  y, x = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)[None]
  y, x = (np.expand_dims(axis, tuple(range(top.ndim - 2))) for axis in (y, x))
  return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def around(center: jax.Array, length) -> tuple[jax.Array, jax.Array]:
  """The `length` whole numbers around a center, of which even numbers have one more before it. -> [first, end)."""
  first = center - length // 2
  return first, first + length


def cutout(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
  """Sets a square of each image to 0; its center is any pixel, what lies outside the image is cut off.

  DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.

  Args:
    key: jax random key.
    image: float[B, H, W, C], standardized, so that 0 is the mean.
    side: of the square, in pixels; their code takes one less where it is odd.

  Returns:
    as `image`.
  """
  batch, height, width, _ = image.shape
  row_key, column_key = jax.random.split(key)
  top, bottom = around(jax.random.randint(row_key, (batch,), 0, height), side)
  left, right = around(jax.random.randint(column_key, (batch,), 0, width), side)
  return jnp.where(in_box(top, left, bottom, right, height, width)[..., None], 0, image)


def random_erasing(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
  """Sets a box of some images to 0: 2-33 % of the area, height by width 0.3-3.3, anywhere within the image.

  Zhong et al., Random Erasing Data Augmentation, AAAI 2020, as torchvision's RandomErasing: ratios are uniform in their
  logarithm, the box is the first of ten draws that is smaller than the image, and an image without one stays as it is.

  Args:
    key: jax random key.
    image: float[B, H, W, C], standardized, so that 0 is the mean.
    probability: that an image is changed, from 0 to 1.

  Returns:
    as `image`.
  """
  batch, height, width, _ = image.shape
  u = jax.random.uniform(key, (batch, 2 * crop_boxes.TRIES + 3))
  h, w = crop_boxes.draw_sides(jnp, u, height * width, _AREA, _LOG_RATIO)
  fits = (h < height) & (w < width)
  h, w = crop_boxes.first_fit(jnp, fits, h, w)
  top, left = jnp.floor(u[:, -3] * (height - h + 1)), jnp.floor(u[:, -2] * (width - w + 1))
  erased = in_box(top, left, top + h, left + w, height, width)
  erased &= (fits.any(1) & (u[:, -1] < probability))[:, None, None]
  return jnp.where(erased[..., None], 0, image)
