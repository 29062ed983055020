"""Image files to 8-bit pixels: which files are read, which way is up, and what each mode of Pillow stands for.

Only the first frame of an animation or a multi-page file is read. Color profiles are ignored.
"""

import contextlib
import functools
import io
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from cmtkd_jax.errors import one_line

BACKGROUND = 255  # Under transparent pixels: white, like a page.

# Formats of single pictures that Pillow decodes by itself. Not here: EPS and PDF, which need Ghostscript, WMF, MPEG and
# the formats of measurements. Reading no others also keeps a file from choosing them whatever its suffix is.
_FORMATS = (
  'AVIF',
  'BMP',
  'DIB',
  'GIF',
  'ICO',
  'JPEG',
  'JPEG2000',
  'MPO',
  'PCX',
  'PNG',
  'PPM',
  'PSD',
  'QOI',
  'SGI',
  'SUN',
  'TGA',
  'TIFF',
  'WEBP',
  'XBM',
  'XPM',
)
_MODES = {1: 'L', 3: 'RGB'}
_16_BITS = ('I;16', 'I;16L', 'I;16B', 'I;16N')
_WHITE_IS_ZERO = 0  # of TIFF's PhotometricInterpretation


class UnreadableError(ValueError):
  """A file that is not an image, is damaged, or whose pixels have no known range."""


@contextlib.contextmanager
def _reading():
  """Makes `UnreadableError` of whatever a damaged file makes Pillow stumble over: decoders raise almost anything."""
  try:
    yield
  except UnreadableError:
    raise
  except UnidentifiedImageError as e:  # Its text has the buffer's address.
    raise UnreadableError('it is not an image') from e
  except Exception as e:
    raise UnreadableError(one_line(e, 200) or type(e).__name__) from e


@functools.cache
def _formats() -> tuple[str, ...]:
  Image.init()
  return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
  """Returns the suffixes of the files that are read, in lower case, such as '.jpg' and '.webp'."""
  return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS)


def open_image(content: bytes | BinaryIO) -> Image.Image:
  """Reads the header of an image file.

  Raises:
    UnreadableError: it is not an image of a known format.
  """
  with _reading():
    image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=_formats())
    if image.format == 'PNG':
      _widen_color_key(image)
    return image


def _widen_color_key(image):
  """Brings the transparent color of a PNG to 8 bits: Pillow brings the pixels to 8 bits, but not this."""
  key, stored_as = image.info.get('transparency'), image.tile[0][3] if image.tile else ''
  if isinstance(key, int):
    if stored_as == '1':
      image.info['transparency'] = 255 * bool(key)
    elif stored_as in ('L;2', 'L;4'):
      image.info['transparency'] = key * {'L;2': 85, 'L;4': 17}[stored_as]
  elif isinstance(key, tuple) and stored_as == 'RGB;16B':
    image.info['transparency'] = tuple(value >> 8 for value in key)


class Orientation(NamedTuple):
  """How stored pixels become the picture: rows and columns are mirrored, then the two axes are swapped."""

  mirror_rows: bool = False
  mirror_columns: bool = False
  swap: bool = False

  def size(self, height: int, width: int) -> tuple[int, int]:
    """Returns the picture's (height, width) from the stored ones."""
    return (width, height) if self.swap else (height, width)

  def stored_box(self, box, height: int, width: int) -> tuple[float, float, float, float]:
    """Returns where a box (top, left, height, width) of the picture lies in the stored pixels of height x width."""
    top, left, h, w = map(float, box)
    if self.swap:
      top, left, h, w = left, top, w, h
    mirrored = lambda side, start, length: max(side - start - length, 0.0)  # which rounds to -1e-14
    top = mirrored(height, top, h) if self.mirror_rows else top
    left = mirrored(width, left, w) if self.mirror_columns else left
    return top, left, h, w

  def apply(self, array: np.ndarray) -> np.ndarray:
    """Returns the picture of stored pixels [h, w, C], as a view."""
    array = array[:: -1 if self.mirror_rows else 1, :: -1 if self.mirror_columns else 1]
    return array.swapaxes(0, 1) if self.swap else array


