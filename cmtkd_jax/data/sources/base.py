"""Where records come from: `Source`, and the sources that are made here (digits, generated).

A reader of a data set returns `Splits`. Sources are read by several threads at once.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cmtkd_jax.errors import UserError

LONGEST_NAME = 1000  # characters of the name of a class
_UNPRINTABLE = ('Cc', 'Cs', 'Zl', 'Zp')  # control characters, bytes that are not UTF-8, ends of lines
_BIDI_CONTROLS = frozenset('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')  # which reorder what is shown


class Source:
  """Records by number: images (uint8 arrays, or the bytes of image files), and labels. Picklable.

  Attributes:
    labels: the labels of all records, int32[N]; None where they are known only when records are read.
  """

  labels: np.ndarray | None = None

  def __len__(self) -> int:
    raise NotImplementedError

  def read(self, records: np.ndarray) -> tuple[Any, np.ndarray]:
    """Returns (images, labels): a sequence of images, and int32[len(records)]. Thread-safe.

    Taking one of the images may raise `OSError`, which concerns this image alone.
    """
    raise NotImplementedError

  def describe(self, record: int) -> str:
    """Names one record for an error line."""
    raise NotImplementedError

  @property
  def first_shape(self) -> tuple[int, int, int]:
    """(h, w, C) of record 0, or of the first that can be opened."""
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int, int, int] | None:
    """(h, w, C) of all records, None where they differ; may have to look at every file."""
    raise NotImplementedError


def check_labels(labels: np.ndarray, source: Source, records: np.ndarray):
  """Raises `UserError` for a label below zero, by which data sets mark records without one."""
  if (labels < 0).any():
    record = int(records[np.argmax(labels < 0)])
    raise UserError(
      f'config.data.name: {source.describe(record)} has no label (label {labels.min()}); '
      'choose a data set whose test split is labeled'
    )


def unprintable(text: str) -> str:
  """Returns the first character that cannot be shown, or that reorders what is shown; '' where there is none."""
  return next((c for c in text if unicodedata.category(c) in _UNPRINTABLE or c in _BIDI_CONTROLS), '')


def class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
  """Returns the names of classes in Unicode NFC: file systems of macOS and Linux write the same name differently.

  Raises:
    UserError: names, after `where`, are empty, too long, cannot be printed, or are not unique; all that could not
      be exported later.
  """
  numbers = {}
  for number, name in enumerate(names):
    if not name.strip():
      raise UserError(f'{where}: class {number} has the name {name!r}, which is empty; give it one')
    if len(name) > LONGEST_NAME:
      raise UserError(
        f'{where}: the name of class {number} has {len(name)} characters, more than {LONGEST_NAME}; shorten it'
      )
    if bad := unprintable(name):
      raise UserError(
        f'{where}: the class name {name!r} has the character {bad!r}, which cannot be printed; rename the class'
      )
    other = numbers.setdefault(unicodedata.normalize('NFC', name), number)
    if other != number and names[other] != name:
      raise UserError(
        f'{where}: the class names {names[other]!a} and {name!a} are the same text in Unicode NFC; rename one of them'
      )
    if other != number:
      raise UserError(f'{where}: classes {other} and {number} are both called {name!r}; rename one of them')
  return tuple(numbers)


class Splits(NamedTuple):
  """A data set as its reader found it.

  Attributes:
    train: records to train on, before a slice of them is held out.
    test: records to test on.
    class_names: names of the classes, in the order of the labels.
    notes: what the user should know before training, such as files that were left out; a few words each.
    held_out: which part of train the test records are, in words; '' where the data set has a test split of its own.
    held_out_digest: a digest of their names, by which they are known again; '' where there are no names.
  """

  train: Source
  test: Source
  class_names: tuple[str, ...]
  notes: tuple[str, ...] = ()
  held_out: str = ''
  held_out_digest: str = ''


class ArraySource(Source):
  """Images uint8[N, h, w, C] and labels, integers [N] from 0, in memory or memory-mapped.

  Raises:
    ValueError: an array has another shape or dtype.
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
    if images.ndim != 4 or images.dtype != np.uint8:
      raise ValueError(f'{name}: images are {images.dtype}{list(images.shape)}, not uint8 [N, H, W, C]')
    if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
      raise ValueError(f'{name}: labels are {labels.dtype}{list(labels.shape)}, not integers [{len(images)}]')
    self.images, self.labels, self._name = images, labels.astype(np.int32), name

  def __len__(self):
    return len(self.images)

  def __getstate__(self):
    # A memory-mapped file is pickled by its name: worker processes map it, too.
    mapped = isinstance(self.images, np.memmap) and self.images.filename
    return self.__dict__ | ({'images': mapped} if mapped else {})

  def __setstate__(self, state):
    self.__dict__.update(state)
    if not isinstance(self.images, np.ndarray):
      self.images = np.load(self.images, mmap_mode='r', allow_pickle=False)

  def read(self, records):
    return self.images[records], self.labels[records]

  def describe(self, record):
    return f'record {record} of {self._name}'

  @property
  def first_shape(self):
    return self.images.shape[1:]

  shape = first_shape


def digits() -> Splits:
  """The 1797 8x8 digits that come with scikit-learn; every fifth of each class is test. No download."""
  try:
    from sklearn.datasets import load_digits
  except ImportError as e:
    raise UserError(
      "config.data.name='digits' needs scikit-learn, which is not installed; "
      'pip install scikit-learn, or choose another data set'
    ) from e
  raw = load_digits()
  images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = raw.target
  test = np.zeros(len(labels), bool)
  for c in range(10):
    test[np.flatnonzero(labels == c)[4::5]] = True
  return Splits(
    ArraySource(images[~test], labels[~test], 'digits train'),
    ArraySource(images[test], labels[test], 'digits test'),
    tuple(map(str, range(10))),
  )


def parse_generated(spec: str) -> list[int]:
  """Returns [H, W, C, classes, N] of 'HxWxC:CLASSES:N'; raises `UserError` where it does not parse, or has a zero."""
  match = re.fullmatch(r'(\d+)x(\d+)x(\d+):(\d+):(\d+)', spec)
  if not match or not all(numbers := [int(g) for g in match.groups()]):
    raise UserError(
      f"config.data.name='generated:{spec}' does not parse; write 'generated:HxWxC:CLASSES:N' "
      "with positive whole numbers, as in 'generated:32x32x3:10:1000'"
    )
  return numbers


def generated(spec: str) -> Splits:
  """Random images, N to train on and N // 5 (at least 1) to test on, the same in every run.

  Args:
    spec: 'HxWxC:CLASSES:N'. An image is half a coarse pattern of its class, half noise.

  Raises:
    UserError: spec does not parse, or has a zero.
  """
  h, w, c, classes, n = parse_generated(spec)
  if h * w * c * max(classes, n) > 2**32:
    raise UserError(f"config.data.name='generated:{spec}' would take more than 4 GiB; lower its numbers")
  rng = np.random.default_rng(0)
  patterns = rng.integers(0, 256, (classes, -(-h // 4), -(-w // 4), c), dtype=np.uint8)
  patterns = patterns.repeat(4, axis=1).repeat(4, axis=2)[:, :h, :w]

  def split(size, name):
    labels = rng.permutation(np.arange(size) % classes)
    noise = rng.integers(0, 256, (size, h, w, c), dtype=np.uint8)
    return ArraySource(noise // 2 + patterns[labels] // 2, labels, f'generated {name}')

  return Splits(split(n, 'train'), split(max(1, n // 5), 'test'), tuple(map(str, range(classes))))
