"""Data sets as they lie on disk, and the error line for each mistake."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict
from PIL import Image

from cmtkd_jax import data
from cmtkd_jax.errors import UserError


def load(batch_size=4, eval_batch_size=4, devices=2, **fields):
  config = ConfigDict(dict(
      name='digits', dir='', minival=0.0, augment='none', pad=2, pad_mode='zeros', image_size=8, resize=0, mean=(0.3,),
      std=(0.35,), resident='auto', num_workers=2, workers='threads', decoder='pil', max_corrupt=0.01))
  config.update(fields)
  mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
  return data.load(config, batch_size=batch_size, eval_batch_size=eval_batch_size, seed=0, mesh=mesh)


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
  assert dataset.class_names == tuple('0123456789') and dataset.num_classes == 10 and dataset.resident
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
  centres = np.stack([batch['image'][batch['label'] == c].mean(0) for c in range(4)])
  nearest = ((images[:, None] - centres) ** 2).sum((2, 3, 4)).argmin(1)
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


@pytest.mark.parametrize('arrays, words', [
    ({'test_labels': None}, ['test_labels.npy does not exist']),
    ({'train_images': np.zeros((12, 8, 8, 1), np.float32)}, ['train_images.npy is float32', 'uint8[N, H']),
    ({'train_images': np.zeros((12, 8, 8), np.uint8)}, ['train_images.npy is uint8[12, 8, 8]']),
    ({'train_labels': np.zeros(12)}, ['train_labels.npy is float64']),
    ({'train_labels': np.zeros(11, int)}, ['train_labels.npy is int64[11]', 'integers [12]']),
    ({'train_labels': np.arange(12) - 1}, ['labels -1..10']),
    ({'test_labels': np.full(5, 3)}, ['test_labels.npy has labels 3..3', '0..2']),
    ({'class_names': np.array(['a', 'b'])}, ['labels 0..2', '2 classes']),
    ({'class_names': np.array([1, 2, 3])}, ['class_names.npy is int64', 'vector of strings']),
    ({'train_labels': np.array([{}] * 12, object)}, ['train_labels.npy holds Python objects']),
])
def test_npy_mistakes(tmp_path, arrays, words):
  expect(words + [f"config.data.name='npy:{tmp_path}'"], name=save_npy(tmp_path, **arrays))


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


@pytest.mark.parametrize('test, inner, resident', [('test', '', 'auto'), ('val', 'images', 'no')])
def test_folder(tmp_path, test, inner, resident):
  dataset = load(**rgb(name=save_folder(tmp_path, test=test, inner=inner), resident=resident))
  assert dataset.class_names == ('ant', 'bee') and dataset.train.num_examples == 8
  assert dataset.resident == (resident == 'auto')
  images, labels = test_set(dataset)
  np.testing.assert_array_equal(labels, [0] * 4 + [1] * 4)
  np.testing.assert_allclose(images[:, 0, 0, 0], [50, 51, 52, 53, 150, 151, 152, 153], atol=1)
  iterator = dataset.train.batches(0)
  batch = jax.device_get(next(iterator))
  iterator.close()
  levels = [i % 4 + 100 * (i // 4) for i in dataset.train.indices(0)]
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], levels)


def test_tiny_imagenet_layout(tmp_path):
  name = save_folder(tmp_path, inner='images')
  save_images(tmp_path / 'val' / 'images', [(8, 8)] * 3, mode='L', level=7)
  (tmp_path / 'val' / 'val_annotations.txt').write_text(
      '2.png\tant\t0\t0\t1\t1\n1.png\tbee\t0\t0\t1\t1\n0.png\tant\t0\t0\t1\t1\n')
  images, labels = test_set(load(**rgb(name=name)))
  np.testing.assert_array_equal(labels, [0, 0, 1])
  np.testing.assert_array_equal(images[:, 3, 3], np.array([[9], [7], [8]]).repeat(3, 1))


@pytest.mark.parametrize('augment', ['none', 'pad_crop_flip', 'resize_crop_flip', 'inception_crop_flip'])
def test_folder_of_mixed_sizes_streams(tmp_path, augment):
  name = save_folder(tmp_path, sizes=((9, 12), (20, 8), (8, 8), (30, 31)))
  dataset = load(**rgb(name=name, augment=augment, resize=9))
  assert not dataset.resident
  iterator = dataset.train.batches(0)
  batch = next(iterator)
  iterator.close()
  assert batch['image'].shape == (4, 8, 8, 3)
  levels = [i % 4 + 100 * (i // 4) for i in dataset.train.indices(0)]  # Each image is of one colour.
  np.testing.assert_array_equal(batch['image'], np.reshape(levels, (4, 1, 1, 1)) + np.zeros((8, 8, 3), int))
  assert len(test_set(dataset)[1]) == 8


def test_folder_mistakes(tmp_path):
  name = save_folder(tmp_path, sizes=((8, 8), (8, 9)))
  expect(["config.data.resident='yes'", 'differ in size'], **rgb(name=name, resident='yes', resize=8))
  with pytest.raises(UserError, match='config.data.resize=0, but file .*test/ant/1.JPEG is 8x9, not 8x8'):
    for _ in load(**rgb(name=name)).evals['test'].batches():
      pass
  expect([f'{tmp_path}/none/train'], **rgb(name=f'folder:{tmp_path}/none'))
  (tmp_path / 'train' / 'cow').mkdir()
  expect([f'{tmp_path}/train/cow holds no image file', 'nor anything else'], **rgb(name=name))
  save_images(tmp_path / 'train' / 'cow' / 'images', [(8, 8)])
  expect(["class 'cow'", 'no images to test on'], **rgb(name=name))
  save_images(tmp_path / 'test' / 'dog', [(8, 8)])
  expect(["class 'dog'", 'has images to test on, but none in'], **rgb(name=name))
  expect(['1 or 3 channels'], name=name, mean=(0.5,) * 2, std=(1.0,) * 2)


@pytest.mark.parametrize('resident', ['auto', 'no'])
def test_broken_images_are_named(tmp_path, resident):
  name = save_folder(tmp_path)
  whole = (tmp_path / 'test' / 'bee' / '2.JPEG').read_bytes()
  for broken in (b'no image', whole[:-200]):
    (tmp_path / 'test' / 'bee' / '2.JPEG').write_bytes(broken)
    with pytest.raises(UserError, match=r'test/bee/2\.JPEG cannot be decoded') as e:
      test_set(load(**rgb(name=name, resident=resident)))
    assert '\n' not in str(e.value)


# --- TensorFlow Datasets.


def save_tfds(root, file_format, name='blobs', varied=False, unlabelled=0):
  """A prepared set as download_and_prepare leaves it: 12 train, 7 validation and `unlabelled` test images."""
  pytest.importorskip('tensorflow')
  tfds = pytest.importorskip('tensorflow_datasets')
  rng = np.random.default_rng(0)
  size = None if varied else 8
  features = tfds.features.FeaturesDict({
      'image': tfds.features.Image(shape=(size, size, 3), encoding_format='png'),
      'label': tfds.features.ClassLabel(names=['ant', 'bee'])})
  examples = {s: [{'image': rng.integers(0, 256, (8 + i * varied, 8, 3), dtype=np.uint8), 'label': i % 2}
                  for i in range(n)] for s, n in (('train', 12), ('validation', 7))}
  if unlabelled:
    examples['test'] = [{'image': np.zeros((8, 8, 3), np.uint8), 'label': -1}] * unlabelled
  tfds.dataset_builders.store_as_tfds_dataset(
      name=name, version='1.0.0', features=features, data_dir=root, file_format=file_format,
      split_datasets={s: list(enumerate(e)) for s, e in examples.items()}, disable_shuffling=True)
  return examples


@pytest.mark.filterwarnings('ignore')  # What tensorflow_datasets warns of while it writes is not ours.
@pytest.mark.parametrize('file_format, resident', [
    ('array_record', 'auto'), ('array_record', 'no'), ('tfrecord', 'auto'), ('tfrecord', 'no')])
def test_tfds(tmp_path, file_format, resident):
  examples = save_tfds(tmp_path, file_format)
  dataset = load(**rgb(name='blobs', dir=str(tmp_path), resident=resident))
  assert dataset.class_names == ('ant', 'bee') and dataset.resident == (resident == 'auto')
  images, labels = test_set(dataset)
  np.testing.assert_array_equal(images, [e['image'] for e in examples['validation']])
  np.testing.assert_array_equal(labels, [e['label'] for e in examples['validation']])
  iterator = dataset.train.batches(2)
  rows = [examples['train'][i]['image'] for i in dataset.train.indices(2)]
  np.testing.assert_array_equal(next(iterator)['image'], rows)
  iterator.close()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('resident', ['auto', 'no'])
def test_tfds_test_split_without_labels(tmp_path, resident):
  """ImageNet's test labels are not public, so it is evaluated on validation; other sets are refused."""
  fields = rgb(dir=str(tmp_path), resident=resident)
  save_tfds(tmp_path, 'array_record', name='imagenet2012', unlabelled=3)
  assert load(**fields, name='imagenet2012').evals['test'].num_examples == 7
  save_tfds(tmp_path, 'array_record', name='blind', unlabelled=3)
  with pytest.raises(UserError, match='config.data.name.*no label'):
    test_set(load(**fields, name='blind'))