UPRIGHT = Orientation()
_ORIENTATIONS: dict[Any, Orientation] = {  # EXIF 2.3, tag 0x0112
  2: Orientation(mirror_columns=True),
  3: Orientation(mirror_rows=True, mirror_columns=True),
  4: Orientation(mirror_rows=True),
  5: Orientation(swap=True),
  6: Orientation(mirror_rows=True, swap=True),
  7: Orientation(True, True, True),
  8: Orientation(mirror_columns=True, swap=True),
}


def orientation(image: Image.Image) -> Orientation:
  """Returns the orientation that a file's metadata state, upright where they are damaged; reads the header only."""
  if image.format == 'TIFF':  # Pillow rotates these itself, and gives the size after that.
    return UPRIGHT
  try:
    # Not PNG's own method, which would decode the image to look for metadata after the pixels.
    return _ORIENTATIONS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation), UPRIGHT)
  except Exception:  # of damaged metadata
    return UPRIGHT


def size(image: Image.Image) -> tuple[int, int]:
  """Returns (height, width) of the picture, the right way up, from its header."""
  return orientation(image).size(image.height, image.width)


def convert(image: Image.Image, channels: int) -> Image.Image:
  """Returns the stored pixels as mode 'L' (channels=1) or 'RGB' (channels=3), not turned.

  Gray of 16 bits becomes round(255 v / 65535). Transparent pixels are blended with `BACKGROUND`. Colors become gray by
  ITU-R 601.

  Raises:
    UnreadableError: the file is damaged, or its mode is LAB, or float or 32-bit integer, whose range is not known.
  """
  mode = _MODES[channels]
  with _reading():
    image.load()
    if image.mode == mode and 'transparency' not in image.info:
      return image  # Pillow would copy.
    if image.mode in _16_BITS or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
      image = _from_16_bits(image)
    if image.mode in ('I', 'F', 'LAB'):
      kind = {'I': '32-bit or signed integers', 'F': 'floats', 'LAB': 'CIELAB colors'}[image.mode]
      raise UnreadableError(f'its pixels are {kind}, whose range or color is not known; save it with 8 or 16 bits')
    if image.mode == 'La':  # which has no way to RGBA
      image = image.convert('LA')
    if image.has_transparency_data:
      image = image.convert('RGBA')
      opaque = Image.new('RGB', image.size, (BACKGROUND,) * 3)
      opaque.paste(image, mask=image.getchannel('A'))
      image = opaque
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(image):
  """Gray of 16 bits, or of as many as a TIFF states, as mode 'L'."""
  values, highest = np.asarray(image).astype(np.int64), 65535
  transparent = values == image.info.get('transparency', -1)
  if image.format == 'TIFF':
    highest = 2 ** image.tag_v2.get(258, (16,))[0] - 1  # BitsPerSample
    if image.tag_v2.get(262) == _WHITE_IS_ZERO:  # which Pillow inverts in 8 bits, but not in 16
      values = highest - values
  levels = (values * 510 + highest) // (2 * highest)
  return Image.fromarray(np.where(transparent, BACKGROUND, np.clip(levels, 0, 255)).astype(np.uint8))


def to_array(image: np.ndarray | bytes | Image.Image, channels: int) -> np.ndarray:
  """Decodes a file to uint8[h, w, channels], the right way up; arrays pass through.

  Raises:
    UnreadableError: it cannot be decoded, see `convert`.
  """
  if isinstance(image, np.ndarray):
    return image
  if isinstance(image, bytes):
    image = open_image(image)
  turned = orientation(image)
  array = np.asarray(convert(image, channels))
  return turned.apply(array[..., None] if channels == 1 else array)
