"""TrivialAugment-Wide: one random operation of random strength for each image, on the device.

Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, ICCV 2021. Operations, ranges
and pixels are those of `torchvision.transforms.TrivialAugmentWide()` on PIL images: 31 levels, nearest pixel, black
outside.

A switch over operations would compute all of them under vmap. Instead every image takes the same three passes, each of
which is the identity where it is not wanted, in integers throughout:

  table    of 256 levels a channel: posterize, solarize, autocontrast, equalize
  blend    v + floor(m (v - d)) with another image d: black, its mean gray, its grays, itself smoothed
  warp     one gather at affine coordinates in units of 1/65536 pixel, as Pillow counts them
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

OPERATIONS = (
  'identity',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
  'rotate',
  'brightness',
  'color',
  'contrast',
  'sharpness',
  'posterize',
  'solarize',
  'autocontrast',
  'equalize',
)
LEVELS = 31
_TOP = LEVELS - 1
_BLEND = 0.99  # and of shear; 0.99 / 30 is 33 / 1000
_TRANSLATE = 32  # pixels, whatever the size of the image
_ROTATE = 135  # degrees
_POSTERIZE = 6  # of 8 bits are lost at most
_GRAY = (19595, 38470, 7471)  # ITU-R 601 in units of 1/65536


def trivial_augment(key: jax.Array, image: jax.Array) -> jax.Array:
  """Applies to each image one of `OPERATIONS`, at one of `LEVELS` and with either sign, all equally likely.

  Args:
    key: jax random key.
    image: [B, H, W, C] in 0..255, C = 1 or 3, fewer than 2^23 pixels; floats are rounded to whole levels.

  Returns:
    [B, H, W, C], whole levels from 0 to 255, dtype of `image`.
  """
  return apply(image, *draw(key, image.shape[0]))


def draw(key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what each image is given: index into `OPERATIONS`, level from 0 to 30, whether negative; each [B]."""
  operation_key, level_key, sign_key = jax.random.split(key, 3)
  return (
    jax.random.randint(operation_key, (batch,), 0, len(OPERATIONS)),
    jax.random.randint(level_key, (batch,), 0, LEVELS),
    jax.random.bernoulli(sign_key, shape=(batch,)),
  )


def apply(image: jax.Array, operation: jax.Array, level: jax.Array, negative: jax.Array) -> jax.Array:
  """Applies a given operation to each image; operations without strength or sign ignore these.

  Equal to Pillow's pixels for all operations of geometry, posterize, solarize and equalize. The blends and autocontrast
  differ by 1 level where the exact result is a whole number and Pillow's floating point falls just below it.

  Args:
    image: as in `trivial_augment`.
    operation, level, negative: as from `draw`.

  Returns:
    as `trivial_augment`.
  """
  kind = image.dtype
  if jnp.issubdtype(kind, jnp.floating):
    image = jnp.clip(jnp.round(image), 0, 255)
  signed_level = jnp.where(negative, -level, level)
  pixels = image.astype(jnp.int32)
  pixels = _look_up(pixels, operation, level)
  pixels = _blend(pixels, operation, signed_level)
  return _warp(pixels, operation, signed_level).astype(kind)


def _is(operation, *names):
  """Which images are given one of the operations. [B] -> bool[B, 1, 1, 1]."""
  found = jnp.zeros(operation.shape, bool)
  for name in names:
    found |= operation == OPERATIONS.index(name)
  return found[:, None, None, None]


def _look_up(pixels, operation, level):
  """The operations that are a table of 256 levels for each image and channel."""
  batch, height, width, channels = pixels.shape
  flat = pixels.reshape(batch, height * width, channels)
  level = level[:, None, None]
  old = jnp.arange(256, dtype=jnp.int32)[None, :, None]
  # 8 - round(6 level / 30) bits are kept; the quotient has no halves.
  lost = (2 * level * _POSTERIZE + _TOP) // (2 * _TOP)
  posterized = (old >> lost) << lost
  solarized = jnp.where(old * 2 * _TOP < 255 * 2 * (_TOP - level), old, 255 - old)
  at = (np.arange(batch)[:, None, None], flat, np.arange(channels)[None, None])
  histogram = jnp.zeros((batch, 256, channels), jnp.int32).at[at].add(1, mode='promise_in_bounds')
  new = old
  for name, table in (
    ('posterize', posterized),
    ('solarize', solarized),
    ('autocontrast', _stretching(histogram, old)),
    ('equalize', _equalizing(histogram, old)),
  ):
    new = jnp.where(_is(operation, name)[..., 0], table, new)
  return jnp.take_along_axis(new, flat, 1, mode='promise_in_bounds').reshape(pixels.shape)


