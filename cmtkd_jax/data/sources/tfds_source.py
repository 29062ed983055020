"""Prepared TensorFlow Datasets, in array_record or TFRecord format; both are read without TensorFlow."""

import contextlib
import functools
import logging
import os
import pathlib
import re
import warnings
from typing import Protocol

import numpy as np
from etils import epath

try:
  import resource
except ImportError:  # Windows
  resource = None  # type: ignore[assignment]

from cmtkd_jax.data import broken
from cmtkd_jax.data.sources import names, tf_example, tfrecord
from cmtkd_jax.data.sources.base import Source, Splits, class_names
from cmtkd_jax.data.transforms import image_file
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runtime.local_file import not_a_file

_METADATA = ('.json', '.txt')  # dataset_info.json, features.json, names of labels


class Records(Protocol):
  """Serialized examples by number, in the order of the files; thread-safe and picklable."""

  def __len__(self) -> int: ...

  def read(self, records: np.ndarray) -> list[bytes]: ...


class _ArrayRecords:
  """`Records` of array_record files."""

  def __init__(self, builder, split, raw):
    self._files = builder.as_data_source(split, deserialize_method=raw, file_format='array_record').data_source
    _allow_open_files(builder.info.splits[split].num_shards)
    self._name = f'{builder.info.full_name} {split}'

  def __len__(self):
    return len(self._files)

  def read(self, records):
    try:
      return [self._files[int(record)] for record in records]
    except RuntimeError as e:  # What array_record raises for a file that is missing or cut short.
      raise UserError(f'config.data.name: {self._name} cannot be read ({one_line(e, 200)}); prepare it again') from e


class TfdsSource(Source):
  """One split: `records`, of which `keys` are (image, label), and the images' declared shape."""

  def __init__(self, records: Records, name: str, keys: tuple[str, ...], shape: tuple[int | None, ...]):
    self.records, self._name, self._keys, self._declared = records, name, keys, tuple(shape)

  def __len__(self):
    return len(self.records)

  def read(self, records):
    images, labels = [], np.empty(len(records), np.int32)
    for row, data in enumerate(self.records.read(records)):
      try:
        example = tf_example.parse(data, self._keys)
        (image,), (labels[row],) = (example[key] for key in self._keys)
      except (ValueError, KeyError, TypeError, OverflowError) as e:
        raise UserError(
          f'config.data.name: {self.describe(records[row])} has no {self._keys[0]} with one '
          f'{self._keys[1]} ({one_line(e, 200)}); prepare the data set again'
        ) from e
      images.append(image)
    return images, labels

  def describe(self, record):
    return f'record {record} of {self._name}'

  @functools.cached_property
  def first_shape(self):
    return broken.first_shape(self._shape_of, len(self))

  def _shape_of(self, record):
    (data,), _ = self.read(np.array([record]))
    with broken.naming_record(self, record):
      return *image_file.size(image_file.open_image(data)), self._declared[-1]

  @property
  def shape(self):
    return None if None in self._declared else self._declared


def read(name: str, data_dir: str) -> Splits:
  """Opens a prepared image classification set; its test split is 'test' or, lacking one with labels, 'validation'.

  Args:
    name: builder name, with config and version where wanted, such as 'cifar100' or 'imagenet2012:5.1.0'.
    data_dir: where data sets were prepared; '' for the default of tensorflow_datasets.

  Raises:
    UserError: tensorflow_datasets is not installed, the name is unknown, the set is not prepared (or not in a
      format that can be read), or it is not a set of 8-bit images with one label each.
  """
  field = f'config.data.name={name!r}'
  with _quiet():
    try:
      import tensorflow_datasets as tfds
    except ImportError as e:
      raise names.unknown(name) or UserError(
        f'{field}: tensorflow_datasets is not installed (pip install tensorflow-datasets array_record); {names.ALLOWED}'
      ) from e
    with _damage(field):
      builder = _builder(tfds, name, data_dir, field)
      info = builder.info
      image, label = _features(tfds, info, field)
      if 'train' not in info.splits or not {'test', 'validation'} & set(info.splits):
        raise UserError(
          f"{field} has the splits {', '.join(info.splits)}; it needs 'train', and 'test' or 'validation'"
        )
      # The labels of ImageNet's test split are not public; tfds sets them to -1.
      has_labels = 'test' in info.splits and not info.name.startswith('imagenet2012')
      splits = ('train', 'test' if has_labels else 'validation')
      train, test = (
        TfdsSource(_records(tfds, builder, s, field), f'{info.full_name} {s}', _keys(info), image.shape) for s in splits
      )
      classes = class_names(label.names, field)
  unchecked = any(isinstance(s.records, tfrecord.Files) for s in (train, test)) and not tfrecord.checks_data()
  notes = ('checksums of the images are not checked (pip install google-crc32c)',) if unchecked else ()
  return Splits(train, test, classes, notes)


