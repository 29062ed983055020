"""Image files to pixels: every mode of Pillow against values worked by hand, orientation, formats, damaged files."""

import functools
import io
import itertools
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from cmtkd_jax.data.transforms import decode_pil, image_file
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import predict


def encode(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, depth, color, row, key=None):
  """A PNG of one row, by its specification; color 0 is gray, 2 RGB, 4 gray and alpha, 6 RGBA; `key` is tRNS."""
  header = struct.pack('>IIBBBBB', width, 1, depth, color, 0, 0, 0)
  parts = [
    chunk(b'IHDR', header),
    *([chunk(b'tRNS', key)] if key else []),
    chunk(b'IDAT', zlib.compress(b'\0' + row)),
    chunk(b'IEND', b''),
  ]
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def tiff(bits, photometric, sample_format, data, order='<', width=2):
  """An uncompressed TIFF of one gray row, by its specification; sample formats are 1 unsigned, 2 signed, 3 float."""
  tags = [
    (256, width),
    (257, 1),
    (258, bits),
    (259, 1),
    (262, photometric),
    (273, 142),
    (277, 1),
    (278, 1),
    (279, len(data)),
    (339, sample_format),
  ]
  directory = b''.join(struct.pack(f'{order}HHI', tag, 4, 1) + struct.pack(f'{order}I', value) for tag, value in tags)
  head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(tags))
  file = head + directory + bytes(4)
  return file.ljust(142, b'\0') + data


def pixels(content, channels=3):
  """The pixels of a file, or of an image in memory, as nested lists of its first row."""
  return image_file.to_array(content, channels)[0].tolist()


# --- Modes. Alpha 51 is 1/5: 10 becomes 10/5 + 255 * 4/5 = 206. Gray is 0.299 R + 0.587 G + 0.114 B.

PALETTE = bytes([0, 0, 0, 10, 20, 30])
MODES = {  # mode: (one pixel, its RGB, its gray)
  '1': (b'\x80', (255, 255, 255), 255),
  'L': (b'\x64', (100, 100, 100), 100),
  'LA': (bytes([100, 51]), (224, 224, 224), 224),
  'La': (bytes([20, 51]), (224, 224, 224), 224),  # 20 is 100 times 1/5
  'RGB': (bytes([10, 20, 30]), (10, 20, 30), 18),
  'RGBX': (bytes([10, 20, 30, 7]), (10, 20, 30), 18),
  'RGBA': (bytes([10, 20, 30, 51]), (206, 208, 210), 208),
  'RGBa': (bytes([2, 4, 6, 51]), (206, 208, 210), 208),
  'CMYK': (bytes([255, 0, 51, 55]), (0, 200, 160), 136),  # 255 - 55 = 200, less 0, 200 or 40 of it
  'YCbCr': (bytes([100, 128, 178]), (170, 64, 100), 100),  # R = 100 + 1.402 * 50, G = 100 - 0.714 * 50
  'HSV': (bytes([0, 255, 200]), (200, 0, 0), 60),
  'I;16': (struct.pack('<H', 1000), (4, 4, 4), 4),  # 1000 / 257 = 3.9
  'I;16L': (struct.pack('<H', 1000), (4, 4, 4), 4),
  'I;16B': (struct.pack('>H', 1000), (4, 4, 4), 4),
  'I;16N': (np.uint16(1000).tobytes(), (4, 4, 4), 4),
}


@pytest.mark.parametrize('mode', MODES)
def test_modes(mode):
  pixel, rgb, gray = MODES[mode]
  if mode == 'La':  # which cannot be made of bytes
    image = Image.frombytes('LA', (1, 1), bytes([100, 51])).convert('La')
    assert image.getpixel((0, 0)) == tuple(pixel)
  elif mode == 'I;16N':
    image = Image.fromarray(np.frombuffer(pixel, np.uint16).reshape(1, 1))
  else:
    image = Image.frombytes(mode, (1, 1), pixel)
  assert pixels(image) == [list(rgb)] and pixels(image, 1) == [[gray]]


