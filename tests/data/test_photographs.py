"""Sets of photographs: both formats of tfds, smaller versions of JPEGs, worker processes, broken images."""

import functools
import gc
import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from cmtkd_jax.data import sampling
from cmtkd_jax.data.loading import host_reader, streaming
from cmtkd_jax.data.loading import worker_pool as workers
from cmtkd_jax.data.sources import base, npy
from cmtkd_jax.data.transforms import crop_boxes, decode_pil
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import tensorflow_host
from tests import batches
from tests.batches import assert_equal, is_on_device, take

IMAGENET = dict(
  augment='inception_crop_flip', resize=64, image_size=56, mean=(0.5,) * 3, std=(0.25,) * 3, on_device='no', pad=0
)


def load(name, batch_size=8, devices=2, **fields):
  return batches.load(name=name, batch_size=batch_size, eval_batch_size=8, devices=devices, **IMAGENET | fields)


def picture(seed, height, width):
  """A picture with edges and slopes, as photographs have."""
  coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image, **options):
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', **dict(quality=92) | options)
  return buffer.getvalue()


def pictures(count, seed=0):
  sizes = np.random.default_rng(seed).integers(60, 180, (count, 2))
  return [jpeg(picture(1000 * seed + i, *map(int, size))) for i, size in enumerate(sizes)]


# --- Both formats.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """{format: folder} of one set of 44 + 10 JPEGs of many sizes, in the format that tfds gives ImageNet."""
  pytest.importorskip('tensorflow')
  tfds = pytest.importorskip('tensorflow_datasets')
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cat']),
      'file_name': tfds.features.Text(),
    }
  )
  made = {split: pictures(n, seed) for seed, (split, n) in enumerate((('train', 44), ('validation', 10)))}
  folders = {}
  for file_format in ('array_record', 'tfrecord'):
    folders[file_format] = tmp_path_factory.mktemp(file_format)
    tfds.dataset_builders.store_as_tfds_dataset(
      name='photos',
      version='1.0.0',
      features=features,
      data_dir=folders[file_format],
      file_format=file_format,
      split_datasets={
        split: [
          (i, {'image': io.BytesIO(one), 'label': i % 3, 'file_name': f'{i}.JPEG'}) for i, one in enumerate(images)
        ]
        for split, images in made.items()
      },
      disable_shuffling=True,
    )
  return folders, made


@pytest.mark.integration
@pytest.mark.filterwarnings('ignore')  # of tensorflow_datasets
def test_both_formats_give_the_same_batches_and_resume_exactly(prepared):
  folders, made = prepared
  runs = []
  for _file_format, folder in folders.items():
    dataset = load('photos', dir=str(folder), minival=0.1)
    assert dataset.train.num_examples == 40 and dataset.train.steps_per_epoch == 5
    whole = take(dataset.train, 0, 8)  # Into the second epoch.
    resumed = take(load('photos', dir=str(folder), minival=0.1, num_workers=1).train, 3, 5)
    assert_equal(whole[3:], resumed)
    runs.append(whole + jax.device_get([*dataset.evals['test'].batches(), *dataset.evals['minival'].batches()]))
    # The batch is what the records' own bytes give.
    records = dataset.train.indices(6)
    transform = decode_pil.Transform('inception_crop_flip', size=56, resize=64, channels=3, seed=0)
    expected = [transform(made['train'][r], 48 + i, int(r)) for i, r in enumerate(records)]
    np.testing.assert_array_equal(whole[6]['image'], expected)
    np.testing.assert_array_equal(whole[6]['label'], records % 3)
  assert_equal(*runs)


@pytest.mark.e2e
@pytest.mark.filterwarnings('ignore')
def test_tfrecords_need_no_tensorflow(prepared):
  code = f"""
import sys
from cmtkd_jax.data.sources import tfds_source
source = tfds_source.read('photos', {str(prepared[0]['tfrecord'])!r}).train
images, labels = source.read(__import__('numpy').array([43, 5]))
print(len(source), source.first_shape, labels.tolist(), images[0][:2].hex(), 'tensorflow' in sys.modules)
"""
  run = subprocess.run([sys.executable, '-B', '-c', code], capture_output=True, text=True, check=True)
  first = Image.open(io.BytesIO(prepared[1]['train'][0]))
  assert run.stdout == f'44 {(first.height, first.width, 3)} [1, 2] ffd8 False\n'


