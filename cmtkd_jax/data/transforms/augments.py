"""The table of augmentations: which part of each runs where images are decoded, and which on the device."""

from collections.abc import Callable
from typing import NamedTuple

from cmtkd_jax.data.transforms import crop_boxes


class Augment(NamedTuple):
  """One augmentation of training images.

  pad_crop: pads each image and crops it at random to the old size, on the device.
  random_box: function (xp, u, height, width, resize, size) -> box of a random crop that is resampled, see `crop_boxes`:
    where images are decoded, or on the device for images that are kept there.
  flip: mirrors each image with probability 1/2, on the device.
  needs_resize: the random box is that of a resized image, so that config.data.resize must be set.
  """

  pad_crop: bool = False
  random_box: Callable | None = None
  flip: bool = False
  needs_resize: bool = False


AUGMENTS = {
  'none': Augment(),
  'pad_crop': Augment(pad_crop=True),
  'pad_crop_flip': Augment(pad_crop=True, flip=True),
  'resize_crop_flip': Augment(random_box=crop_boxes.resize_crop_box, flip=True, needs_resize=True),
  'inception_crop_flip': Augment(random_box=crop_boxes.inception_box, flip=True),
}
