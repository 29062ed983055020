"""Data sets as they lie on disk, and the error line for each mistake."""

import functools
import itertools
import os
import shutil
import socket
import subprocess
import sys
import unicodedata

import jax
import numpy as np
import pytest
from PIL import Image

from cmtkd_jax.data.sources import base
from cmtkd_jax.data.transforms import decode_pil
from cmtkd_jax.errors import UserError
from tests import batches
from tests.batches import is_on_device, take

load = functools.partial(batches.load, batch_size=4, eval_batch_size=4, devices=2)


def rgb(**fields):
  return dict(mean=(0.5,) * 3, std=(0.25,) * 3) | fields


def test_set(dataset, split='test'):
  """(images, labels) of a whole split."""
  batches = jax.device_get(list(dataset.evals[split].batches()))
  return tuple(np.concatenate([b[k][b['mask']] for b in batches]) for k in ('image', 'label'))


test_set.__test__ = False


# --- Arrays.


def test_digits():
  from sklearn.datasets import load_digits

  raw = load_digits()
  dataset = load(batch_size=2, eval_batch_size=500)
  assert dataset.class_names == tuple('0123456789') and dataset.num_classes == 10 and is_on_device(dataset)
  assert dataset.input_shape == (8, 8, 1)
  images, labels = test_set(dataset)
  assert images.dtype == np.uint8 and len(labels) + dataset.train.num_examples == 1797
  chosen = np.sort(np.concatenate([np.flatnonzero(raw.target == c)[4::5] for c in range(10)]))
  np.testing.assert_array_equal(labels, raw.target[chosen])
  np.testing.assert_array_equal(images[..., 0], np.rint(raw.images[chosen] * 255 / 16))
  assert 350 < len(labels) < 365 and np.bincount(labels).min() >= 34


def test_generated_is_reproducible_and_learnable():
  fields = rgb(name='generated:12x10x3:4:200', image_size=12, resize=12, eval_batch_size=40)
  (images, labels), (again, _) = (test_set(load(**fields)) for _ in range(2))
  np.testing.assert_array_equal(images, again)
  assert images.shape == (40, 12, 10, 3) and set(labels) == set(range(4))
  train = load(batch_size=200, **{**fields, 'devices': 1}).train
  batch = jax.device_get(next(train.batches(0)))
  centers = np.stack([batch['image'][batch['label'] == c].mean(0) for c in range(4)])
  nearest = ((images[:, None] - centers) ** 2).sum((2, 3, 4)).argmin(1)
  assert (nearest == labels).mean() > 0.9


def save_npy(folder, *, classes=3, **arrays):
  rng = np.random.default_rng(0)
  made = {}
  for split, n in (('train', 12), ('test', 5)):
    made[f'{split}_images'] = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    made[f'{split}_labels'] = np.arange(n) % classes
  for name, array in (made | arrays).items():
    if array is not None:
      np.save(folder / f'{name}.npy', array)
  return f'npy:{folder}'


def test_npy(tmp_path):
  dataset = load(name=save_npy(tmp_path, class_names=np.array(['cat', 'dog', 'eel', 'fox'])))
  assert dataset.class_names == ('cat', 'dog', 'eel', 'fox') and dataset.num_classes == 4
  images, labels = test_set(dataset)
  np.testing.assert_array_equal(images, np.load(tmp_path / 'test_images.npy'))
  np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1])


FULL = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
RGB = FULL.repeat(3, 3)
LABELS = np.arange(12) % 3