def test_palettes():
  image = Image.frombytes('P', (2, 1), b'\0\1')
  image.putpalette(PALETTE)
  for kind in ('PNG', 'GIF', 'BMP'):
    assert pixels(encode(image, kind)) == [[0, 0, 0], [10, 20, 30]]
  assert pixels(encode(image, 'PNG'), 1) == [[0], [18]]
  assert pixels(encode(image, 'PNG', transparency=0)) == [[255] * 3, [10, 20, 30]]
  assert pixels(encode(image, 'GIF', transparency=0)) == [[255] * 3, [10, 20, 30]]
  assert pixels(encode(image, 'PNG', transparency=bytes([0, 51]))) == [[255] * 3, [206, 208, 210]]
  assert pixels(encode(image, 'PNG', transparency=bytes([0, 51])), 1) == [[255], [208]]
  with_alpha = image.convert('PA')
  with_alpha.putalpha(51)
  assert with_alpha.mode == 'PA' and pixels(with_alpha) == [[204] * 3, [206, 208, 210]]


@pytest.mark.parametrize(
  'content, expected',
  [
    (png(4, 16, 0, struct.pack('>4H', 0, 32767, 32768, 65535)), [0, 127, 128, 255]),  # 127.498 and 127.502
    (png(2, 16, 0, struct.pack('>2H', 128, 129)), [0, 1]),  # 0.498 and 0.502
    (png(2, 16, 0, struct.pack('>2H', 1000, 2000), key=struct.pack('>H', 1000)), [255, 8]),
    (png(1, 16, 4, struct.pack('>2H', 0x6400, 0x3300)), [224]),
    (png(4, 2, 0, b'\x1b'), [0, 85, 170, 255]),
    (png(4, 2, 0, b'\x1b', key=b'\0\1'), [0, 255, 170, 255]),
    (png(2, 4, 0, b'\x12', key=b'\0\2'), [17, 255]),
    (png(8, 1, 0, b'\x1b'), [0, 0, 0, 255, 255, 0, 255, 255]),
    (png(8, 1, 0, b'\x1b', key=b'\0\0'), [255] * 8),
    (png(2, 8, 0, b'\x05\x06', key=b'\0\5'), [255, 6]),
    (b'P5 2 1 65535\n' + struct.pack('>2H', 1000, 65535), [4, 255]),
    (b'P5 2 1 1000\n' + struct.pack('>2H', 500, 1000), [128, 255]),
    (b'P5 2 1 255\n\x05\x06', [5, 6]),
    (b'P2 2 1 15\n1 15\n', [17, 255]),
    (b'P1 2 1\n1 0\n', [0, 255]),
    (tiff(16, 1, 1, struct.pack('<2H', 1000, 65535)), [4, 255]),
    (tiff(16, 1, 1, struct.pack('>2H', 1000, 65535), '>'), [4, 255]),
    (tiff(16, 0, 1, struct.pack('<2H', 0, 64535)), [255, 4]),  # white is zero
    (tiff(8, 0, 1, b'\0\xc8'), [255, 55]),
    (tiff(12, 1, 1, bytes([0x80, 0x0F, 0xFF])), [128, 255]),  # 0x800 of 0xfff: 127.53
  ],
  ids=itertools.count(),
)
def test_gray_files(content, expected):
  assert pixels(content, 1) == [[value] for value in expected]
  assert pixels(content, 3) == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
  'content, expected',
  [
    (png(2, 16, 2, struct.pack('>6H', 1000, 0, 65535, 255, 256, 511)), [[3, 0, 255], [0, 1, 1]]),  # the high byte
    (
      png(2, 16, 2, struct.pack('>6H', 1000, 0, 65535, 0, 0, 0), key=struct.pack('>3H', 1000, 0, 65535)),
      [[255, 255, 255], [0, 0, 0]],
    ),
    (png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), key=struct.pack('>3H', 4, 5, 6)), [[1, 2, 3], [255, 255, 255]]),
    (png(1, 16, 6, struct.pack('>4H', 0x0A00, 0x1400, 0x1E00, 0x3300)), [[206, 208, 210]]),
    (b'P6 1 1 65535\n' + struct.pack('>3H', 1000, 0, 65535), [[4, 0, 255]]),
  ],
  ids=itertools.count(),
)
def test_color_files(content, expected):
  assert pixels(content) == expected