@pytest.mark.filterwarnings('ignore')
@pytest.mark.integration
def test_a_shard_with_other_records_is_refused(prepared, tmp_path):
  import shutil

  shutil.copytree(prepared[0]['tfrecord'], tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'photos' / '1.0.0' / 'dataset_info.json'
  info = json.loads(path.read_text())
  for split in info['splits']:
    split['shardLengths'] = [str(int(length) + 1) for length in split['shardLengths']]
  path.write_text(json.dumps(info))
  with pytest.raises(UserError, match='photos-train.tfrecord-00000-of-00001 has 44 records, not the 45') as e:
    load('photos', dir=str(tmp_path))
  assert '\n' not in str(e.value)


# --- Smaller versions of JPEGs.


def full_decode(encoded, box, size):
  """The crop of the whole image: what must come out, nearly, however it is decoded."""
  top, left, height, width = box
  image = Image.open(io.BytesIO(encoded)).convert('RGB').copy()
  corners = (left, top, min(left + width, image.width), min(top + height, image.height))
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=corners)).astype(int)


@pytest.mark.parametrize('height, width, size, scale', [(375, 500, 224, 1), (540, 720, 227, 2), (1101, 1403, 224, 4)])
def test_smaller_versions_give_the_same_crop(height, width, size, scale, monkeypatch):
  encoded = jpeg(picture(1, height, width))
  box = crop_boxes.center_box(height, width, 256, size)
  decoded, resize = [], Image.Image.resize
  monkeypatch.setattr(Image.Image, 'resize', lambda self, *a, **k: decoded.append(self.size) or resize(self, *a, **k))
  out = decode_pil.Transform('none', size=size, resize=256, channels=3, seed=None)(encoded, 0, 0)
  assert decoded == [(-(-width // scale), -(-height // scale))]
  difference = np.abs(out - full_decode(encoded, box, size))
  assert difference.max() <= (0 if scale == 1 else 6) and difference.mean() < 0.7


def test_smaller_versions_never_have_fewer_pixels_than_the_crop_wants():
  encoded, rng = jpeg(picture(2, 700, 900)), np.random.default_rng(0)
  for u in rng.random((60, crop_boxes.NUM_DRAWS)):
    box = tuple(map(float, crop_boxes.inception_box(np, u, 700, 900)))
    image = Image.open(io.BytesIO(encoded))
    out = decode_pil._resample(image, box, (96, 96), 3)
    scale = 900 / image.width
    assert min(box[2:]) / scale >= 96 or image.width == 900
    assert np.abs(out - full_decode(encoded, box, 96)).mean() < 1


@pytest.mark.parametrize('mode, options', [('L', {}), ('CMYK', {}), ('RGB', {'progressive': True})])
def test_other_jpegs(mode, options):
  encoded = jpeg(picture(3, 300, 400).convert(mode), **options)
  box = crop_boxes.center_box(300, 400, 64, 56)
  out = decode_pil._resample(Image.open(io.BytesIO(encoded)), box, (56, 56), 3)
  assert np.abs(out - full_decode(encoded, box, 56)).mean() < 1
  gray = decode_pil.Transform('none', size=56, resize=64, channels=1, seed=None)(encoded, 0, 0)
  assert gray.shape == (56, 56, 1)


# --- The other decoder.


def plain_bilinear(image, size):
  """Resizing without antialiasing: each output pixel from its four neighbors, clamped at the edges. In float64."""
  image, rows_cols = image.astype(float), []
  for length in image.shape[:2]:
    at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(at).astype(int)
    rows_cols.append((low, np.minimum(low + 1, length - 1), at - low))
  (top, bottom, v), (left, right, u) = rows_cols
  v, u = v[:, None, None], u[None, :, None]
  mix = lambda row: (1 - u) * image[row][:, left] + u * image[row][:, right]
  return (1 - v) * mix(top) + v * mix(bottom)


@pytest.mark.integration
@pytest.mark.parametrize('mode, kind', [('RGB', 'JPEG'), ('L', 'JPEG'), ('CMYK', 'JPEG'), ('RGB', 'PNG'), ('P', 'PNG')])
def test_tensorflow_decodes_the_crop_and_resizes_it_plainly(mode, kind):
  pytest.importorskip('tensorflow')
  buffer = io.BytesIO()
  picture(4, 120, 160).convert(mode).save(buffer, kind)
  encoded, whole = buffer.getvalue(), np.asarray(Image.open(buffer).convert('RGB'))
  transform = decode_pil.Transform('none', size=56, resize=64, channels=3, seed=None, decoder='tensorflow')
  # The box: 56/64 of the shorter side 120 is 105, from 7.5 and 27.5, rounded to even as Python rounds: 8 and 28.
  expected = plain_bilinear(whole[8:112, 28:132], 56)
  out = transform(encoded, 0, 0)
  assert out.dtype == np.uint8 and out.shape == (56, 56, 3)
  assert np.abs(out - expected)[2:-2, 2:-2].max() <= 0.5 + 1e-3
  assert np.abs(out - expected).max() <= 3  # at the edges, colors of a JPEG are interpolated from the crop alone
  arrays = transform(whole, 0, 0)  # what is decoded already
  assert np.abs(arrays - expected).max() <= 0.5 + 1e-3
  assert decode_pil.Transform('none', 56, 64, 1, None, 'tensorflow')(encoded, 0, 0).shape == (56, 56, 1)
  cropped = decode_pil.Transform('inception_crop_flip', 56, 64, 3, 0, 'tensorflow')
  assert not np.array_equal(cropped(encoded, 0, 0), cropped(encoded, 1, 0))


def test_tensorflow_takes_smaller_versions_of_large_jpegs():
  pytest.importorskip('tensorflow')
  encoded = jpeg(picture(5, 600, 800))
  out = decode_pil.Transform('none', size=56, resize=64, channels=3, seed=None, decoder='tensorflow')(encoded, 0, 0)
  assert np.abs(out - full_decode(encoded, crop_boxes.center_box(600, 800, 64, 56), 56)).mean() < 2


@pytest.mark.e2e
@pytest.mark.filterwarnings('ignore')  # of tensorflow's import, in this process and in the workers
def test_the_tensorflow_decoder_streams_resumes_and_counts_broken_images(photos):
  pytest.importorskip('tensorflow')
  path = photos / 'train' / 'ant' / '07.jpg'
  encoded = path.read_bytes()
  path.write_bytes(encoded[: encoded.index(b'\xff\xda') + 40])  # the header and a little more
  load_with = functools.partial(load, f'folder:{photos}', decoder='tensorflow', max_corrupt_fraction=0.1)
  dataset = load_with()
  whole = take(dataset.train, 0, 6)
  assert dict(dataset.train.broken()) == {7: f'file {path} (the data of the JPEG are cut short or damaged)'}
  assert_equal(whole[4:], take(load_with(num_workers=0, devices=1).train, 4, 2))
  assert_equal(whole, take(load_with(workers='processes').train, 0, 6))


def test_the_tensorflow_decoder_needs_tensorflow(photos, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  tensorflow_host.load.cache_clear()
  with pytest.raises(UserError, match="config.data.decoder='tensorflow', which cannot be imported.*decoder='pil'"):
    load(f'folder:{photos}', decoder='tensorflow')


# --- Worker processes.


@pytest.fixture
def photos(tmp_path):
  """A folder set of 40 + 10 JPEGs, 20 and 5 a class."""
  for seed, (split, n) in enumerate((('train', 20), ('test', 5))):
    made = iter(pictures(2 * n, seed))
    for name in ('ant', 'bee'):
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(n):
        (tmp_path / split / name / f'{i:02}.jpg').write_bytes(next(made))
  return tmp_path


@pytest.mark.e2e
def test_processes_give_what_threads_give(photos):
  name = f'folder:{photos}'
  (photos / 'train' / 'ant' / '07.jpg').write_bytes(b'no image')
  dataset = load(name, max_corrupt_fraction=0.1)
  threads = take(dataset.train, 3, 4)
  evaluated = jax.device_get(list(dataset.evals['test'].batches()))
  processes = load(name, max_corrupt_fraction=0.1, workers='processes')
  assert_equal(threads, take(processes.train, 3, 4))
  assert_equal(evaluated, jax.device_get(list(processes.evals['test'].batches())))
  assert dataset.train.broken() == processes.train.broken() and list(dataset.train.broken()) == [7]
  alone = load(name, max_corrupt_fraction=0.1, workers='processes', num_workers=1, devices=1)
  assert_equal(threads[2:], take(alone.train, 5, 2))
  (photos / 'test' / 'bee' / '03.jpg').write_bytes(b'no image')
  with pytest.raises(UserError, match='test/bee/03.jpg cannot be decoded') as e:
    list(processes.evals['test'].batches())
  assert '\n' not in str(e.value)


def test_mapped_arrays_are_sent_by_name(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
  for split in ('train', 'test'):
    np.save(tmp_path / f'{split}_images.npy', images)
    np.save(tmp_path / f'{split}_labels.npy', np.arange(5))
  source = npy.read(str(tmp_path), channels=3).train
  payload = pickle.dumps(source)
  assert images[0].tobytes() not in payload
  np.testing.assert_array_equal(pickle.loads(payload).read(np.array([3, 1]))[0], images[[3, 1]])


def running(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')')[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def ends(pids):
  for _ in range(100):
    if not any(map(running, pids)):
      return True
    time.sleep(0.1)
  return False


class Misbehaving:
  """Stands for a `HostReader`, in a worker."""

  shape = (1, 1, 1)

  def read(self, records, position):
    print('a library prints')
    if position == 1:
      raise UserError('config.x=1: no')
    if position == 2:
      raise ZeroDivisionError('bug')
    if position == 3:
      os._exit(7)
    import jax._src.xla_bridge as bridge

    return np.full((len(records), 1, 1, 1), os.getpid() % 251, np.uint8), (os.getpid(), bool(bridge._backends)), {}


@pytest.mark.e2e
def test_workers_errors_and_end(monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parents[2]))  # for this module
  pool, reader, records = workers.Workers(1), Misbehaving(), np.arange(3)
  images, (pid, has_backends), _ = pool.read(reader, records, 0)
  assert (images == pid % 251).all() and images.shape == (3, 1, 1, 1) and pid != os.getpid() and not has_backends
  with pytest.raises(UserError, match='^config.x=1: no$'):
    pool.read(reader, records, 1)
  with pytest.raises(RuntimeError, match='ZeroDivisionError: bug'):
    pool.read(reader, records, 2)
  os.kill(pid, signal.SIGTERM)  # As a scheduler sends it to all processes of a run: the parent still needs them.
  assert pool.read(reader, records, 0)[1][0] == pid
  with pytest.raises(UserError, match='exit status 7.*config.data.num_workers'):
    pool.read(reader, records, 3)
  other = workers.Workers(1)
  pid = other.read(reader, records, 0)[1][0]
  assert running(pid)
  del other
  gc.collect()
  assert ends([pid])


@pytest.mark.e2e
def test_all_workers_end_where_one_has_died_before_it_was_asked():
  start = lambda code: subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  dead, alive = start(''), start('import sys; sys.stdin.read()')
  dead.wait()
  dead.stdin.write(b'a request')  # kept back until the file is closed
  workers._end([dead, alive])
  assert alive.poll() == 0


@pytest.mark.e2e
@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='looks into /proc')
def test_workers_die_with_a_killed_parent(photos):
  code = f"""
import sys
import numpy as np
from cmtkd_jax.data.loading import host_reader, worker_pool
from cmtkd_jax.data.sources import folder
from cmtkd_jax.data.transforms import decode_pil
source = folder.read({str(photos)!r}, 3, 0.2).train
reader = host_reader.HostReader(source, (8, 8, 3), decode_pil.Transform('none', 8, 8, 3, None), None)
pool = worker_pool.Workers(1)
assert pool.read(reader, np.arange(4), 0)[0].std() > 0
print(*[p.pid for p in pool._processes], flush=True)
sys.stdin.read()
"""
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  with subprocess.Popen([sys.executable, '-c', code], **pipes) as parent:
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 1 and all(map(running, pids))
    parent.kill()
  assert ends(pids)


# --- Broken images.


def test_broken_training_images_are_replaced_by_the_next(photos):
  name, whole = f'folder:{photos}', (photos / 'train' / 'ant' / '04.jpg').read_bytes()
  clean = take(load(name).train, 0, 10)
  (photos / 'train' / 'ant' / '03.jpg').write_bytes(whole[: len(whole) // 2])
  (photos / 'train' / 'bee' / '19.jpg').write_bytes(b'')
  dataset = load(name, max_corrupt_fraction=0.1)
  (photos / 'train' / 'bee' / '18.jpg').unlink()  # Record 38, after the folder was read.
  damaged = take(dataset.train, 0, 10)
  assert dataset.train.broken().keys() == {3, 38, 39}
  assert dataset.train.broken()[38] == f'file {photos}/train/bee/18.jpg (No such file or directory)'
  transform = decode_pil.Transform('inception_crop_flip', size=56, resize=64, channels=3, seed=0)
  replaced = {3: 4, 38: 0, 39: 0}  # The next one; after the last comes the first.
  seen = 0
  for step, (a, b) in enumerate(zip(clean, damaged)):
    records = dataset.train.indices(step)
    for row, record in enumerate(map(int, records)):
      if record in replaced:
        other = replaced[record]
        encoded = (photos / 'train' / ('ant', 'bee')[other // 20] / f'{other % 20:02}.jpg').read_bytes()
        np.testing.assert_array_equal(b['image'][row], transform(encoded, step * 8 + row, other))
        assert b['label'][row] == other // 20
        seen += 1
      else:
        np.testing.assert_array_equal(b['image'][row], a['image'][row])
        assert b['label'][row] == a['label'][row]
  assert seen == 6  # Two epochs.
  (photos / 'train' / 'bee' / '18.jpg').touch()
  assert_equal(damaged[7:], take(load(name, max_corrupt_fraction=0.1, num_workers=0, devices=1).train, 7, 3))


def test_too_many_broken_images_stop_the_run(photos):
  name = f'folder:{photos}'
  for i in range(3):
    (photos / 'train' / 'ant' / f'{i:02}.jpg').write_bytes(b'no image')
  take(load(name, max_corrupt_fraction=0.075).train, 0, 5)
  with pytest.raises(
    UserError, match='config.data.max_corrupt_fraction: 3 training images cannot be decoded.*ant/0'
  ) as e:
    take(load(name, max_corrupt_fraction=0.07).train, 0, 5)
  assert '\n' not in str(e.value)


def test_broken_images_of_all_processes_are_counted(photos, monkeypatch):
  """Each process reads its own rows, and may meet the same image at another epoch."""
  name = f'folder:{photos}'
  for i in range(2):
    (photos / 'train' / 'ant' / f'{i:02}.jpg').write_bytes(b'no image')
  texts = []

  def all_texts(text):
    texts.append(text)
    return [text, '[[1, "the same"], [9, "another"]]']

  monkeypatch.setattr(streaming.distributed, 'texts_of_all', all_texts)
  train = load(name, max_corrupt_fraction=0.075).train
  take(train, 0, 5)
  assert set(train.broken()) == {0, 1, 9} and set(train.broken()) == {0, 1, 9}
  assert sorted(record for record, _ in json.loads(texts[0])) == [0, 1] and texts[1] == '[]'  # each is sent once
  strict = load(name, max_corrupt_fraction=0.06).train  # 2 of 40
  take(strict, 0, 5)
  with pytest.raises(UserError, match='3 training images cannot be decoded'):
    strict.broken()


@pytest.fixture
def small(tmp_path):
  """A folder set of 40 + 4 PNGs of one size, each of one color, which is 5 times its record number."""
  for split, n in (('train', 20), ('test', 2)):
    for label, name in enumerate(('ant', 'bee')):
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(n):
        Image.new('RGB', (8, 8), (5 * (n * label + i),) * 3).save(tmp_path / split / name / f'{i:02}.png')
  return tmp_path


def load_small(folder, **fields):
  return load(f'folder:{folder}', **dict(augment='none', resize=0, image_size=8, max_corrupt_fraction=0.2) | fields)


@pytest.mark.parametrize('first', [0, 9])  # Its place among the files does not matter.
def test_on_device_sets_replace_broken_images_as_streams_do(small, first):
  paths = sorted((small / 'train').glob('*/*.png'))
  for record, content in ((first, b''), (first + 1, b'no image'), (21, paths[21].read_bytes()[:50]), (39, b'\0')):
    paths[record].write_bytes(content)
  on_device, streamed = load_small(small, on_device='yes'), load_small(small, on_device='no')
  assert is_on_device(on_device) and not is_on_device(streamed)
  reasons = {first: 'it is not an image', first + 1: 'it is not an image', 21: 'image file is truncated'}
  reasons[39] = 'it is not an image'
  assert on_device.train.broken() == {record: f'file {paths[record]} ({why})' for record, why in reasons.items()}
  drawn = take(on_device.train, 0, 5)
  assert_equal(drawn, take(streamed.train, 0, 5))
  assert on_device.train.broken() == streamed.train.broken()
  replaced = {first: first + 2, first + 1: first + 2, 21: 22, 39: 2 if first == 0 else 0}
  for step, batch in enumerate(drawn):
    records = np.array([replaced.get(r, r) for r in on_device.train.indices(step).tolist()])
    np.testing.assert_array_equal(batch['image'][:, 3, 3, 0], 5 * records)
    np.testing.assert_array_equal(batch['label'], records // 20)


@pytest.mark.parametrize('on_device', ['yes', 'no'])
def test_held_out_images_are_neither_replaced_nor_stand_in(small, on_device):
  paths = sorted((small / 'train').glob('*/*.png'))
  records, held_out = sampling.split_minival(40, 0.1)
  before = next(int(r) for r in held_out if r - 1 in records and r + 1 in records)
  paths[before - 1].write_bytes(b'no image')
  dataset = load_small(small, on_device=on_device, minival=0.1)
  asked = np.concatenate([dataset.train.indices(step) for step in range(10)])
  given = np.concatenate([batch['image'][:, 0, 0, 0] // 5 for batch in take(dataset.train, 0, 10)])
  np.testing.assert_array_equal(given, np.where(asked == before - 1, before + 1, asked))
  assert before - 1 in asked and set(dataset.train.broken()) == {before - 1}
  next(iter(dataset.evals['minival'].batches()))
  paths[before].write_bytes(b'no image')
  with pytest.raises(UserError, match=f'{paths[before]} cannot be decoded.*repair or remove it'):
    list(load_small(small, on_device=on_device, minival=0.1).evals['minival'].batches())


@pytest.mark.parametrize('on_device', ['yes', 'no'])
def test_broken_images_that_are_too_many_are_refused(small, on_device):
  paths = sorted((small / 'train').glob('*/*.png'))
  for path in paths[:3]:
    path.write_bytes(b'no image')
  with pytest.raises(
    UserError, match='config.data.max_corrupt_fraction: 3 training images cannot be decoded.*ant/0'
  ) as e:
    take(load_small(small, on_device=on_device, max_corrupt_fraction=0.07).train, 0, 5)
  assert '\n' not in str(e.value)
  for path in paths:
    path.write_bytes(b'no image')
  with pytest.raises(UserError, match='ant/00.png cannot be decoded'):
    take(load_small(small, on_device=on_device, max_corrupt_fraction=0.99).train, 0, 5)


def test_turned_files_make_up_one_size(tmp_path):
  """Sizes are those of pictures: photos of one camera, some held upright, differ, turned ones of one size do not."""
  tag = Image.Exif()
  tag[0x0112] = 6
  for split, name in (('train', 'ant'), ('train', 'bee'), ('test', 'ant'), ('test', 'bee')):
    (tmp_path / split / name).mkdir(parents=True)
    Image.new('RGB', (12, 8), 50).save(tmp_path / split / name / '0.png')
    Image.new('RGB', (8, 12), 99).save(tmp_path / split / name / '1.png', exif=tag)
  on_device, _streamed = (load_small(tmp_path, batch_size=4, resize=8, on_device=r) for r in ('auto', 'no'))
  assert is_on_device(on_device)
  evaluated = jax.device_get(next(on_device.evals['test'].batches()))
  assert evaluated['image'].shape == (8, 8, 12, 3)
  Image.new('RGB', (8, 12), 99).save(tmp_path / 'train' / 'bee' / '1.png')
  assert not is_on_device(load_small(tmp_path, batch_size=4, resize=8, on_device='auto'))


def test_substitutes_leave_the_held_out_images_alone():
  class Blank(base.ArraySource):
    def read(self, records):
      return [b'' if r in (3, 5) else self.images[r] for r in records], self.labels[records]

  images = np.arange(8, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 4, 4, 1), np.uint8)
  source = Blank(images, np.arange(8), 'blank')
  transform = decode_pil.Transform('none', size=4, resize=0, channels=1, seed=0)
  reader = host_reader.HostReader(source, (4, 4, 1), transform, np.array([0, 1, 3, 5, 7]))
  out, labels, broken = reader.read(np.array([3, 1, 5, -1]), 0)
  np.testing.assert_array_equal(out[:, 0, 0, 0], [7, 1, 7, 0])
  np.testing.assert_array_equal(labels, [7, 1, 7, 0])
  assert broken == {3: 'record 3 of blank (it is not an image)', 5: 'record 5 of blank (it is not an image)'}
  with pytest.raises(UserError, match='record 3 of blank.*nor can'):
    host_reader.HostReader(source, (4, 4, 1), transform, np.array([3, 5])).read(np.array([3]), 0)