@pytest.mark.parametrize(
  'arrays, words, fixed',
  [
    ({'test_labels': None}, ['test_labels.npy does not exist'], None),
    (
      {'train_images': (FULL / 255).astype(np.float32)},
      ['train_images.npy is float32[12, 8, 8, 1]: floats from 0 to 1;', 'save uint8[N, H, W, C]'],
      FULL,
    ),
    ({'train_images': FULL.astype(np.float64)}, ['float64[12, 8, 8, 1]: floats from 0 to 255;'], FULL),
    ({'train_images': FULL / 128 - 1.0}, ['floats from -1 to 0.99', 'not from 0 to 255; save uint8[N, H, W, C]'], None),
    ({'train_images': FULL * np.nan}, ['floats from nan to nan, not from 0 to 255'], None),
    ({'train_images': FULL.astype(np.int64)}, ['int64[12, 8, 8, 1]: integers from 0 to 255'], FULL),
    ({'train_images': FULL.astype(np.uint16) * 257}, ['uint16[12, 8, 8, 1]: integers from 0 to 65535'], FULL),
    ({'train_images': FULL > 127}, ['bool[12, 8, 8, 1]: booleans'], (FULL > 127) * 255),
    ({'train_images': FULL.astype('U3')}, ['<U3[12, 8, 8, 1]: not numbers'], None),
    ({'train_images': FULL[..., 0]}, ['train_images.npy is uint8[12, 8, 8]: it has no axis of channels'], FULL),
    ({'train_images': FULL.reshape(12, 64)}, ['uint8[12, 64]: it looks like flattened images'], FULL),
    (
      {'train_images': RGB.reshape(12, 192)},
      [
        'uint8[12, 192]: it looks like flattened images',
        'or .reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1) if each color',
      ],
      RGB,
    ),
    ({'train_images': RGB.transpose(0, 3, 1, 2)}, ['uint8[12, 3, 8, 8]: it looks like channels first'], RGB),
    ({'train_images': FULL.transpose(0, 3, 1, 2)}, ['uint8[12, 1, 8, 8]: it looks like channels first'], FULL),
    ({'train_images': RGB.transpose(1, 2, 3, 0)}, ['uint8[8, 8, 3, 12]: the last axis counts the images'], RGB),
    ({'train_images': RGB.transpose(0, 3, 1, 2) / 255}, ['floats from 0 to 1, it looks like channels first'], RGB),
    ({'train_images': np.zeros((12, 70), np.uint8)}, ['uint8[12, 70]: it looks like flattened images; save'], None),
    ({'train_images': np.zeros((12, 1, 8, 8, 1), np.uint8)}, ['uint8[12, 1, 8, 8, 1]: it has 5 axes'], None),
    ({'train_images': np.zeros((0, 8, 8, 1), np.uint8)}, ['no images'], None),
    ({'train_images': np.uint8(3)}, ['no images'], None),
    ({'train_labels': LABELS.astype(float)}, ['train_labels.npy is float64[12]: not integers'], LABELS),
    ({'train_labels': LABELS + 0.5}, ['train_labels.npy is float64[12]: not integers; save integers [12]'], None),
    ({'train_labels': LABELS == 1}, ['train_labels.npy is bool[12]: not integers'], LABELS == 1),
    ({'train_labels': LABELS[:, None]}, ['train_labels.npy is int64[12, 1]: it has a second axis'], LABELS),
    ({'train_labels': np.eye(3)[LABELS]}, ['train_labels.npy is float64[12, 3]: rows of one-hot labels'], LABELS),
    ({'train_labels': np.eye(3, dtype=np.uint8)[LABELS]}, ['uint8[12, 3]: rows of one-hot labels'], LABELS),
    ({'train_labels': np.eye(3)[LABELS] * 0.7 + 0.1}, ['rows of probabilities'], LABELS),
    ({'train_labels': np.array(['cat', 'dog', 'eel'])[LABELS]}, ['<U3[12]: names', 'class_names.npy'], LABELS),
    ({'train_labels': np.zeros((12, 2, 2), int)}, ['int64[12, 2, 2]: it has 3 axes'], None),
    ({'train_labels': np.int64(3)}, ['int64[]: it has 0 axes'], None),
    (
      {'train_labels': np.zeros(11, int)},
      ['train_labels.npy is int64[11]', '11 labels, not 12', 'save integers [12]'],
      None,
    ),
    ({'test_labels': np.full(5, 3)}, ['test_labels.npy has the label 3', 'there are 3 classes', '0..2'], None),
    ({'train_labels': np.full(12, -1)}, ['train_labels.npy has the label -1; number the classes from 0'], None),
    ({'class_names': np.array(['a', 'b'])}, ['the label 2', '2 classes'], None),
    ({'class_names': np.array([1, 2, 3])}, ['class_names.npy is int64', 'vector of strings'], None),
    ({'class_names': np.array(['a', 'b', 'a'])}, ["class_names.npy: classes 0 and 2 are both called 'a'"], None),
    ({'class_names': np.array(['a', ' ', 'c'])}, ["class_names.npy: class 1 has the name ' ', which is empty"], None),
    ({'class_names': np.array(['a', 'b\nc', 'c'])}, ["the class name 'b\\nc' has the character '\\n'"], None),
    ({'class_names': np.array(['a', 'b\u202ec', 'c'])}, ["'b\\u202ec' has the character '\\u202e'"], None),
    ({'class_names': np.array(['a', 'b' * 1001, 'c'])}, ['the name of class 1 has 1001 characters', 'shorten'], None),
    ({'train_labels': np.array([{}] * 12, object)}, ['Python objects', "; save labels.astype('int32')"], None),
    ({'train_images': np.array([0, None])}, ['Python objects', '; save numpy.stack(images), after resizing'], None),
  ],
  ids=itertools.count(),
)
def test_npy_mistakes(tmp_path, arrays, words, fixed):
  """Where the line tells how to fix the array, doing so gives the right one."""
  name, channels = save_npy(tmp_path, **arrays), 3 if fixed is RGB else 1
  line = expect([*words, f'config.data.name={name!r}'], name=name, mean=(0.5,) * channels, std=(1.0,) * channels)
  assert (fixed is not None) == (', here ' in line)
  if fixed is not None:
    ((given, array),) = arrays.items()
    code = line.partition(', here ')[2].partition(' or ')[0].partition(', and ')[0]
    out = eval(code, {'numpy': np, given.partition('_')[2]: array})
    np.testing.assert_array_equal(out, fixed)
    assert out.dtype.kind in 'iu' and (out.dtype == np.uint8 or given.endswith('labels'))


def test_npy_files_that_are_something_else(tmp_path):
  name = save_npy(tmp_path)
  path = tmp_path / 'train_images.npy'
  whole = path.read_bytes()
  with open(path, 'wb') as file:
    np.savez(file, images=FULL)
  line = expect(
    [f'{path} is an .npz archive', "numpy.save('train_images.npy', numpy.load(ARCHIVE)['images'])"], name=name
  )
  assert 'pickle' not in line
  for content, words in (
    (b'\x80\x04N.', 'is not a .npy file'),
    (b'', 'is not a .npy file'),
    (b'PK\3\4', 'is not a .npy file'),
    (whole[:-5], 'is cut short: uint8[12, 8, 8, 1] takes 768 bytes, and it has 763'),
  ):
    path.write_bytes(content)
    expect([f'{path} {words}'], name=name)
  expect([f'{path}/train_images.npy does not exist; the folder must hold'], name=f'npy:{path}')
  path.write_bytes(whole.replace(b"'descr'", b"'descr(", 1))  # NumPy reads headers as Python
  expect([f'{path} cannot be loaded'], name=name)
  for make, words in ((os.mkdir, 'is a folder, not a file'), (os.mkfifo, 'is a pipe, socket or device, not a file')):
    path.unlink(missing_ok=True)
    make(path)
    expect([f'{path} {words}'], name=name)
    path.rmdir() if path.is_dir() else path.unlink()
  path.symlink_to('/dev/zero')
  expect([f'{path} is a pipe, socket or device'], name=name)


def test_class_names_of_numbers_that_are_not_characters(tmp_path):
  name = save_npy(tmp_path, class_names=np.array(['cat', 'dog', 'eel']))
  path = tmp_path / 'class_names.npy'
  path.write_bytes(path.read_bytes()[:-1] + b'\xff')
  expect([f'{path} is damaged'], name=name)


