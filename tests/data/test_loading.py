"""Data: order, resuming, sharding, evaluation, preprocessing. Sources, errors: test_sources."""

import functools
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmtkd_jax import config as config_lib
from cmtkd_jax.data import sampling
from cmtkd_jax.data.loading import loaders, streaming
from cmtkd_jax.data.transforms import augment, crop_boxes, decode_pil
from tests.batches import assert_equal, is_on_device, load, take


@pytest.fixture(scope='module')
def npy_dir(tmp_path_factory):
  """300 + 70 images of 6x6x3 whose first pixel tells the record number and whose second tells the split."""
  folder = tmp_path_factory.mktemp('npy')
  rng = np.random.default_rng(1)
  for split, n in (('train', 300), ('test', 70)):
    images = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    images[:, 0, 0, 2] = split == 'test'
    np.save(folder / f'{split}_images.npy', images)
    np.save(folder / f'{split}_labels.npy', np.arange(n) % 7)
  return folder


def npy_fields(npy_dir, **fields):
  return dict(name=f'npy:{npy_dir}', image_size=6, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)) | fields


def record_numbers(batch):
  first = batch['image'][:, 0, 0].astype(int)
  return first[:, 0] + 256 * first[:, 1]


# --- Order.


def test_epochs_are_different_permutations():
  loader = load(batch_size=8, name='generated:4x4x1:3:50', image_size=4).train
  assert (loader.num_examples, loader.steps_per_epoch) == (50, 6)
  epochs = [np.concatenate([loader.indices(e * 6 + i) for i in range(6)]) for e in range(3)]
  for epoch in epochs:
    assert len(epoch) == len(set(epoch)) == 48 and set(epoch) <= set(range(50))
  assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
  full = np.random.Generator(np.random.Philox(key=[0, 1])).permutation(50)
  np.testing.assert_array_equal(epochs[1], full[:48])


def test_order_depends_on_the_seed_and_minival_does_not():
  a, b = (load(seed=s, minival=0.1, name='generated:4x4x1:3:90', image_size=4, batch_size=8) for s in (1, 2))
  assert not np.array_equal(a.train.indices(0), b.train.indices(0))
  images = [np.concatenate([x['image'][x['mask']] for x in d.evals['minival'].batches()]) for d in (a, b)]
  np.testing.assert_array_equal(*images)


@pytest.mark.parametrize('on_device', ['yes', 'no'])
def test_order_is_the_same_on_any_number_of_devices(npy_dir, on_device):
  fields = npy_fields(npy_dir, on_device=on_device)
  runs = [take(load(batch_size=24, devices=d, **fields).train, 11, 3) for d in (1, 2, 4, 8)]
  for run in runs[1:]:
    assert_equal(run, runs[0])


@pytest.mark.parametrize('on_device', ['yes', 'no'])
def test_batches_are_the_indexed_records_sharded_over_the_mesh(npy_dir, on_device):
  dataset = load(batch_size=40, **npy_fields(npy_dir, on_device=on_device))
  assert is_on_device(dataset) == (on_device == 'yes')
  images = np.load(npy_dir / 'train_images.npy')
  iterator = dataset.train.batches(5)
  for step in (5, 6, 7):  # Steps 0..6 are the first epoch.
    batch = next(iterator)
    rows = dataset.train.indices(step)
    np.testing.assert_array_equal(batch['image'], images[rows])
    np.testing.assert_array_equal(batch['label'], rows % 7)
    assert batch['image'].dtype == jnp.uint8 and batch['label'].dtype == jnp.int32
    for x in batch.values():
      assert {s.data.shape[0] for s in x.addressable_shards} == {5}
  iterator.close()


@pytest.mark.parametrize('on_device', ['yes', 'no'])
def test_resuming_is_the_tail_of_an_undisturbed_run(npy_dir, on_device):
  loader = load(batch_size=64, minival=0.1, **npy_fields(npy_dir, on_device=on_device)).train
  assert loader.steps_per_epoch == 4
  assert_equal(take(loader, 0, 10)[7:], take(loader, 7, 3))