@pytest.mark.parametrize(
  'content, kind',
  [
    (tiff(32, 1, 1, struct.pack('<2I', 5, 2**32 - 1)), 'integers'),
    (tiff(16, 1, 2, struct.pack('<2h', -5, 5)), 'integers'),
    (tiff(32, 1, 3, struct.pack('<2f', 0, 1)), 'floats'),
    (b'Pf\n2 1\n-1\n' + struct.pack('<2f', 0, 1), 'floats'),
    (encode(Image.new('LAB', (1, 1)), 'TIFF'), 'CIELAB'),
  ],
  ids=itertools.count(),
)
def test_pixels_without_a_known_range_are_refused(content, kind, tmp_path):
  with pytest.raises(image_file.UnreadableError, match=f'{kind}.*save it with 8 or 16 bits'):
    pixels(content)
  (tmp_path / 'a.tif').write_bytes(content)
  about = dict(image_shape=(1, 1, 1), resize=1)
  with pytest.raises(UserError, match=rf'images: {tmp_path}/a.tif cannot be read .*{kind}') as e:
    predict.read_image(tmp_path / 'a.tif', about)
  assert '\n' not in str(e.value)


def test_deep_gray_keeps_its_mean_in_prediction_and_training(tmp_path):
  values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
  for name in ('a.png', 'a.tif'):
    Image.fromarray(values).save(tmp_path / name)
    for resize in (0, 64):
      read = predict.read_image(tmp_path / name, dict(image_shape=(64, 64, 1), resize=resize))
      assert read.shape == (64, 64, 1) and abs(read.mean() - 127.5) < 0.5
    transform = decode_pil.Transform('inception_crop_flip', size=64, resize=64, channels=3, seed=0)
    assert 60 < transform((tmp_path / name).read_bytes(), 0, 0).mean() < 200


def test_a_transparent_picture_is_blended_before_it_is_resized():
  """A red square on transparent black: no black comes in at its edges."""
  image = Image.new('RGBA', (64, 64), (0, 0, 0, 0))
  image.paste((200, 0, 0, 255), (16, 16, 48, 48))
  out = decode_pil.Transform('none', size=16, resize=16, channels=3, seed=None)(encode(image, 'PNG'), 0, 0)
  assert out[0, 0].tolist() == [255] * 3 and out[8, 8].tolist() == [200, 0, 0] and out[..., 0].min() == 200


# --- Orientation.

# EXIF 2.3, tag 274: which side of the picture the first stored row and the first stored column are.
SIDES = {
  1: ('top', 'left'),
  2: ('top', 'right'),
  3: ('bottom', 'right'),
  4: ('bottom', 'left'),
  5: ('left', 'top'),
  6: ('right', 'top'),
  7: ('right', 'bottom'),
  8: ('left', 'bottom'),
}


def stored(picture, value):
  """A picture [H, W, C] as a camera with this orientation stores it, pixel by pixel."""
  height, width = picture.shape[:2]
  rows, columns = (height, width) if value < 5 else (width, height)
  out = np.empty((rows, columns, picture.shape[2]), picture.dtype)
  for row, column in itertools.product(range(rows), range(columns)):
    at = {}
    for side, index in zip(SIDES[value], (row, column)):
      at['y' if side in ('top', 'bottom') else 'x'] = {
        'top': index,
        'left': index,
        'bottom': height - 1 - index,
        'right': width - 1 - index,
      }[side]
    out[row, column] = picture[at['y'], at['x']]
  return out


def tagged(array, value, kind, **options):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = value
  return encode(Image.fromarray(array), kind, exif=exif, **options)