def test_classes_without_images_are_in_the_summary(tmp_path):
  labels = np.array([3, 17, 255, 900])
  name = save_npy(tmp_path, train_labels=labels[np.arange(12) % 4], test_labels=np.array([3, 3, 17, 4, 5]))
  dataset = load(name=name)
  assert dataset.num_classes == 901 and dataset.summary == (
    f'{name}: train 12 images, test 5, 901 classes; 897 of the 901 classes have no training images (labels in use: '
    '3, 17, 255, 900); 2 of the 901 classes have training images, but no test images; 2 test images belong to '
    'classes without training images'
  )
  save_npy(tmp_path, train_labels=np.arange(12) % 6 + 1, class_names=np.array([*'abcdefgh']))
  assert '2 of the 8 classes have no training images (labels in use: 1, 2, 3, 4, 5, ...)' in load(name=name).summary
  save_npy(tmp_path, train_labels=np.arange(12) % 3 + 1, test_labels=np.array([0, 1, 2, 1, 2]))
  assert load(name=name).summary.endswith(
    '; 1 of the 8 classes has training images, but no test images; 1 test image belongs to classes without '
    'training images'
  )
  save_npy(tmp_path, train_labels=np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 2]))
  held_out = load(name=name, minival=0.5)  # the only image of the last class
  assert 2 in {int(label) for batch in held_out.evals['minival'].batches() for label in batch['label'][batch['mask']]}
  assert '6 of the 8 classes have no training images (labels in use: 0, 1)' in held_out.summary
  save_npy(tmp_path)
  (tmp_path / 'class_names.npy').unlink()
  assert load(name=name).summary == f'{name}: train 12 images, test 5, 3 classes'


# --- Folders.


def save_images(folder, sizes, suffix='.png', mode='RGB', level=0):
  folder.mkdir(parents=True)
  for i, (height, width) in enumerate(sizes):
    array = np.full((height, width, 3), level + i, np.uint8)
    Image.fromarray(array).convert(mode).save(folder / f'{i}{suffix}')


def save_folder(root, *, test='test', sizes=((8, 8),) * 4, inner=''):
  for label, name in enumerate(('ant', 'bee')):
    save_images(root / 'train' / name / inner, sizes, level=100 * label)
    save_images(root / test / name / inner, sizes, '.JPEG', level=100 * label + 50)
  return f'folder:{root}'


@pytest.mark.parametrize('test, inner, on_device', [('test', '', 'auto'), ('val', 'images', 'no')])
def test_folder(tmp_path, test, inner, on_device):
  dataset = load(**rgb(name=save_folder(tmp_path, test=test, inner=inner), on_device=on_device))
  assert dataset.class_names == ('ant', 'bee') and dataset.train.num_examples == 8
  assert is_on_device(dataset) == (on_device == 'auto')
  images, labels = test_set(dataset)
  np.testing.assert_array_equal(labels, [0] * 4 + [1] * 4)
  np.testing.assert_allclose(images[:, 0, 0, 0], [50, 51, 52, 53, 150, 151, 152, 153], atol=1)
  iterator = dataset.train.batches(0)
  batch = jax.device_get(next(iterator))
  iterator.close()
  levels = [i % 4 + 100 * (i // 4) for i in dataset.train.indices(0)]
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], levels)


@pytest.mark.parametrize('test', ['test', 'val', 'valid', 'validation'])
def test_names_of_the_folder_of_test_images(tmp_path, test):
  dataset = load(**rgb(name=save_folder(tmp_path, test=test)))
  assert dataset.num_examples == {'train': 8, 'test': 8} and not dataset.held_out


@pytest.mark.parametrize('inside', ['', 'train'])
def test_a_part_of_every_class_is_held_out_where_there_are_no_test_images(tmp_path, inside):
  """Of 20 and 3 images a tenth: 2 and, at least, 1; both the same in every run, and for every seed."""
  for name, count, level in (('ant', 20, 0), ('bee', 3, 100)):
    save_images(tmp_path / inside / name, ((8, 8),) * count, level=level)
  fields = rgb(name=f'folder:{tmp_path}', test_fraction=0.1)
  dataset, other = load(**fields), load(**fields, seed=1)
  assert dataset.num_examples == {'train': 20, 'test': 3} and dataset.class_names == ('ant', 'bee')
  held_out = 'about 10 % of the images of every class, held out of training'
  assert dataset.held_out == held_out
  assert dataset.summary == f'folder:{tmp_path}: train 20 images, test 3 ({held_out}), 2 classes'
  images, labels = test_set(dataset)
  np.testing.assert_array_equal(labels, [0, 0, 1])
  np.testing.assert_array_equal(images, test_set(other)[0])
  batches = dataset.train.batches(0)
  trained = np.concatenate([jax.device_get(next(batches)['image'])[:, 0, 0, 0] for _ in range(5)])
  assert sorted([*trained, *images[:, 0, 0, 0]]) == [*range(20), 100, 101, 102]  # every image once


def test_minival_is_a_slice_of_what_is_trained_on(tmp_path):
  for label, name in enumerate(('ant', 'bee')):
    save_images(tmp_path / name, ((8, 8),) * 10, level=100 * label)
  dataset = load(**rgb(name=f'folder:{tmp_path}', minival=0.25))
  assert 'train 12 images, minival 4, test 4 (about 20 % of' in dataset.summary
  parts = [set(test_set(dataset, split)[0][:, 0, 0, 0]) for split in ('minival', 'test')]
  assert len(parts[0]) == len(parts[1]) == 4 and not parts[0] & parts[1]


def test_folders_that_cannot_be_split(tmp_path):
  save_images(tmp_path / 'ant', ((8, 8),) * 2)
  expect([f"{tmp_path} holds one class, 'ant'; give two or more"], **rgb(name=f'folder:{tmp_path}'))
  save_images(tmp_path / 'bee', ((8, 8),))
  expect(["class 'bee'", 'has one image; give two or more'], **rgb(name=f'folder:{tmp_path}'))
  save_images(tmp_path / 'valid' / 'ant', ((8, 8),))
  expect([f'there is {tmp_path}/valid, but no folder {tmp_path}/train'], **rgb(name=f'folder:{tmp_path}'))