@pytest.mark.parametrize(
  'fields',
  [
    {'augment': 'resize_crop_flip', 'resize': 8},
    {'augment': 'inception_crop_flip', 'resize': 8},
    {'augment': 'pad_crop'},
  ],
)
def test_resuming_and_threads_do_not_change_host_crops(npy_dir, fields):
  fields = npy_fields(npy_dir, on_device='no', **fields)
  whole = take(load(batch_size=48, num_workers=0, **fields).train, 0, 6)
  assert_equal(whole[4:], take(load(batch_size=48, num_workers=3, devices=2, **fields).train, 4, 2))
  if fields['augment'] != 'pad_crop':
    other = take(load(batch_size=48, seed=3, **fields).train, 0, 1)
    assert not np.array_equal(whole[0]['image'], other[0]['image'])


def test_host_crops_differ_between_epochs():
  fields = dict(name='generated:40x40x1:2:8', augment='inception_crop_flip', resize=8, on_device='no')
  loader = load(batch_size=8, **fields).train
  epochs = [b['image'][np.argsort(loader.indices(i))] for i, b in enumerate(take(loader, 0, 2))]
  assert all(not np.array_equal(a, b) for a, b in zip(*epochs))


def test_host_crops_depend_on_seed_position_and_record():
  image = np.random.default_rng(0).integers(0, 256, (40, 40, 1), dtype=np.uint8)
  crops = set()
  for seed, position, record in itertools.product((0, 1), repeat=3):
    transform = decode_pil.Transform('inception_crop_flip', size=8, resize=0, channels=1, seed=seed)
    crops.add(transform(image, position, record).tobytes())
  assert len(crops) == 8


def test_rows_of_a_process_are_one_block():
  """As of the second of two processes with two devices each; mixed up, it would read the rows of the other."""

  class Sharding:
    def __init__(self, *devices):
      self.devices = devices

    def addressable_devices_indices_map(self, shape):
      return {i: (slice(4 * i, 4 * i + 4),) for i in self.devices}

  assert loaders.own_rows(16, Sharding(3, 2)) == slice(8, 16)
  with pytest.raises(ValueError, match=r'several blocks, \[\(4, 8\), \(12, 16\)\]; order the mesh by process'):
    loaders.own_rows(16, Sharding(1, 3))


def test_each_process_reads_its_own_rows(npy_dir, monkeypatch):
  loader = load(batch_size=80, **npy_fields(npy_dir, on_device='no')).train
  monkeypatch.setattr(loaders, 'own_rows', lambda *_: slice(40, 80))  # As in the second of two processes.
  chunks = streaming._Chunks(loader._reader, loader.indices, 2, None)
  assert chunks.per_batch == 2
  labels = np.concatenate([chunks[i][1] for i in range(4)])
  expected = np.concatenate([loader.indices(step)[40:] for step in (2, 3)]) % 7
  np.testing.assert_array_equal(labels, expected)


def test_streaming_equals_on_device(npy_dir):
  runs = []
  for on_device in ('yes', 'no'):
    dataset = load(batch_size=56, eval_batch_size=24, minival=0.2, **npy_fields(npy_dir, on_device=on_device))
    batches = itertools.chain(*(dataset.evals[k].batches() for k in ('minival', 'test')))
    # What padding rows hold is left open.
    evals = [{k: v[b['mask']] for k, v in b.items()} for b in jax.device_get(list(batches))]
    assert sum(len(b['label']) for b in evals) == 60 + 70
    runs.append(take(dataset.train, 2, 4) + evals)
  assert_equal(*runs)


def test_streaming_closes_its_threads(npy_dir):
  before = set(threading.enumerate())
  iterator = load(batch_size=8, **npy_fields(npy_dir, on_device='no')).train.batches(0)
  next(iterator)
  started = set(threading.enumerate()) - before
  assert started
  iterator.close()
  for thread in started:
    thread.join(timeout=5)
  assert not any(t.is_alive() for t in started)


