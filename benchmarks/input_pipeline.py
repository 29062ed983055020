"""Images a second of the input pipeline on JPEGs of ImageNet's size, beside tf.data on the same files.

Run: python benchmarks/input_pipeline.py --images=npy:DIR --scratch=DIR [--cores=2] [--rounds=5] [--out=FILE.json]

DIR holds photographs as `data.name=npy:DIR` reads them, such as CIFAR-100. What decoding costs goes by the bytes of an
image, so that each JPEG (500x375 or 375x500, about 110 kB, ImageNet's mean) is a mosaic of enlarged photographs of one
class. They are written as tfds sets in both formats, once a scratch directory.

Everything reads records, decodes, crops at random (8-100 % of the area) and resizes to 224; needs TensorFlow. tf.data
reads, parses, `decode_and_crop_jpeg`, `tf.image.resize`, mirrors (ours mirrors on the device), with AUTOTUNE: as it is
mostly written, without antialiasing, and with it, as ours resizes. All take turns; the best round of each counts. An
idle machine is needed for images a second; images a CPU-second suffer less from what else runs.
"""

import io
import itertools
import json
import os
import platform
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np
from absl import app, flags
from etils import epath
from PIL import Image

from cmtkd_jax import config as config_lib
from cmtkd_jax import data
from cmtkd_jax.data.sources import base as sources
from cmtkd_jax.data.sources import tfds_source
from cmtkd_jax.data.transforms import crop_boxes, decode_pil
from cmtkd_jax.runs import provenance
from cmtkd_jax.training import build

_IMAGES = flags.DEFINE_string('images', None, 'npy:DIR, photographs to enlarge.', required=True)
_SCRATCH = flags.DEFINE_string('scratch', None, 'Directory for the sets that are made.', required=True)
_COUNT = flags.DEFINE_integer('count', 2000, 'JPEGs to make.')
_CORES = flags.DEFINE_integer('cores', os.cpu_count(), 'Cores to use; as many threads or processes.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each pipeline.')
_BATCHES = flags.DEFINE_integer('batches', 40, 'Timed batches of each turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write, and beside it the table as Markdown.')

_SIZE, _TILE, _QUALITY, _BATCH = 224, 50, 96, 64


# --- The files.


def jpegs(source, count):
  """Yields (JPEG, label): mosaics of photographs of one class."""
  labels, rng = source.labels, np.random.default_rng(0)
  for i in range(count):
    label = i % (labels.max() + 1)
    width, height = (500, 375) if i % 4 else (375, 500)
    canvas = Image.new('RGB', (width, height))
    for y, x in itertools.product(range(0, height, _TILE), range(0, width, _TILE)):
      photograph = Image.fromarray(source.images[rng.choice(np.flatnonzero(labels == label))])
      canvas.paste(photograph.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (x, y))
    buffer = io.BytesIO()
    canvas.save(buffer, 'JPEG', quality=_QUALITY)
    yield buffer.getvalue(), int(label)


def prepare(scratch, splits, count):
  """Writes scratch/FORMAT/photos, unless they are there; returns {format: data_dir}."""
  import tensorflow_datasets as tfds

  folders = {name: scratch / f'{name}_{count}' for name in ('array_record', 'tfrecord')}
  if not all((folder / 'photos').exists() for folder in folders.values()):
    made = list(jpegs(splits.train, count))
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names=list(splits.class_names)),
      }
    )
    for file_format, folder in folders.items():
      examples = lambda rows: [(i, {'image': io.BytesIO(one), 'label': label}) for i, (one, label) in rows]
      tfds.dataset_builders.store_as_tfds_dataset(
        name='photos',
        version='1.0.0',
        features=features,
        data_dir=folder,
        file_format=file_format,
        split_datasets={'train': examples(enumerate(made)), 'test': examples(enumerate(made[:100]))},
      )
  return folders


# --- The pipelines: functions that yield the number of images of each batch, without end.


def ours(data_dir, workers, decoder):
  """Batches of the package's own loader."""
  config = config_lib.default()
  config.data.update(
    name='photos',
    dir=str(data_dir),
    augment='inception_crop_flip',
    resize=256,
    image_size=_SIZE,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    on_device='no',
    num_workers=_CORES.value,
    workers=workers,
    decoder=decoder,
  )
  train = data.load(config.data, batch_size=_BATCH, eval_batch_size=_BATCH, seed=0, mesh=build.make_mesh()).train
  for batch in train.batches(0):
    yield len(jax.block_until_ready(batch['image']))