def test_cached_images_are_decoded_once_and_scaled(tmp_path, monkeypatch):
  """Whole pictures of 16x24 and 40x20 pixels are kept with a shorter side of 10; evaluation reads the files."""
  name = save_folder(tmp_path, sizes=((16, 24), (40, 20), (8, 9), (10, 10)))
  fields = rgb(name=name, resize=10, augment='resize_crop_flip', num_workers=0)
  shrink, kept = decode_pil.Transform.shrink, []
  monkeypatch.setattr(decode_pil.Transform, 'shrink', lambda *args: kept.append(shrink(*args)) or kept[-1])
  levels = []
  for cache in (False, True):
    dataset = load(**fields, cache=cache)
    batches = dataset.train.batches(0)
    levels.append([jax.device_get(next(batches)['image']) for _ in range(6)])  # three epochs
    assert bool(kept) == cache
  np.testing.assert_array_equal(*levels)  # each image is of one color
  shapes = sorted(image.shape for image in kept)
  assert shapes == sorted([(10, 15, 3), (20, 10, 3), (8, 9, 3), (10, 10, 3)] * 2)
  test_set(dataset)
  assert len(kept) == 8
  expect(['config.data.cache=True does not go with resize=0; set config.data.resize'], **rgb(name=name, cache=True))


def test_a_turned_photograph_is_kept_the_right_way_up(tmp_path):
  """40x20 pixels, red above blue, stored turned by a quarter."""
  array = np.zeros((40, 20, 3), np.uint8)
  array[:20, :, 0] = array[20:, :, 2] = 255
  image = Image.fromarray(array.swapaxes(0, 1)[::-1].copy())
  exif = image.getexif()
  exif[0x0112] = 6
  image.save(tmp_path / 'a.jpg', exif=exif, quality=95)
  transform = decode_pil.Transform('none', size=8, resize=10, channels=3, seed=None)
  found = transform.shrink((tmp_path / 'a.jpg').read_bytes())
  assert found.shape == (20, 10, 3)
  np.testing.assert_allclose(found[[0, -1], 5], array[[0, -1], 5], atol=12)


def test_tiny_imagenet_layout(tmp_path):
  name = save_folder(tmp_path, inner='images')
  save_images(tmp_path / 'val' / 'images', [(8, 8)] * 3, mode='L', level=7)
  (tmp_path / 'val' / 'val_annotations.txt').write_text(
    '2.png\tant\t0\t0\t1\t1\n1.png\tbee\t0\t0\t1\t1\n0.png\tant\t0\t0\t1\t1\n'
  )
  images, labels = test_set(load(**rgb(name=name)))
  np.testing.assert_array_equal(labels, [0, 0, 1])
  np.testing.assert_array_equal(images[:, 3, 3], np.array([[9], [7], [8]]).repeat(3, 1))


@pytest.mark.parametrize('on_device', ['auto', 'no'])
def test_tiny_imagenet_annotations_that_do_not_fit(tmp_path, in_time, on_device):
  name, path = save_folder(tmp_path, inner='images'), tmp_path / 'val' / 'val_annotations.txt'
  save_images(tmp_path / 'val' / 'images', [(8, 8)] * 2)
  os.mkfifo(tmp_path / 'pipe')
  whole = '0.png\tant\t0\n1.png\tbee\t0\n'
  for text, words in (
    (f'{whole}{tmp_path}/pipe\tant\n', 'pipe cannot be decoded (it is a pipe, socket or device'),
    (f'{whole}gone.png\tant\n', 'images/gone.png cannot be decoded'),
    (f'{whole}0.png\tbee\n', f"{path} lists '0.png' more than once"),
    (f'{whole}0.png cow\t0\n', f"class '0' of {path} has no images in {tmp_path}/train"),
    ('0.png\tant\t0\n', f"class 'bee' of {tmp_path}/train has no images in {path}"),
  ):
    path.write_text(text)
    with pytest.raises(UserError) as e:
      test_set(load(**rgb(name=name, on_device=on_device)))
    assert words in str(e.value)


