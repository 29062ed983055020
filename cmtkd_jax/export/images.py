"""What every exported network asks of its images, whatever file it comes from."""

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.errors import UserError, one_line


def check(images, image_shape, name='images'):
  """Returns `images` as an array after a check that they are what the network takes: uint8 [B, H, W, C].

  Only dtype and shape are looked at, so tracers inside `jax.jit` pass, too.

  Args:
    images: an array, or what NumPy makes one of.
    image_shape: (H, W, C) of the network.
    name: of the argument, for messages.

  Raises:
    UserError: there are none, or they have another dtype, rank, size or number of channels. The message says how to
      repair the usual mistakes.
  """
  if not isinstance(images, (np.ndarray, jax.Array)):
    try:
      images = np.asarray(images)
    except (TypeError, ValueError) as e:  # such as lists of different lengths
      raise UserError(
        f'{name}: {_wanted(image_shape)}, not a {type(images).__name__} that NumPy makes no array of '
        f'({one_line(e, 120)})'
      ) from None
  shape, dtype = tuple(images.shape), images.dtype
  if dtype == np.uint8 and len(shape) == 4 and shape[1:] == tuple(image_shape) and shape[0] != 0:
    return images
  hint = _dtype_hint(dtype) if dtype != np.uint8 else _shape_hint(shape, tuple(image_shape))
  raise UserError(f'{name}: {_wanted(image_shape)}, not {dtype} {list(shape)}{hint and f"; {hint}"}')


def _wanted(image_shape):
  height, width, channels = image_shape
  return f'the network takes uint8 [batch, {height}, {width}, {channels}]'


def _dtype_hint(dtype):
  if jnp.issubdtype(dtype, jnp.floating):
    return 'pass the raw uint8 pixels 0..255, the network standardizes them itself'
  return "if they are pixels 0..255, convert them with images.astype('uint8')"


def _shape_hint(shape, image_shape):
  height, width, channels = image_shape
  if 0 in shape:
    return 'there is no image in them'
  first = (channels, height, width)
  if shape == image_shape:
    return 'this is a single image: add a batch axis with images[None]'
  if shape == first:
    return 'this is a single image with the channels first: images.transpose(1, 2, 0)[None]'
  if channels == 1 and shape == (height, width):
    return 'this is a single image without a channel: images[None, ..., None]'
  if channels == 1 and len(shape) == 3 and shape[1:] == (height, width):
    return 'add the axis of the channel with images[..., None]'
  if len(shape) != 4:
    return ''
  if shape[1:] == first:
    return 'the channels come last: images.transpose(0, 2, 3, 1)'
  if shape[1:3] == (height, width):
    if shape[3] == 1:
      return f'repeat the gray channel with images.repeat({channels}, axis=-1)'
    if (shape[3], channels) == (4, 3):
      return 'leave out the alpha channel with images[..., :3]'
    return f'convert them to {channels} channel{"s" if channels > 1 else ""}'
  return f'resize or crop them to {height}x{width}, as the images were that the network was trained on'
