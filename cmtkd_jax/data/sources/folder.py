"""Images in folders: <class>/*.jpg, in train/ and test/ or in one place; or Tiny ImageNet as shipped."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from cmtkd_jax.data import broken, sampling
from cmtkd_jax.data.sources import folder_listing
from cmtkd_jax.data.sources.base import Source, Splits
from cmtkd_jax.data.transforms import image_file
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file

_TESTS = ('test', 'val', 'valid', 'validation')


class FolderSource(Source):
  """Image files with a label each."""

  def __init__(self, files: list[epath.Path], labels: list[int], channels: int):
    # Strings: a million paths would weigh on every worker process.
    self._files, self.labels, self._channels = list(map(str, files)), np.asarray(labels, np.int32), channels

  def __len__(self):
    return len(self._files)

  def read(self, records):
    return _Files([self._files[record] for record in records]), self.labels[records]

  def describe(self, record):
    file = self._files[record]
    return f'file {file if file.isprintable() else repr(file)}'

  def shape_of(self, record):
    """Returns (h, w, C) of one record, from the header of its file."""
    with broken.naming_record(self, record):
      local_file.check(self._files[record])
      with epath.Path(self._files[record]).open('rb') as file:
        return *image_file.size(image_file.open_image(file)), self._channels

  @functools.cached_property
  def first_shape(self):
    return broken.first_shape(self.shape_of, len(self))

  @functools.cached_property
  def shape(self):
    return broken.same_shape(self.shape_of, len(self))


class _Files(Sequence):
  """The contents of files, each read when it is taken: one that is missing does not hide the others."""

  def __init__(self, files: list[str]):
    self._files = files

  def __len__(self):
    return len(self._files)

  def __getitem__(self, row):
    return local_file.read_bytes(self._files[row])


def read(path: str, channels: int, test_fraction: float) -> Splits:
  """Finds the images of a folder data set; class names are folder names in Unicode NFC, sorted.

  The classes are in train/, and in test/, val/, valid/ or validation/, of which the first that exists is used (in Tiny
  ImageNet val/, since its test images have no labels). Where there is none of these, `test_fraction` of every class of
  train/ is held out, always the same images. Without train/, too, the folder holds the classes itself.

  Images are the files with a suffix of `image_file.suffixes()`. Names that begin with a dot count neither as classes
  nor as images. What else is left out is in the notes.

  Args:
    path: the folder.
    channels: 1 (read as gray) or 3 (read as RGB).
    test_fraction: of the images of a class, rounded, at least one.

  Raises:
    UserError: no images, something else in place of an image file, fewer than two classes, or the classes of the splits
      differ.
  """
  name = f"config.data.name='folder:{path}'"
  root = epath.Path(path).expanduser()
  if channels not in (1, 3):
    raise UserError(
      f'{name}: image files are read with 1 or 3 channels, but config.data.mean has {channels} numbers; give 1 or 3'
    )
  if not root.is_dir():
    raise UserError(f'{name}: there is no folder {root}; name one that holds a folder of images for each class')
  tests = [root / d for d in _TESTS if (root / d).is_dir()]
  place = root / 'train' if tests or (root / 'train').is_dir() else root
  if not place.is_dir():
    raise UserError(f'{name}: there is {tests[0]}, but no folder {place}; put images to train on into {place}/<class>/')
  finder = folder_listing.Finder(name)
  train = finder.by_class(place)
  classes = sorted(train)
  if len(classes) < 2:
    raise UserError(f'{name}: {place} holds one class, {classes[0]!r}; give two or more, a folder of images each')
  if tests:
    test, unread = _test_images(finder, name, tests, place, train)
    held_out, digest = '', ''
  else:
    unread, (train, test) = [], _hold_out(name, place, train, test_fraction)
    # "about", since at least one image is held out.
    held_out = f'about {100 * test_fraction:.4g} % of the images of every class, held out of training'
    digest = _digest(root, test)
  if place != root:
    known = {place.name, *(folder.name for folder in tests)}
    others = (folder for folder in root.iterdir() if folder.name not in known and not folder.name.startswith('.'))
    unread += sorted(folder for folder in others if folder.is_dir())
  notes = (*finder.notes(), *(f'{folder.name}/ is not used' for folder in unread))

  def source(files_of):
    pairs = [(file, label) for label, c in enumerate(classes) for file in files_of[c]]
    return FolderSource([file for file, _ in pairs], [label for _, label in pairs], channels)

  return Splits(source(train), source(test), tuple(classes), notes, held_out, digest)


def _digest(root, files_of):
  """A digest of the names of all files in `files_of`, `{class: files}` below `root`."""
  names = sorted(folder_listing.nfc(str(file.relative_to(root))) for files in files_of.values() for file in files)
  return hashlib.sha256('\n'.join(names).encode(errors='surrogateescape')).hexdigest()[:16]


def _test_images(finder, name, folders, place, train):
  """({class: files} of the first of `folders`, or of Tiny ImageNet's val/; the folders that are not used)."""
  tiny = next((folder for folder in folders if (folder / folder_listing.TINY_LABELS).exists()), None)
  if tiny is not None:
    tested = tiny / folder_listing.TINY_LABELS
    if kind := local_file.not_a_file(tested):
      raise UserError(f'{name}: {tested} is {kind}, not a file; remove it')
    test = finder.tiny_val(tiny)
  else:
    tested = folders[0]
    test = finder.by_class(tested)
  if unknown := sorted(set(test) - set(train)):
    raise UserError(
      f'{name}: class {unknown[0]!r} of {tested} has no images in {place}; both must have the same classes'
    )
  if missing := sorted(set(train) - set(test)):
    raise UserError(
      f'{name}: class {missing[0]!r} of {place} has no images in {tested}; both must have the same classes'
    )
  return test, [folder for folder in folders if folder != (tiny or tested)]


def _hold_out(name, place, files_of, fraction):
  """({class: files} to train on, those to test on)."""
  train, test = {}, {}
  for c, files in files_of.items():
    if len(files) < 2:
      raise UserError(f'{name}: class {c!r} of {place} has one image; give two or more, to train and to test on')
    kept, held = sampling.split_minival(len(files), max(fraction, 1 / len(files)))
    train[c], test[c] = [files[i] for i in kept], [files[i] for i in held]
  return train, test