@pytest.mark.parametrize('augment', ['none', 'pad_crop_flip', 'resize_crop_flip', 'inception_crop_flip'])
def test_folder_of_mixed_sizes_streams(tmp_path, augment):
  name = save_folder(tmp_path, sizes=((9, 12), (20, 8), (8, 8), (30, 31)))
  dataset = load(**rgb(name=name, augment=augment, resize=9))
  assert not is_on_device(dataset)
  iterator = dataset.train.batches(0)
  batch = next(iterator)
  iterator.close()
  assert batch['image'].shape == (4, 8, 8, 3)
  levels = [i % 4 + 100 * (i // 4) for i in dataset.train.indices(0)]  # Each image is of one color.
  np.testing.assert_array_equal(batch['image'], np.reshape(levels, (4, 1, 1, 1)) + np.zeros((8, 8, 3), int))
  assert len(test_set(dataset)[1]) == 8


def test_folder_mistakes(tmp_path):
  name = save_folder(tmp_path, sizes=((8, 8), (8, 9)))
  expect(["config.data.on_device='yes'", 'differ in size'], **rgb(name=name, on_device='yes', resize=8))
  with pytest.raises(UserError, match='config.data.resize=0, but file .*test/ant/1.JPEG is 8x9, not 8x8'):
    for _ in load(**rgb(name=name)).evals['test'].batches():
      pass
  expect([f'there is no folder {tmp_path}/none;'], **rgb(name=f'folder:{tmp_path}/none'))
  (tmp_path / 'train' / 'cow').mkdir()
  expect([f'{tmp_path}/train/cow holds no image file', 'nor anything else'], **rgb(name=name))
  save_images(tmp_path / 'train' / 'cow' / 'images', [(8, 8)])
  expect(["class 'cow'", f'has no images in {tmp_path}/test;'], **rgb(name=name))
  save_images(tmp_path / 'test' / 'dog', [(8, 8)])
  expect([f"class 'dog' of {tmp_path}/test has no images in {tmp_path}/train;"], **rgb(name=name))
  expect(['1 or 3 channels'], name=name, mean=(0.5,) * 2, std=(1.0,) * 2)


def test_every_kind_of_image_file_is_found_and_the_rest_is_told(tmp_path):
  name = save_folder(tmp_path)
  suffixes = ['.webp', '.bmp', '.tif', '.tiff', '.gif', '.jfif', '.jpg', '.JPEG', '.PNG', '.ppm', '.tga', '.jp2']
  for i, suffix in enumerate(suffixes):
    Image.new('RGB', (8, 8), (100 + i,) * 3).save(tmp_path / 'train' / 'bee' / f'x{i:02}{suffix}')
  for suffix in ('.pgm', '.pnm'):
    Image.new('L', (8, 8), 200).save(tmp_path / 'train' / 'bee' / f'y{suffix}')
  Image.new('1', (8, 8), 1).save(tmp_path / 'train' / 'bee' / 'z.pbm')
  dataset = load(**rgb(name=name))
  assert dataset.num_examples == {'train': 8 + 15, 'test': 8} and is_on_device(dataset)
  assert dataset.summary == f'{name}: train 23 images, test 8, 2 classes'

  for hidden in ('.ipynb_checkpoints', 'ant/.ipynb_checkpoints'):
    (tmp_path / 'train' / hidden).mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'train' / hidden / 'a.png')
  (tmp_path / 'train' / 'ant' / '._0.png').write_bytes(b'resources of macOS')
  (tmp_path / 'train' / '.DS_Store').write_bytes(b'')
  (tmp_path / 'test' / 'ant' / 'Thumbs.db').write_bytes(b'')
  for i in range(2):
    (tmp_path / 'train' / 'ant' / f'{i}.heic').write_bytes(b'')
  (tmp_path / 'train' / 'bee' / 'README').write_bytes(b'')
  (tmp_path / 'train' / 'bee' / 'more').mkdir()
  Image.new('RGB', (8, 8)).save(tmp_path / 'train' / 'loose.png')
  (tmp_path / 'val').mkdir()
  (tmp_path / 'Testing').mkdir()
  dataset = load(**rgb(name=name))
  assert dataset.class_names == ('ant', 'bee') and dataset.summary == (
    f'{name}: train 23 images, test 8, 2 classes; left out 4 files not read as images (.heic, no suffix, .db), '
    '4 hidden names, 1 folder inside class folders, 1 image outside class folders; '
    'val/ is not used; Testing/ is not used'
  )


def test_folders_from_macos_are_the_same_set_on_linux(tmp_path):
  """macOS hands out names decomposed (NFD): classes, the order of images and so every batch stay the same."""
  loaded = {}
  for form in ('NFC', 'NFD'):
    for split in ('train', 'test'):
      for label, name in enumerate(('zebra', 'épée', 'ete')):  # épée is before zebra in NFD, after it in NFC
        save_images(tmp_path / form / split / unicodedata.normalize(form, name), ((8, 8),) * 2, level=60 * label)
        file = Image.new('RGB', (8, 8), (60 * label + 30,) * 3)
        file.save(tmp_path / form / split / unicodedata.normalize(form, name) / unicodedata.normalize(form, 'é.png'))
        file.save(tmp_path / form / split / unicodedata.normalize(form, name) / 'f.png')
    loaded[form] = load(**rgb(name=f'folder:{tmp_path / form}'))
  assert loaded['NFC'].class_names == loaded['NFD'].class_names == ('ete', 'zebra', 'épée')
  for a, b in zip(test_set(loaded['NFC']), test_set(loaded['NFD'])):
    np.testing.assert_array_equal(a, b)
  for form in loaded:
    shutil.rmtree(tmp_path / form / 'test')
    loaded[form] = load(**rgb(name=f'folder:{tmp_path / form}'))
  assert loaded['NFC'].held_out_digest == loaded['NFD'].held_out_digest != ''


def test_class_names_that_only_unicode_tells_apart(tmp_path):
  name = save_folder(tmp_path / 'folder')
  for form in ('NFC', 'NFD'):
    save_images(tmp_path / 'folder' / 'train' / unicodedata.normalize(form, 'é'), ((8, 8),))
  words = ["the class names 'e\\u0301' and '\\xe9' are the same text in Unicode NFC; rename one"]
  expect([f'{tmp_path}/folder/train', *words], **rgb(name=name))
  (tmp_path / 'arrays').mkdir()
  name = save_npy(tmp_path / 'arrays', class_names=np.array(['e\u0301', '\xe9', 'c']))
  expect(['class_names.npy', *words], name=name)
  name = save_npy(tmp_path / 'arrays', class_names=np.array(['e\u0301', 'b', 'c']))
  assert load(name=name).class_names == ('\xe9', 'b', 'c')


def test_images_next_to_a_folder_of_images_are_told(tmp_path):
  name = save_folder(tmp_path, inner='images')
  Image.new('RGB', (8, 8)).save(tmp_path / 'train' / 'ant' / 'a.png')
  (tmp_path / 'train' / 'ant' / 'ant_boxes.txt').write_bytes(b'')
  assert load(**rgb(name=name)).summary.endswith(
    '; left out 1 file not read as images (.txt), 1 image next to a folder images/'
  )


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
  name = save_folder(tmp_path)
  for place in ('train/ant', 'test/bee'):
    path = tmp_path / place / '5.png'
    os.mkfifo(path)
    expect([f'{path} is a pipe, socket or device, not an image file; remove it'], **rgb(name=name))
    path.unlink()
    path.symlink_to('/dev/zero')
    expect([f'{path} is a pipe, socket or device'], **rgb(name=name))
    path.unlink()
    path.mkdir()
    expect([f'{path} is a folder, but is called like an image file'], **rgb(name=name))
    path.rmdir()
  (tmp_path / 'train' / 'ant' / 'log2').symlink_to('log2')  # in a circle
  assert '1 file not read as images (no suffix)' in load(**rgb(name=name)).summary
  (tmp_path / 'train' / 'ant' / '5.png').symlink_to('5.png')
  expect(['1 training image cannot be decoded', 'ant/5.png'], **rgb(name=name, on_device='yes'))
  (tmp_path / 'train' / 'ant' / '5.png').unlink()
  os.mkfifo(tmp_path / 'train' / 'ant' / 'log')
  assert '1 special file' in load(**rgb(name=name)).summary
  with socket.socket(socket.AF_UNIX) as server:
    cwd = os.getcwd()
    os.chdir(tmp_path / 'train' / 'ant')  # The names of sockets are short.
    try:
      server.bind('6.png')
    finally:
      os.chdir(cwd)
    expect(['6.png is a pipe, socket or device'], **rgb(name=name))


def test_a_link_to_nothing_is_a_broken_image(tmp_path):
  name = save_folder(tmp_path)
  (tmp_path / 'train' / 'ant' / '5.png').symlink_to(tmp_path / 'nothing.png')
  dataset = load(**rgb(name=name, max_corrupt_fraction=0.2))
  assert list(dataset.train.broken()) == [4] and dataset.num_examples['train'] == 9


@pytest.mark.parametrize(
  'folder, words',
  [
    (b'b\nee', [r"the class name 'b\nee' has the character '\n'"]),
    (b'\xff', [r"the class name '\udcff' has"]),
    (b' ', ["class 0 has the name ' ', which is empty"]),
  ],
)
def test_names_of_class_folders(tmp_path, folder, words):
  name = save_folder(tmp_path)
  os.rename(os.fsencode(tmp_path / 'train' / 'bee'), os.path.join(os.fsencode(tmp_path / 'train'), folder))
  expect([f'{tmp_path}/train: ', *words], **rgb(name=name))


def test_names_of_files_are_told_in_one_line(tmp_path):
  name = save_folder(tmp_path)
  (tmp_path / 'test' / 'ant' / 'a\nb.png').write_bytes(b'no image')
  expect([r"test/ant/a\nb.png' cannot be decoded (it is not an image)"], **rgb(name=name))


@pytest.mark.parametrize('on_device', ['auto', 'no'])
def test_broken_images_are_named(tmp_path, on_device):
  name = save_folder(tmp_path)
  whole = (tmp_path / 'test' / 'bee' / '2.JPEG').read_bytes()
  for broken in (b'no image', whole[:-200]):
    (tmp_path / 'test' / 'bee' / '2.JPEG').write_bytes(broken)
    with pytest.raises(UserError, match=r'test/bee/2\.JPEG cannot be decoded') as e:
      test_set(load(**rgb(name=name, on_device=on_device)))
    assert '\n' not in str(e.value)


# --- TensorFlow Datasets.


def save_tfds(root, file_format, name='blobs', varied=False, unlabeled=0):
  """A prepared set as download_and_prepare leaves it: 12 train, 7 validation and `unlabeled` test images."""
  pytest.importorskip('tensorflow')
  tfds = pytest.importorskip('tensorflow_datasets')
  rng = np.random.default_rng(0)
  size = None if varied else 8
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(size, size, 3), encoding_format='png'),
      'label': tfds.features.ClassLabel(names=['ant', 'bee']),
    }
  )
  examples = {
    s: [{'image': rng.integers(0, 256, (8 + i * varied, 8, 3), dtype=np.uint8), 'label': i % 2} for i in range(n)]
    for s, n in (('train', 12), ('validation', 7))
  }
  if unlabeled:
    examples['test'] = [{'image': np.zeros((8, 8, 3), np.uint8), 'label': -1}] * unlabeled
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version='1.0.0',
    features=features,
    data_dir=root,
    file_format=file_format,
    split_datasets={s: list(enumerate(e)) for s, e in examples.items()},
    disable_shuffling=True,
  )
  return examples