def test_on_device_gather_moves_nothing_between_devices(npy_dir):
  loader = load(batch_size=64, **npy_fields(npy_dir)).train
  reader = loader._reader
  batch = next(loader.batches(0))
  text = reader._gather.lower(*reader._arrays, batch['label']).compile().as_text()
  assert 'gather' in text and not any(
    f'{op}(' in text for op in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute')
  )


@pytest.mark.parametrize(
  'fields',
  [
    dict(on_device='yes'),
    dict(on_device='no'),
    dict(on_device='yes', augment='resize_crop_flip', resize=5, image_size=4),
    dict(on_device='no', augment='resize_crop_flip', resize=5, image_size=4),
  ],
)
def test_the_specification_of_a_batch_is_that_of_a_batch_and_reads_none(npy_dir, fields, monkeypatch):
  loader = load(batch_size=40, devices=4, **npy_fields(npy_dir, **fields)).train
  batch = take_one(loader)
  monkeypatch.setattr(loader._reader, 'stream', None)
  assert loader.batch_spec == {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding) for k, v in batch.items()}
  assert loader.batch_spec['image'].sharding.shard_shape((40, 6, 6, 3)) == (10, 6, 6, 3)


def take_one(loader):
  iterator = loader.batches(0)
  batch = next(iterator)
  iterator.close()
  return batch


def test_a_data_set_says_how_much_it_holds(npy_dir):
  dataset = load(batch_size=8, minival=0.1, **npy_fields(npy_dir))
  assert dataset.num_examples == {'train': 300, 'test': 70}
  assert dataset.summary == f'npy:{npy_dir}: train 270 images, minival 30, test 70, 7 classes'
  assert load().summary == 'digits: train 1442 images, test 355, 10 classes'


def test_minival_is_spread_over_the_training_set():
  train, minival = sampling.split_minival(1000, 0.1)  # Folders are sorted by class.
  np.testing.assert_array_equal(np.sort(np.concatenate([train, minival])), np.arange(1000))
  assert len(minival) == 100 and np.histogram(minival, 5, (0, 1000))[0].min() > 8


def test_orders_and_held_out_images_are_those_of_earlier_versions():
  """Accuracies on `minival` can be compared, and runs resumed, only as long as these stay."""
  np.testing.assert_array_equal(sampling.split_minival(1000, 0.008)[1], [34, 77, 175, 219, 254, 499, 621, 878])
  np.testing.assert_array_equal(sampling.epoch_permutation(8, 1, 2), [7, 0, 5, 4, 6, 2, 3, 1])
  np.testing.assert_array_equal(sampling.epoch_permutation(8, -1, 0), [0, 7, 2, 1, 4, 6, 5, 3])
  for seed in (3, 2**64 + 3):
    np.testing.assert_array_equal(sampling.record_rng(seed, 5, 7).integers(0, 1000, 4), [592, 922, 975, 222])


# --- Evaluation.


@pytest.mark.parametrize('on_device', ['yes', 'no'])
@pytest.mark.parametrize('batch_size, devices', [(1, 1), (13, 1), (13, 8), (70, 8), (200, 4)])
def test_evaluation_sees_every_example_once(npy_dir, on_device, batch_size, devices):
  fields = npy_fields(npy_dir, on_device=on_device, minival=0.21)
  dataset = load(batch_size=8, eval_batch_size=batch_size, devices=devices, **fields)
  seen = {}
  for split, loader in dataset.evals.items():
    batches = jax.device_get(list(loader.batches()))
    rows = {len(v) for b in batches for v in b.values()}
    assert rows == {loader.batch_size}
    assert loader.batch_size == {(13, 8): 16, (70, 8): 72}.get((batch_size, devices), batch_size)
    assert len(batches) == loader.num_batches
    assert all(b['mask'].all() for b in batches[:-1])
    seen[split] = np.concatenate([record_numbers(b)[b['mask']] for b in batches])
    assert len(seen[split]) == loader.num_examples
    for b in batches:
      np.testing.assert_array_equal(b['label'][b['mask']], record_numbers(b)[b['mask']] % 7)
      assert (b['image'][b['mask']][:, 0, 0, 2] == (split == 'test')).all()
  np.testing.assert_array_equal(seen['test'], np.arange(70))
  train = set(dataset.train._records)
  assert len(set(seen['minival'])) == len(seen['minival']) == 63
  assert not set(seen['minival']) & train and set(seen['minival']) | train == set(range(300))