def tf_data(data_dir, antialias):
  """Batches of tf.data on the TFRecord files."""
  import tensorflow as tf

  def load(serialized):
    features = tf.io.parse_single_example(
      serialized, {'image': tf.io.FixedLenFeature([], tf.string), 'label': tf.io.FixedLenFeature([], tf.int64)}
    )
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(features['image']),
      tf.zeros([1, 0, 4]),
      area_range=(0.08, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.io.decode_and_crop_jpeg(features['image'], window, channels=3)
    image = tf.image.resize(image, (_SIZE, _SIZE), antialias=antialias)
    image = tf.image.random_flip_left_right(image)
    return tf.cast(tf.round(image), tf.uint8), features['label']

  files = sorted(str(path) for path in (data_dir / 'photos' / '1.0.0').glob('photos-train.tfrecord*'))
  dataset = tf.data.TFRecordDataset(files).repeat().map(load, num_parallel_calls=tf.data.AUTOTUNE)
  for image, _ in dataset.batch(_BATCH).prefetch(tf.data.AUTOTUNE):
    yield len(image)


def cpu_seconds():
  """CPU time of this process and of its children, by /proc where there is one."""
  total, tick = time.process_time(), os.sysconf('SC_CLK_TCK')
  for stat in epath.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rpartition(')')[2].split()
    except OSError:  # it has ended
      continue
    if int(fields[1]) == os.getpid():
      total += (int(fields[11]) + int(fields[12])) / tick
  return total


def timed(stream):
  """(images a second, images a CPU-second) of the next batches."""
  for _ in range(4):  # What lies ready was decoded before; at the end as much lies ready again.
    next(stream)
  begin, cpu = time.perf_counter(), cpu_seconds()
  images = sum(itertools.islice(stream, _BATCHES.value))
  return images / (time.perf_counter() - begin), images / (cpu_seconds() - cpu)


# --- What the parts cost.


def parts(encoded, crops):
  """{part: function of the number of an image}."""
  import tensorflow as tf

  decoded = [Image.open(io.BytesIO(one)).copy() for one in encoded]
  windows = np.array(crops, np.int32)
  cropped = [
    tf.constant(np.asarray(image)[None, y : y + h, x : x + w]) for image, (y, x, h, w) in zip(decoded, windows)
  ]

  def smaller(i):
    image = Image.open(io.BytesIO(encoded[i]))
    image.draft(None, (image.width // 8, image.height // 8))
    image.load()

  return {
    'decode the whole image (PIL)': lambda i: Image.open(io.BytesIO(encoded[i])).load(),
    'of which mostly Huffman code: decode at an eighth of the size (PIL)': smaller,
    'decode the crop only (TensorFlow)': lambda i: tf.io.decode_and_crop_jpeg(
      encoded[i], windows[i], channels=3, dct_method='INTEGER_ACCURATE'
    ),
    'resize with antialiasing (PIL)': lambda i: decode_pil._resample(decoded[i], crops[i], _SIZE, 3),
    'resize without antialiasing (TensorFlow)': lambda i: tf.raw_ops.ResizeBilinear(
      images=cropped[i], size=[_SIZE, _SIZE], half_pixel_centers=True
    ),
  }


def time_parts(encoded):
  """{part: CPU milliseconds an image}, the best of several turns."""
  draws = np.random.default_rng(0).random((len(encoded), crop_boxes.NUM_DRAWS))
  sizes = [Image.open(io.BytesIO(one)).size for one in encoded]
  crops = [
    tuple(map(float, crop_boxes.inception_box(np, u, height, width))) for u, (width, height) in zip(draws, sizes)
  ]
  best = {}
  for _, (name, part) in itertools.product(range(_ROUNDS.value), parts(encoded, crops).items()):
    begin = time.process_time()
    for i in range(len(encoded)):
      part(i)
    best[name] = min(best.get(name, np.inf), 1e3 * (time.process_time() - begin) / len(encoded))
  return best


def main(argv):
  del argv
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _CORES.value])
  splits = sources.npy(_IMAGES.value.removeprefix('npy:'))
  folders = prepare(epath.Path(_SCRATCH.value), splits, _COUNT.value)
  streams = {
    f'ours, {file_format}, {workers}, {decoder}': ours(folder, workers, decoder)
    for decoder in ('tensorflow', 'pil')
    for file_format, folder in folders.items()
    for workers in ('threads', 'processes')
  }
  streams |= {
    'tf.data, tfrecord': tf_data(folders['tfrecord'], False),
    'tf.data, tfrecord, antialias=True': tf_data(folders['tfrecord'], True),
  }
  rounds = {name: [] for name in streams}
  for turn in range(_ROUNDS.value):
    for name, stream in streams.items():
      rounds[name].append(timed(stream))
      print(f'{turn + 1}/{_ROUNDS.value} {name}: {rounds[name][-1][0]:.0f} images/s', file=sys.stderr, flush=True)
  for stream in streams.values():
    stream.close()
  streams.clear()  # and with them worker processes

  source = tfds_source.read('photos', str(folders['tfrecord'])).train
  encoded = source.read(np.arange(100))[0]
  best = {name: np.max(figures, axis=0) for name, figures in rounds.items()}
  base = best['tf.data, tfrecord']
  lines = [
    f'{_COUNT.value} JPEGs, {np.mean(list(map(len, encoded))) / 1e3:.0f} kB on average; {_CORES.value} cores of '
    f'{platform.processor() or platform.machine()}; best of {_ROUNDS.value} turns',
    '',
    '| pipeline | images/s | images/CPU-s | of tf.data, by CPU |',
    '|---|---|---|---|',
  ]
  lines += [f'| {name} | {wall:.0f} | {cpu:.0f} | {100 * cpu / base[1]:.0f} % |' for name, (wall, cpu) in best.items()]
  costs = time_parts(encoded)
  lines += [
    '',
    '| part, one thread | CPU ms an image |',
    '|---|---|',
    *(f'| {name} | {milliseconds:.2f} |' for name, milliseconds in costs.items()),
  ]
  print('\n'.join(lines))
  if _OUT.value:
    out = epath.Path(_OUT.value)
    out.write_text(
      json.dumps(
        {
          'command': ' '.join(['python', *sys.argv]),
          'commit': provenance.commit(),
          'cores': _CORES.value,
          'python': platform.python_version(),
          'jax': jax.__version__,
          'pillow': Image.__version__,
          'load': os.getloadavg(),
          'mean_bytes': float(np.mean(list(map(len, encoded)))),
          'images_per_second': {name: [wall for wall, _ in figures] for name, figures in rounds.items()},
          'images_per_cpu_second': {name: [cpu for _, cpu in figures] for name, figures in rounds.items()},
          'milliseconds_of_parts': costs,
        },
        indent=2,
      )
    )
    out.with_suffix('.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  app.run(main)