@pytest.mark.filterwarnings('ignore')  # What tensorflow_datasets warns of while it writes is not ours.
@pytest.mark.parametrize(
  'file_format, on_device', [('array_record', 'auto'), ('array_record', 'no'), ('tfrecord', 'auto'), ('tfrecord', 'no')]
)
def test_tfds(tmp_path, file_format, on_device):
  examples = save_tfds(tmp_path, file_format)
  dataset = load(**rgb(name='blobs', dir=str(tmp_path), on_device=on_device))
  assert dataset.class_names == ('ant', 'bee') and is_on_device(dataset) == (on_device == 'auto')
  images, labels = test_set(dataset)
  np.testing.assert_array_equal(images, [e['image'] for e in examples['validation']])
  np.testing.assert_array_equal(labels, [e['label'] for e in examples['validation']])
  iterator = dataset.train.batches(2)
  rows = [examples['train'][i]['image'] for i in dataset.train.indices(2)]
  np.testing.assert_array_equal(next(iterator)['image'], rows)
  iterator.close()


@pytest.mark.filterwarnings('ignore')  # What tensorflow_datasets warns of while it writes is not ours.
@pytest.mark.parametrize(
  'file, content',
  [
    ('dataset_info.json', ''),
    ('dataset_info.json', '{"name": 2}'),
    ('dataset_info.json', None),
    ('features.json', '{"featuresDict": 1}'),
    ('features.json', '[]'),
    ('features.json', '[' * 10**5),
  ],
)
def test_tfds_damaged_metadata(tmp_path, file, content):
  save_tfds(tmp_path, 'tfrecord')
  path = tmp_path / 'blobs' / '1.0.0' / file
  path.unlink() if content is None else path.write_text(content)
  expect(["config.data.name='blobs' cannot be opened", 'prepare the data set again'], name='blobs', dir=str(tmp_path))


@pytest.mark.filterwarnings('ignore')
def test_tfds_checksums_that_nothing_can_check_are_told(tmp_path, monkeypatch):
  save_tfds(tmp_path, 'tfrecord')
  fields = rgb(name='blobs', dir=str(tmp_path))
  note = 'checksums of the images are not checked (pip install google-crc32c)'
  assert note not in load(**fields).summary
  monkeypatch.setattr('cmtkd_jax.data.sources.tfrecord._fast_crc32c', None)
  assert load(**fields).summary.endswith(f'; {note}')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_tfds_pipes_in_place_of_files(tmp_path, in_time, file_format):
  save_tfds(tmp_path, file_format)
  paths = sorted(path for path in (tmp_path / 'blobs').rglob('*') if path.is_file())
  assert {'dataset_info.json', 'features.json', 'label.labels.txt'} < {path.name for path in paths}
  for path in paths:
    kept = path.rename(tmp_path / 'kept')
    os.mkfifo(path)
    expect([f'{path} is a pipe, socket or device, not a file', 'prepare'], name='blobs', dir=str(tmp_path))
    path.unlink()
    kept.rename(path)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('on_device', ['auto', 'no'])
def test_tfds_test_split_without_labels(tmp_path, on_device):
  """ImageNet's test labels are not public, so it is evaluated on validation; other sets are refused."""
  fields = rgb(dir=str(tmp_path), on_device=on_device)
  save_tfds(tmp_path, 'array_record', name='imagenet2012', unlabeled=3)
  assert load(**fields, name='imagenet2012').evals['test'].num_examples == 7
  save_tfds(tmp_path, 'array_record', name='blind', unlabeled=3)
  with pytest.raises(UserError, match='config.data.name.*no label'):
    test_set(load(**fields, name='blind'))