# --- Preprocessing on the device.


def numpy_standardize(image, mean, std):
  return (image / 255 - np.array(mean)) / np.array(std)


def numpy_crops(image, pad, flip):
  """All images that pad-crop(-flip) may give."""
  h, w, _ = image.shape
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  for top, left in itertools.product(range(2 * pad + 1), repeat=2):
    crop = padded[top : top + h, left : left + w]
    yield crop
    if flip:
      yield crop[:, ::-1]


def test_normalize_is_that_of_the_reference(npy_dir):
  dataset = load(**npy_fields(npy_dir))
  image = np.load(npy_dir / 'test_images.npy')
  out = jax.jit(dataset.normalize)(image)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, numpy_standardize(image, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), atol=1e-5)
  np.testing.assert_array_equal(jax.jit(dataset.augment)(jax.random.key(0), image), out)  # augment='none'


@pytest.mark.parametrize('name', ['pad_crop', 'pad_crop_flip'])
def test_pad_crop_gives_each_allowed_crop_and_no_other(name):
  pad, flip = 1, name.endswith('flip')
  image = np.random.default_rng(0).integers(1, 256, (1, 5, 4, 3), dtype=np.uint8)
  allowed = {c.tobytes() for c in numpy_crops(image[0], pad, flip)}
  assert len(allowed) == (18 if flip else 9)
  out = np.asarray(
    jax.jit(augment.pad_crop, static_argnums=(2, 3))(jax.random.key(0), image.repeat(2000, 0), pad, flip)
  )
  assert out.dtype == np.uint8
  counts = {}
  for row in out:
    counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1
  assert set(counts) == allowed
  expected = 2000 / len(allowed)
  assert all(0.5 * expected < n < 1.6 * expected for n in counts.values())


@pytest.mark.parametrize(
  'mode, padded',
  [
    # rows 2 1 2 3 2 from 1 2 3, above them the second row
    ('reflect', [[5, 4, 5, 6, 5], [2, 1, 2, 3, 2], [5, 4, 5, 6, 5], [8, 7, 8, 9, 8], [5, 4, 5, 6, 5]]),
    # rows 1 1 2 3 3, above them the first row, as cv2.BORDER_REFLECT has it
    ('symmetric', [[1, 1, 2, 3, 3], [1, 1, 2, 3, 3], [4, 4, 5, 6, 6], [7, 7, 8, 9, 9], [7, 7, 8, 9, 9]]),
  ],
)
def test_mirrored_padding_by_hand(mode, padded):
  config = config_lib.default()
  config.data.pad_mode = mode
  config_lib.check(config)
  image, padded = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(200, 0), np.array(padded, np.uint8)
  crops = {np.asarray(row)[..., 0].tobytes() for row in augment.pad_crop(jax.random.key(0), image, 1, False, mode)}
  assert crops == {padded[y : y + 3, x : x + 3].tobytes() for y in range(3) for x in range(3)}


def test_augment_pads_before_standardizing():
  dataset = load(name='generated:4x4x1:2:16', image_size=4, augment='pad_crop_flip', pad=2, batch_size=8)
  out = np.asarray(jax.jit(dataset.augment)(jax.random.key(1), np.full((64, 4, 4, 1), 200, np.uint8)))
  levels = [numpy_standardize(v, 0.3, 0.35) for v in (0, 200)]
  assert (np.abs(out[..., None] - levels).min(-1) < 1e-5).all() and out.min() < 0 < out.max()