def _stretching(histogram, old):
  """The table that brings the lowest level of a channel to 0 and the highest to 255. int32[B, 256, C], both."""
  low = jnp.where(histogram > 0, old, 255).min(1, keepdims=True)
  high = jnp.where(histogram > 0, old, 0).max(1, keepdims=True)
  return jnp.where(high > low, jnp.clip((255 * (old - low)) // jnp.maximum(high - low, 1), 0, 255), old)


def _equalizing(histogram, old):
  """The table that makes all levels of a channel about equally frequent. int32[B, 256, C], both."""
  up_to = jnp.cumsum(histogram, 1)
  below = up_to - histogram
  step = jnp.where(histogram > 0, below, 0).max(1, keepdims=True) // 255  # of all pixels but those of the highest level
  return jnp.where(step > 0, jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255), old)


def _blend(pixels, operation, level):
  """v + m (v - d), rounded down and clipped: the operations that move an image away from another one or towards it."""
  gray = _grays(pixels)
  count = pixels.shape[1] * pixels.shape[2]
  total = gray.sum((1, 2), keepdims=True)
  mean = total // count + (2 * (total % count) >= count)
  other = jnp.where(_is(operation, 'contrast'), mean, 0)
  other = jnp.where(_is(operation, 'color'), gray, other)
  other = jnp.where(_is(operation, 'sharpness'), _smoothed(pixels), other)
  wanted = _is(operation, 'brightness', 'color', 'contrast', 'sharpness')
  thousandths = round(1000 * _BLEND / _TOP) * jnp.where(wanted, level[:, None, None, None], 0)
  return jnp.clip(pixels + (thousandths * (pixels - other)) // 1000, 0, 255)


def _grays(pixels):
  """int32[B, H, W, C] -> int32[B, H, W, 1], rounded; one channel stays as it is."""
  if pixels.shape[-1] == 1:
    return pixels
  return ((pixels * np.array(_GRAY, np.int32)[None, None, None]).sum(-1, keepdims=True) + 2**15) >> 16


def _smoothed(pixels):
  """Mean of nine neighbors, in which the pixel itself counts five times; the outermost pixels stay as they are."""
  height, width = pixels.shape[1:3]
  if min(height, width) < 3:
    return pixels
  rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels[:, 1:-1, 1:-1]
  return pixels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


def _warp(pixels, operation, signed_level):
  """The operations of geometry: each pixel is read at affine coordinates, black outside the image."""
  batch, height, width, channels = pixels.shape
  a, b, c, d, e, f = jnp.moveaxis(jnp.asarray(_matrices(height, width))[operation, signed_level + _TOP], 1, 0)[
    ..., None, None
  ]
  y, x = np.arange(height, dtype=np.int32)[None, :, None], np.arange(width, dtype=np.int32)[None, None]
  column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  index = jnp.where(inside, row * width + column, 0).reshape(batch, height * width, 1)
  read = jnp.take_along_axis(pixels.reshape(batch, -1, channels), index, 1, mode='promise_in_bounds')
  return jnp.where(inside[..., None], read.reshape(pixels.shape), 0)


def _matrices(height, width):
  """From a pixel of the result to the one that it shows: int32[operations, 61 signed levels, 6], in 1/65536 pixel."""
  table = np.empty((len(OPERATIONS), 2 * LEVELS - 1, 6), np.int32)
  for i, name in enumerate(OPERATIONS):
    for j, signed_level in enumerate(range(-_TOP, LEVELS)):
      a, b, c, d, e, f = _matrix(name, signed_level / _TOP, height, width)
      # Pixels are points in the middle of their squares.
      row = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
      table[i, j] = [math.floor(65536 * value + 0.5) for value in row]
  return table


def _matrix(name, strength, height, width):
  """(a, b, c, d, e, f) of column = a x + b y + c and row = d x + e y + f, strength from -1 to 1."""
  if name == 'shear_x':
    return 1, _BLEND * strength, 0, 0, 1, 0
  if name == 'shear_y':
    return 1, 0, 0, _BLEND * strength, 1, 0
  if name == 'translate_x':
    return 1, 0, -int(_TRANSLATE * strength), 0, 1, 0
  if name == 'translate_y':
    return 1, 0, 0, 0, 1, -int(_TRANSLATE * strength)
  if name == 'rotate':
    angle = -math.radians(_ROTATE * strength)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y
  return 1, 0, 0, 0, 1, 0