@pytest.mark.filterwarnings('ignore')
def test_tfds_of_mixed_sizes(tmp_path):
  save_tfds(tmp_path, 'array_record', varied=True)
  fields = rgb(name='tfds:blobs', dir=str(tmp_path), resize=9, augment='inception_crop_flip')
  assert test_set(load(**fields))[0].shape == (7, 8, 8, 3)
  expect(['differ in size'], **fields | {'on_device': 'yes'})


def test_tfds_not_prepared(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  command = f"tfds.builder('cifar100', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()"
  expect([f"'cifar100' is not prepared in {tmp_path}", command], **rgb(name='cifar100', dir=str(tmp_path)))
  expect([f'{tmp_path}/downloads/manual'], **rgb(name='tfds:imagenet2012', dir=str(tmp_path)))
  expect(["tfds.builder('cifar100:3.0.2', data_dir="], **rgb(name='cifar100/3.0.2', dir=str(tmp_path)))
  for unknown in ('cifar1000', 'dig its', 'tfds:', 'abcdefgh'):
    expect(['allowed are', 'folder:/path'], name=unknown, dir=str(tmp_path))


def test_tfds_in_another_folder_than_given(tmp_path):
  """A path as a name, and a data directory that is too deep: the line has what to write, and that works."""
  pytest.importorskip('tensorflow_datasets')
  version = tmp_path / 'cifar100' / '3.0.2'
  version.mkdir(parents=True)
  (version / 'dataset_info.json').write_text('{"name": "cifar100", "version": "3.0.2"}')
  for path in (version, version.parent):
    words = f"is a prepared data set; write tfds:cifar100:3.0.2, and config.data.dir='{tmp_path}'"
    expect([words], **rgb(name=str(path)))
    found = f"'cifar100:9.9.9' is in {tmp_path}, not in {path}; set config.data.dir='{tmp_path}'"
    expect([found], **rgb(name='cifar100:9.9.9', dir=str(path)))


def test_a_name_that_is_nearly_right(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'arrays').mkdir()
  save_npy(tmp_path / 'arrays')
  for name, words in {
    './photos': 'is a folder; write folder:./photos',
    str(tmp_path / 'photos'): f'is a folder; write folder:{tmp_path}/photos',
    './arrays': 'is a folder; write npy:./arrays',
    './nothing': 'does not exist; write folder:PATH or npy:PATH',
    './arrays/test_labels.npy': 'is a file; write folder:PATH or npy:PATH',
    '/': 'is a folder; write folder:/',
    'gs://bucket/set': 'is a path; write folder:PATH or npy:PATH',
  }.items():
    expect([f'config.data.name={name!r} {words}'], name=name)
  pytest.importorskip('tensorflow_datasets')
  for name, meant in {
    'photos': 'write folder:photos',
    'arrays': 'write npy:arrays',
    'foldr:photos': "did you mean 'folder:photos'?",
    'NPY:arrays': "did you mean 'npy:arrays'?",
    'generate:8x8x1:2:9': "did you mean 'generated:8x8x1:2:9'?",
    'digit': "did you mean 'digits'?",
    'Digits': "did you mean 'digits'?",
    'CIFAR100': "did you mean 'cifar100'?",
    'cifar-100': "did you mean 'cifar100'?",
    'imagenet_2012': "did you mean 'imagenet2012'?",
    'digits:8': "did you mean 'digits'?",
  }.items():
    expect([f'config.data.name={name!r} is ', meant], name=name, dir=str(tmp_path))
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  expect(["did you mean 'digits'?"], name='digit')
  expect(['tensorflow_datasets is not installed'], name='cifar100')


def test_squares_of_two_sizes_cannot_be_taken_as_they_are(tmp_path):
  for split, side in (('train', 8), ('test', 9)):
    for label, name in enumerate(('ant', 'bee')):
      save_images(tmp_path / split / name, ((side, side),) * 4, level=100 * label)
  for size, words in ((9, 'the training images of'), (8, 'the test images of')):
    line = expect([words, f'set config.data.resize={size} or more'], **rgb(name=f'folder:{tmp_path}', image_size=size))
    assert 'takes them as they are' not in line


def test_images_that_are_much_larger_than_the_network_are_resized_once(tmp_path):
  """Not on the device, in every step; unless that is asked for."""
  name = save_folder(tmp_path, sizes=((17, 20),) * 4)
  for resize, on_device, expected in ((8, 'auto', False), (8, 'yes', True), (9, 'auto', True)):
    fields = rgb(name=name, image_size=8, resize=resize, augment='resize_crop_flip', on_device=on_device)
    assert is_on_device(load(**fields)) == expected


@pytest.mark.parametrize(
  'images, labels, words',
  [
    (np.ones((3, 8, 8, 1)), [0, 1, 0], r'images are float64.3, 8, 8, 1., not uint8'),
    (np.ones((3, 8, 8), np.uint8), [0, 1, 0], r'images are uint8.3, 8, 8., not uint8 .N, H, W, C.'),
    (np.ones((3, 8, 8, 1), np.uint8), [0.0, 1.0, 0.0], r'labels are float64.3., not integers .3.'),
    (np.ones((3, 8, 8, 1), np.uint8), [[1, 0], [0, 1], [1, 0]], r'labels are int64.3, 2., not integers .3.'),
    (np.ones((3, 8, 8, 1), np.uint8), [0, 1], r'labels are int64.2., not integers .3.'),
  ],
)
def test_arrays_of_a_reader_of_ones_own(images, labels, words):
  with pytest.raises(ValueError, match=f'mine: {words}'):
    base.ArraySource(images, np.array(labels), 'mine')


def test_labels_of_a_reader_have_names(monkeypatch):
  images = np.ones((3, 8, 8, 1), np.uint8)
  source = base.ArraySource(images, np.array([0, 1, 2]), 'mine')
  monkeypatch.setattr(base, 'digits', lambda: base.Splits(source, source, ('a', 'b')))
  expect(['there is the label 2, but there are 2 class names'], name='digits')


@pytest.mark.parametrize('name', ['npy', 'generated:8x8x1:1:48'])
def test_one_class_is_refused(tmp_path, name):
  name = save_npy(tmp_path, classes=1) if name == 'npy' else name
  expect(['there is one class; give images of two or more'], name=name)


@pytest.mark.e2e
def test_imports_neither_tensorflow_nor_grain_unless_needed():
  code = """
import sys, jax
from cmtkd_jax import data
config = dict(
    name='digits', dir='', minival=0.1, augment='pad_crop', pad=1, pad_mode='zeros', image_size=8, resize=0, mean=(0.,),
    std=(1.,), on_device='auto', num_workers=1, workers='threads', decoder='pil', max_corrupt_fraction=0.01)
mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
data.load(config, batch_size=4, eval_batch_size=4, seed=0, mesh=mesh)
print([m for m in ('tensorflow', 'tensorflow_datasets', 'grain') if m in sys.modules])
"""
  run = subprocess.run([sys.executable, '-B', '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout == '[]\n'


# --- Fields.


def expect(words, **fields):
  """Loading fails with one line that has all of `words`."""
  with pytest.raises(UserError) as e:
    load(**fields)
  line = str(e.value)
  assert line.startswith('config.') and '\n' not in line
  for word in words:
    assert word in line, line
  return line


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'minival': 1.0}, ['config.data.minival=1.0', 'must lie in [0, 1)']),
    ({'minival': -0.1}, ['config.data.minival=-0.1']),
    ({'minival': 0.0001}, ['config.data.minival=0.0001 of', 'raise it']),
    ({'augment': 'flip'}, ["config.data.augment='flip'", 'pad_crop_flip']),
    ({'augment': 'resize_crop_flip'}, ['config.data.resize=0', 'resize_crop_flip']),
    ({'on_device': 'maybe'}, ["config.data.on_device='maybe'", "'auto', 'yes', 'no'"]),
    (
      {'image_size': 32},
      ['config.data.image_size=32', '8x8', 'set config.data.image_size=8', 'config.data.resize=32 or more'],
    ),
    ({'image_size': 0}, ['config.data.image_size=0']),
    ({'image_size': 10**9}, ['config.data.image_size=1000000000', 'must lie in [1, 16384]']),
    ({'resize': 10**9}, ['config.data.resize=1000000000', 'must lie in [0, 16384]']),
    ({'resize': 7}, ['config.data.resize=7', 'config.data.image_size=8']),
    ({'pad': -1}, ['config.data.pad=-1']),
    ({'num_workers': -1}, ['config.data.num_workers=-1']),
    ({'num_workers': 10**6}, ['config.data.num_workers=1000000', 'must lie in [0, 1024]']),
    ({'workers': 'processes', 'cache': True, 'resize': 8}, ['config.data.cache=True', "workers='threads'"]),
    ({'trivial_augment': True, 'image_size': 3000}, ['config.data.trivial_augment=True', 'fewer than 2^23 pixels']),
    ({'workers': 'fibres'}, ["config.data.workers='fibres'", "'threads', 'processes'"]),
    ({'workers': 'processes', 'num_workers': 0}, ['config.data.num_workers=0', "workers='threads'"]),
    ({'decoder': 'nvjpeg'}, ["config.data.decoder='nvjpeg'", "'pil', 'tensorflow'"]),
    ({'max_corrupt_fraction': 1.0}, ['config.data.max_corrupt_fraction=1.0', 'must lie in [0, 1)']),
    ({'mean': (0.5,) * 3, 'std': (0.5,) * 3}, ['config.data.mean=(0.5, 0.5, 0.5)', '1 channels']),
    ({'std': (0.5, 0.5)}, ['config.data.std=', 'one number per channel']),
    ({'std': (0.0,)}, ['config.data.std=', 'positive']),
    ({'mean': (125.3,)}, ['config.data.mean=', 'between 0 and 1']),
    ({'name': 'generated:8x8:10:100'}, ["config.data.name='generated:8x8:10:100'", 'HxWxC:CLASSES:N']),
    ({'name': 'generated:8x8x1:0:100'}, ['positive whole numbers']),
    (
      {'name': 'generated:8x8x2:2:9', 'mean': (0.5,) * 2, 'std': (0.5,) * 2, 'on_device': 'no', 'resize': 9},
      ["config.data.on_device='no'", '1 or 3 channels'],
    ),
    ({'batch_size': 2000}, ['config.batch_size=2000', '1442 training examples']),
    ({'batch_size': 13, 'devices': 8}, ['config.batch_size=13', '8 devices', 'use 8 or 16']),
    ({'batch_size': 3, 'devices': 8}, ['config.batch_size=3', 'use 8']),
    ({'eval_batch_size': 0}, ['config.eval_batch_size=0']),
    ({'eval_batch_size': 10**12}, ['config.eval_batch_size=1000000000000 is more than 1048576', 'lower it']),
  ],
)
def test_bad_fields(fields, words):
  expect(words, **fields)