@pytest.mark.parametrize(
  'fields',
  [
    {'augment': 'pad_crop_flip'},
    {'augment': 'resize_crop_flip', 'resize': 7, 'image_size': 5},
    {'augment': 'inception_crop_flip', 'resize': 7, 'image_size': 5},
  ],
)
def test_augment_does_not_depend_on_sharding(npy_dir, fields):
  outs = []
  for devices in (1, 8):
    dataset = load(batch_size=16, devices=devices, **npy_fields(npy_dir, on_device='yes', **fields))
    image = next(dataset.train.batches(0))['image']
    augment_fn = jax.jit(dataset.augment)
    out = augment_fn(jax.random.key(5), image)
    assert out.dtype == jnp.float32 and out.shape == (16, *dataset.input_shape)
    assert not np.allclose(out, augment_fn(jax.random.key(6), image))
    outs.append(np.asarray(out))
  np.testing.assert_allclose(*outs, atol=1e-6)


def test_on_device_evaluation_crops_the_center(npy_dir):
  # Shorter side 6 -> 6 leaves the pixels alone, so the crop can be read off.
  dataset = load(**npy_fields(npy_dir, resize=6, image_size=4))
  image = np.load(npy_dir / 'test_images.npy')
  expected = numpy_standardize(image[:, 1:5, 1:5], (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
  np.testing.assert_allclose(jax.jit(dataset.normalize)(image), expected, atol=1e-4)
  streamed = load(**npy_fields(npy_dir, resize=6, image_size=4, on_device='no'))
  batch = next(streamed.evals['test'].batches())
  np.testing.assert_allclose(streamed.normalize(batch['image'])[:70], expected, atol=1e-4)


# --- Boxes: one geometry for host and device.


def draws(n, seed=0):
  return np.random.default_rng(seed).random((n, crop_boxes.NUM_DRAWS))


def test_inception_boxes_have_the_promised_area_and_ratio():
  for height, width in ((300, 300), (200, 330)):
    top, left, h, w = crop_boxes.inception_box(np, draws(2000), height, width)
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    area = h * w / (height * width)
    largest = min(1, 4 / 3 * height / width)
    assert 0.075 < area.min() < 0.1 and 0.95 * largest < area.max() <= largest
    assert 0.74 < (w / h).min() < 0.76 and 1.31 < (w / h).max() < 1.35


def test_inception_box_falls_back_to_the_center():
  top, left, h, w = crop_boxes.inception_box(np, draws(50), 1, 100)  # No box of allowed ratio has 8 % of the area.
  np.testing.assert_allclose(np.stack([top, left, h, w]).T, [[0, (100 - 4 / 3) / 2, 1, 4 / 3]] * 50)


def test_resize_crop_boxes_reach_every_offset():
  top, left, h, w = crop_boxes.resize_crop_box(np, draws(500), 20, 30, resize=10, size=8)
  assert set(zip(top, left)) == {(2.0 * a, 2.0 * b) for a in range(3) for b in range(8)}
  assert set(h) == set(w) == {16.0}


@pytest.mark.parametrize(
  'box_of', [crop_boxes.inception_box, functools.partial(crop_boxes.resize_crop_box, resize=20, size=12)]
)
def test_device_resampling_agrees_with_the_host(box_of):
  rng = np.random.default_rng(3)
  coarse = rng.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
  image = np.stack([Image.fromarray(c).resize((42, 30), Image.Resampling.BICUBIC) for c in coarse])
  u = draws(6).astype(np.float32)
  device = jax.jit(lambda i, u: augment.resample(i, box_of(jnp, u, 30, 42), 12))(image, u)
  host = np.stack([decode_pil._resample(i, box, (12, 12), 3) for i, box in zip(image, zip(*box_of(np, u, 30, 42)))])
  assert np.abs(np.asarray(device) - host).max() < 2.5  # PIL rounds twice.


def test_random_numbers_of_records_are_their_own():
  first = [sampling.record_rng(*k).random() for k in itertools.product((0, 1), repeat=3)]
  assert len(set(first)) == 8
  permutation = np.random.Generator(np.random.Philox(key=[0, 0])).random()
  assert permutation not in first