@pytest.mark.filterwarnings('ignore')
def test_tfds_of_mixed_sizes(tmp_path):
  save_tfds(tmp_path, 'array_record', varied=True)
  fields = rgb(name='tfds:blobs', dir=str(tmp_path), resize=9, augment='inception_crop_flip')
  assert test_set(load(**fields))[0].shape == (7, 8, 8, 3)
  expect(['differ in size'], **fields | {'resident': 'yes'})


def test_tfds_not_prepared(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  command = (f"tfds.builder('cifar100', data_dir='{tmp_path}', file_format='array_record')"
             '.download_and_prepare()')
  expect([f"'cifar100' is not prepared in {tmp_path}", command], **rgb(name='cifar100', dir=str(tmp_path)))
  expect([f'{tmp_path}/downloads/manual'], **rgb(name='tfds:imagenet2012', dir=str(tmp_path)))
  for unknown in ('cifar1000', 'dig its', 'tfds:'):
    expect(['allowed are', 'folder:/path'], name=unknown, dir=str(tmp_path))


def test_imports_neither_tensorflow_nor_grain_unless_needed():
  code = '''
import sys, types, jax
from cmtkd_jax import data
config = types.SimpleNamespace(
    name='digits', dir='', minival=0.1, augment='pad_crop', pad=1, pad_mode='zeros', image_size=8, resize=0, mean=(0.,),
    std=(1.,), resident='auto', num_workers=1, workers='threads', decoder='pil', max_corrupt=0.01)
mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
data.load(config, batch_size=4, eval_batch_size=4, seed=0, mesh=mesh)
print([m for m in ('tensorflow', 'tensorflow_datasets', 'grain') if m in sys.modules])
'''
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
    assert word in line


@pytest.mark.parametrize('fields, words', [
    ({'minival': 0.5}, ['config.data.minival=0.5', '0 <= minival < 0.5']),
    ({'minival': -0.1}, ['config.data.minival=-0.1']),
    ({'minival': 0.0001}, ['config.data.minival=0.0001 of', 'raise it']),
    ({'augment': 'flip'}, ["config.data.augment='flip'", 'pad_crop_flip']),
    ({'augment': 'resize_crop_flip'}, ['config.data.resize=0', 'resize_crop_flip']),
    ({'resident': 'maybe'}, ["config.data.resident='maybe'", 'auto, yes, no']),
    ({'image_size': 32}, ['config.data.image_size=32', '8x8', 'set image_size=8']),
    ({'image_size': 0}, ['config.data.image_size=0']),
    ({'resize': 7}, ['config.data.resize=7', 'config.data.image_size=8']),
    ({'pad': -1}, ['config.data.pad=-1']),
    ({'num_workers': -1}, ['config.data.num_workers=-1']),
    ({'workers': 'fibres'}, ["config.data.workers='fibres'", 'threads, processes']),
    ({'workers': 'processes', 'num_workers': 0}, ['config.data.num_workers=0', "workers='threads'"]),
    ({'decoder': 'nvjpeg'}, ["config.data.decoder='nvjpeg'", 'pil, tensorflow']),
    ({'max_corrupt': 1.0}, ['config.data.max_corrupt=1.0', '0 <= max_corrupt < 1']),
    ({'mean': (0.5,) * 3, 'std': (0.5,) * 3}, ['config.data.mean=(0.5, 0.5, 0.5)', '1 channels']),
    ({'std': (0.5, 0.5)}, ['config.data.std=', 'one number per channel']),
    ({'std': (0.0,)}, ['config.data.std=', 'positive']),
    ({'mean': (125.3,)}, ['config.data.mean=', 'between 0 and 1']),
    ({'name': 'generated:8x8:10:100'}, ["config.data.name='generated:8x8:10:100'", 'HxWxC:CLASSES:N']),
    ({'name': 'generated:8x8x1:0:100'}, ['positive whole numbers']),
    ({'name': 'generated:8x8x2:2:9', 'mean': (0.5,) * 2, 'std': (0.5,) * 2, 'resident': 'no', 'resize': 9},
     ["config.data.resident='no'", '1 or 3 channels']),
    ({'batch_size': 2000}, ['config.batch_size=2000', '1442 training examples']),
    ({'batch_size': 13, 'devices': 8}, ['config.batch_size=13', '8 devices', 'use 8 or 16']),
    ({'batch_size': 3, 'devices': 8}, ['config.batch_size=3', 'use 8']),
    ({'eval_batch_size': 0}, ['config.eval_batch_size=0']),
])
def test_bad_fields(fields, words):
  expect(words, **fields)