@contextlib.contextmanager
def _damage(field):
  """Makes `UserError` of whatever tensorflow_datasets and protobuf raise for damaged metadata."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    raise UserError(
      f'{field} cannot be opened ({type(e).__name__}: {one_line(e, 200)}); prepare the data set again'
    ) from e


@contextlib.contextmanager
def _quiet():
  """Silences what tensorflow_datasets and what it imports print and warn; errors still pass."""
  loggers = [logging.getLogger(n) for n in ('absl', 'tensorflow')]
  levels = [logger.level for logger in loggers]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for logger in loggers:
      logger.setLevel(logging.ERROR)
    try:
      yield
    finally:
      for logger, level in zip(loggers, levels):
        logger.setLevel(level)


def _builder(tfds, name, data_dir, field):
  data_dir = str(epath.Path(data_dir).expanduser()) if data_dir else ''
  plain = name.split(':')[0].split('/')[0]
  _check_metadata(data_dir or tfds.core.constants.DATA_DIR, plain, field)
  known = lambda: tfds.list_builders(with_community_datasets=False)
  try:
    # Straight from the files: the builder's own code would need TensorFlow.
    where = {'data_dir': data_dir} if data_dir else {}
    return tfds.core.read_only_builder.builder_from_files(name, **where)
  except tfds.core.DatasetNotFoundError:
    pass
  except ValueError as e:  # A name that does not parse, or a set found in several places.
    raise names.unknown(name, known()) or UserError(
      f'{field} cannot be opened ({one_line(e, 200)}); prepare the data set again, or choose another one: '
      f'{names.ALLOWED}'
    ) from e
  if plain not in known():
    raise names.unknown(name, known()) or UserError(f'{field} is unknown; {names.ALLOWED}')
  looked_in = data_dir or str(epath.Path(tfds.core.constants.DATA_DIR).expanduser())
  for above in list(epath.Path(looked_in).parents)[:2]:
    if place := names.prepared(os.fspath(above / plain)):
      raise UserError(f'{field} is in {place[0]}, not in {looked_in}; set config.data.dir={place[0]!r}')
  raise UserError(
    f'{field} is not prepared in {looked_in} (config.data.dir={data_dir!r}); {_how_to_prepare(name, looked_in)}'
  )


def _check_metadata(data_dir, plain, field):
  """Raises `UserError` where a pipe, say, is in place of a file that tensorflow_datasets would open."""
  folder = epath.Path(data_dir).expanduser() / plain
  if '://' not in os.fspath(folder) and plain and not names.is_path(plain):
    for path in sorted(pathlib.Path(folder).rglob('*')):
      if path.suffix in _METADATA and (kind := not_a_file(path)):
        raise UserError(f'{field}: {path} is {kind}, not a file; prepare the data set again')


def _how_to_prepare(name, data_dir, new=False):
  place = ' in another folder, and set config.data.dir to it' if new else ''
  name = re.sub(r'/(\d+\.\d+\.\d+)$', r':\1', name)  # the builder takes NAME:VERSION
  archives = f'put its archives into {data_dir}/downloads/manual and '
  return (
    f'{archives if name.startswith("imagenet2012") else ""}prepare it{place}: '
    f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={data_dir!r}, '
    "file_format='array_record').download_and_prepare()\""
  )


def _keys(info) -> tuple[str, ...]:
  # A set stored by hand has no supervised keys.
  return info.supervised_keys or ('image', 'label')


def _features(tfds, info, field):
  """Returns the (image, label) features."""
  keys = _keys(info)
  if len(keys) == 2 and set(keys) <= set(info.features):
    image, label = (info.features[k] for k in keys)
    is_classification = isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)
    if is_classification and image.shape[-1] in (1, 3) and image.np_dtype == np.uint8:
      return image, label
  raise UserError(
    f'{field} is not a set of 8-bit images (1 or 3 channels) with one class label each; '
    'choose an image classification set'
  )


def _records(tfds, builder, split, field) -> Records:
  formats = {f.value for f in builder.info.available_file_formats()}
  if 'array_record' in formats:
    for path in builder.info.splits[split].filepaths:
      if kind := not_a_file(path):
        raise UserError(f'{field}: {path} is {kind}, not a file; prepare the data set again')
    try:
      return _ArrayRecords(builder, split, tfds.decode.DeserializeMethod.RAW_BYTES)
    except ImportError as e:
      raise UserError(f'{field} needs the package array_record ({one_line(e, 200)}); pip install array_record') from e
  if builder.info.file_format.value != 'tfrecord':
    raise UserError(
      f'{field}: {builder.data_dir} holds {builder.info.file_format.value} files; '
      f'{_how_to_prepare(builder.name, "NEW_DIR", new=True)}'
    )
  files = builder.info.splits[split]
  return tfrecord.Files(files.filepaths, files.shard_lengths)


def _allow_open_files(count):
  """Raises the process's own limit: array_record keeps every file open, and ImageNet has more than the usual 1024."""
  if resource:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
      resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