@pytest.mark.parametrize(
  'sizes, image_size, words, unwanted',
  [
    (((24, 36),) * 4, 8, ['are 24x36;', 'set config.data.resize=8 or more'], 'image_size=24'),
    (((90, 90),) * 4, 32, ['are 90x90;', 'set config.data.resize=32 or more'], 'image_size=90'),
    (
      ((12, 12),) * 4,
      8,
      ['are 12x12;', 'set config.data.image_size=12, which takes them as they are, or set config.data.resize=8'],
      'other sizes',
    ),
    (((12, 12), (12, 13)) * 2, 8, ['are 12x12 and of other sizes;', 'set config.data.resize=8'], 'image_size=12'),
    (
      ((8, 8),) * 4,
      32,
      ['are 8x8;', 'set config.data.image_size=8, which takes them as they are, or set config.data.resize=32'],
      'other sizes',
    ),
  ],
)
def test_images_of_another_size_than_the_network(tmp_path, sizes, image_size, words, unwanted):
  """Photos are to be resized; only small squares may be taken as they are. What is advised works."""
  fields = rgb(name=save_folder(tmp_path, sizes=sizes), image_size=image_size)
  line = expect([f'config.data.image_size={image_size} and config.data.resize=0', *words], **fields)
  assert unwanted not in line
  batch = take(load(**fields, resize=image_size, augment='pad_crop_flip').train, 0, 1)[0]
  assert batch['label'].shape == (4,)