def smooth(height, width):
  coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
  return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
  'kind, options, atol',
  [('PNG', {}, 0), ('TIFF', {}, 0), ('WEBP', {'lossless': True}, 0), ('JPEG', {'quality': 98, 'subsampling': 0}, 6)],
)
@pytest.mark.parametrize('value', SIDES)
def test_orientation(kind, options, atol, value):
  picture = smooth(12, 20)
  content = tagged(stored(picture, value), value, kind, **options)
  assert image_file.size(image_file.open_image(content)) == (12, 20)
  np.testing.assert_allclose(image_file.to_array(content, 3).astype(int), picture, atol=atol)
  gray = np.round(picture @ [0.299, 0.587, 0.114])[..., None]
  np.testing.assert_allclose(image_file.to_array(content, 1).astype(int), gray, atol=atol + 1)


@pytest.mark.parametrize('value', [3, 6, 8])
def test_crops_at_the_edge_of_a_turned_picture_lie_in_its_file(value):
  """Crops of 224 of a shorter side of 232: the side less the offset less the crop is -1e-14 for a tenth of them."""
  content = tagged(smooth(480, 640), value, 'JPEG')
  crop = decode_pil.Transform('resize_crop_flip', size=224, resize=232, channels=3, seed=0)
  for position in range(60):
    assert crop(content, position, 0).shape == (224, 224, 3)


@pytest.mark.parametrize('decoder', ['pil', 'tensorflow'])
@pytest.mark.parametrize('value', SIDES)
def test_crops_of_turned_files_are_those_of_the_picture(value, decoder):
  if decoder == 'tensorflow':
    pytest.importorskip('tensorflow')
  picture = smooth(40, 60)
  upright = encode(Image.fromarray(picture), 'PNG')
  for augment, seed in (('none', None), ('inception_crop_flip', 0), ('resize_crop_flip', 0)):
    transform = decode_pil.Transform(augment, size=16, resize=20, channels=3, seed=seed, decoder=decoder)
    for kind, options in (('PNG', {}), ('JPEG', {'quality': 98, 'subsampling': 0})):
      out = transform(tagged(stored(picture, value), value, kind, **options), 5, 7).astype(int)
      # Pillow rounds between rows and columns; boxes at half pixels are rounded to even before they are cropped.
      difference = np.abs(out - transform(upright, 5, 7))
      assert difference.mean() < (1.5 if kind == 'PNG' or decoder == 'pil' else 4)
      assert decoder == 'tensorflow' or difference.max() <= (1 if kind == 'PNG' else 8)


def test_turned_jpegs_are_decoded_small(monkeypatch):
  picture = np.asarray(Image.fromarray(smooth(8, 8)).resize((900, 600)))
  turned = np.ascontiguousarray(np.rot90(picture))  # the first row is the right side: 8 turns it back
  decoded, resize = [], Image.Image.resize
  monkeypatch.setattr(Image.Image, 'resize', lambda self, *a, **k: decoded.append(self.size) or resize(self, *a, **k))
  transform = decode_pil.Transform('none', size=56, resize=64, channels=3, seed=None)
  out, expected = (
    transform(content, 0, 0).astype(int)
    for content in (tagged(turned, 6, 'JPEG', quality=95), encode(Image.fromarray(picture), 'PNG'))
  )
  assert decoded == [(600 // 8, -(-900 // 8)), (900, 600)] and np.abs(out - expected).mean() < 2


def test_prediction_turns_images(tmp_path):
  picture = smooth(24, 24)
  (tmp_path / 'a.png').write_bytes(tagged(stored(picture, 6), 6, 'PNG'))
  for resize in (0, 24):
    read = predict.read_image(tmp_path / 'a.png', dict(image_shape=(24, 24, 3), resize=resize))
    np.testing.assert_array_equal(read, picture)


def test_damaged_metadata_do_no_harm():
  picture, rng = smooth(6, 9), np.random.default_rng(0)
  good = tagged(picture, 1, 'PNG')
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  exif = exif.tobytes()
  for _i in range(200):
    damaged = bytearray(exif)
    for at in rng.integers(0, len(exif), 3):
      damaged[at] = rng.integers(256)
    content = encode(Image.fromarray(picture), 'PNG', exif=bytes(damaged))
    out = image_file.to_array(content, 3)
    assert image_file.size(image_file.open_image(content)) == out.shape[:2]
    assert out.shape in ((6, 9, 3), (9, 6, 3))
  np.testing.assert_array_equal(image_file.to_array(good, 3), picture)


# --- Formats.


def test_suffixes():
  wanted = 'jpg jpeg jfif png webp bmp tif tiff gif ppm pgm pbm pnm tga jp2 ico'
  assert {f'.{suffix}' for suffix in wanted.split()} <= image_file.suffixes()
  assert not image_file.suffixes() & {'.eps', '.ps', '.pdf', '.wmf', '.emf', '.mpg', '.h5', '.hdf', '.grib', '.fits'}


@pytest.mark.parametrize('kind', ['PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'TGA', 'PCX', 'JPEG2000', 'SGI', 'DIB'])
def test_formats(kind):
  picture = np.full((8, 8, 3), (10, 20, 30), np.uint8)
  options = {'lossless': True} if kind == 'WEBP' else {}
  np.testing.assert_array_equal(image_file.to_array(encode(Image.fromarray(picture), kind, **options), 3), picture)


@pytest.mark.parametrize('kind', ['GIF', 'TIFF', 'WEBP', 'PNG'])
def test_the_first_frame_counts(kind):
  frames = [Image.new('RGB', (8, 8), (value,) * 3) for value in (40, 80, 120)]
  options = {'lossless': True} if kind == 'WEBP' else {}
  content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
  assert Image.open(io.BytesIO(content)).n_frames == 3
  assert pixels(content)[0] == [40] * 3


def test_no_program_is_started_for_a_file(tmp_path, monkeypatch):
  """PostScript in a file that is called like a photo is not given to Ghostscript."""
  monkeypatch.setattr('subprocess.Popen', None)
  content = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'
  assert Image.open(io.BytesIO(content)).format == 'EPS'
  with pytest.raises(image_file.UnreadableError, match='it is not an image'):
    image_file.to_array(content, 3)


@pytest.mark.parametrize(
  'kind', ['PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'TGA', 'PCX', 'JPEG', 'JPEG2000', 'SGI', 'ICO']
)
def test_damaged_files_raise_nothing_else(kind):
  rng = np.random.default_rng(0)
  content = encode(Image.fromarray(smooth(16, 16)), kind)
  refused = 0
  for _ in range(60):
    damaged = bytearray(content[: rng.integers(len(content) // 2, len(content) + 1)])
    for at in rng.integers(0, min(len(damaged), 200), 4):
      damaged[at] = rng.integers(256)
    try:
      array = image_file.to_array(bytes(damaged), 3)
      assert array.dtype == np.uint8 and array.ndim == 3
    except image_file.UnreadableError as e:
      refused += 1
      assert str(e) and '\n' not in str(e) and ' at 0x' not in str(e)
  assert refused


def test_prediction_refuses_what_is_not_an_image(tmp_path):
  read = functools.partial(predict.read_image, about=dict(image_shape=(8, 8, 3), resize=0))
  (tmp_path / 'text.png').write_text('hello')
  (tmp_path / 'wrong.png').write_bytes(encode(Image.new('RGB', (8, 9)), 'PNG'))
  os.mkfifo(tmp_path / 'pipe.png')
  for file, words in (
    ('text.png', 'cannot be read (it is not an image)'),
    ('none.png', 'there is no such file'),
    ('wrong.png', 'is 9x8, not 8x8'),
    ('pipe.png', 'a pipe, socket or device'),
    ('', 'a folder'),
  ):
    with pytest.raises(UserError) as e:
      read(tmp_path / file)
    assert str(e.value).startswith(f'images: {tmp_path / file} ') and words in str(e.value)
    assert '\n' not in str(e.value)
