"""Images in folders: train/<class>/*.jpg, likewise test/ or val/; or Tiny ImageNet as shipped."""

import collections
import contextlib
import functools
import os
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from cmtkd_jax.data.loading import broken
from cmtkd_jax.data.sources.base import Source, Splits, class_names
from cmtkd_jax.data.transforms import image_file
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file

_TINY_LABELS = 'val_annotations.txt'


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

  def _shape_of(self, record):
    with broken.naming_record(self, record):
      local_file.check(self._files[record])
      with epath.Path(self._files[record]).open('rb') as file:
        return *image_file.size(image_file.open_image(file)), self._channels

  @functools.cached_property
  def first_shape(self):
    return broken.first_shape(self._shape_of, len(self))

  @functools.cached_property
  def shape(self):
    return broken.same_shape(self._shape_of, len(self))


class _Files(Sequence):
  """The contents of files, each read when it is taken: one that is missing does not hide the others."""

  def __init__(self, files: list[str]):
    self._files = files

  def __len__(self):
    return len(self._files)

  def __getitem__(self, row):
    return local_file.read_bytes(self._files[row])


def read(path: str, channels: int) -> Splits:
  """Finds the images of a folder data set; class names are folder names in Unicode NFC, sorted.

  Images are the files with a suffix of `image_file.suffixes()`. Names that begin with a dot count neither as classes
  nor as images. What else is left out is in the notes.

  Where test/ and val/ both exist, test/ is used, except in Tiny ImageNet, whose test images have no labels.

  Args:
    path: the folder that holds train/.
    channels: 1 (read as gray) or 3 (read as RGB).

  Raises:
    UserError: no images, something else in place of an image file, or the classes of the splits differ.
  """
  name = f"config.data.name='folder:{path}'"
  root = epath.Path(path).expanduser()
  if channels not in (1, 3):
    raise UserError(
      f'{name}: image files are read with 1 or 3 channels, but config.data.mean has {channels} numbers; give 1 or 3'
    )
  if not (root / 'train').is_dir():
    raise UserError(
      f'{name}: there is no folder {root / "train"}; '
      'put the images under train/<class>/ and test/<class>/ (or val/<class>/)'
    )
  finder = _Finder(name)
  train = finder.by_class(root / 'train')
  folders = [root / d for d in ('test', 'val') if (root / d).is_dir()]
  if (root / 'val' / _TINY_LABELS).exists():
    if kind := local_file.not_a_file(root / 'val' / _TINY_LABELS):
      raise UserError(f'{name}: {root / "val" / _TINY_LABELS} is {kind}, not a file; remove it')
    test, tested = finder.tiny_val(root / 'val'), root / 'val' / _TINY_LABELS
    unread = [folder for folder in folders if folder.name == 'test']
  else:
    if not folders:
      raise UserError(
        f'{name}: there is neither {root / "test"} nor {root / "val"}; one must hold the images to test on'
      )
    test, tested, unread = finder.by_class(folders[0]), folders[0], folders[1:]
  classes = sorted(train)
  if unknown := sorted(set(test) - set(train)):
    raise UserError(
      f'{name}: class {unknown[0]!r} of {tested} has no images in {root / "train"}; both must have the same classes'
    )
  if missing := sorted(set(train) - set(test)):
    raise UserError(
      f'{name}: class {missing[0]!r} of {root / "train"} has no images in {tested}; both must have the same classes'
    )

  def source(files_of):
    pairs = [(file, label) for label, c in enumerate(classes) for file in files_of[c]]
    return FolderSource([file for file, _ in pairs], [label for _, label in pairs], channels)

  notes = (*finder.notes(), *(f'{folder.name}/ is not used' for folder in unread))
  return Splits(source(train), source(test), tuple(classes), notes)


class _Finder:
  """Finds image files, and remembers what it left out."""

  def __init__(self, name: str):
    self._name = name
    self._suffixes = collections.Counter()  # of files that are not read as images
    self._others = collections.Counter()  # what else: number by (noun, the rest of the description)

  def notes(self) -> tuple[str, ...]:
    """Returns what was left out, as one note or none."""
    parts = []
    if count := self._suffixes.total():
      kinds = [suffix or 'no suffix' for suffix, _ in self._suffixes.most_common(5)]
      kinds += ['...'] * (len(self._suffixes) > 5)
      parts.append(_count(count, 'file', f'not read as images ({", ".join(kinds)})'))
    parts += [_count(number, *what) for what, number in self._others.items()]
    return (f'left out {", ".join(parts)}',) if parts else ()

  def by_class(self, folder: epath.Path) -> dict[str, list[epath.Path]]:
    """Returns {class: sorted image files}, from <class>/* or <class>/images/*."""
    listed = self._list(folder)
    folders = [name for name, is_folder in listed if is_folder]
    files_of = {
      c: self._images(folder / name) for c, name in zip(class_names(folders, f'{self._name}: {folder}'), folders)
    }
    for name, is_folder in listed:
      if not is_folder and self._is_image(folder / name):
        self._others['image', 'outside class folders'] += 1
    if not files_of:
      raise UserError(f'{self._name}: folder {folder} holds no class folders; put the images under {folder}/<class>/')
    return files_of

  def tiny_val(self, folder: epath.Path) -> dict[str, list[epath.Path]]:
    """Returns {class: image files} from lines "file<TAB>class<TAB>..." about folder/images/."""
    for name, is_folder in self._list(folder / 'images'):
      if not is_folder:
        self._is_image(folder / 'images' / name)
    files_of = {}
    for line in local_file.read_bytes(folder / _TINY_LABELS).decode(errors='replace').splitlines():
      file, _, rest = line.partition('\t')
      if not rest:
        raise UserError(f'{self._name}: {folder / _TINY_LABELS} has the line {line!r}; write "FILE<TAB>CLASS"')
      files_of.setdefault(_nfc(rest.split('\t')[0]), []).append(folder / 'images' / file)
    return files_of

  def _images(self, class_dir):
    """The image files of a class folder, or of its folder images/."""
    listed = self._list(class_dir)
    place, beside = class_dir, []
    if ('images', True) in listed:
      beside = [entry for entry in listed if entry != ('images', True)]
      place, listed = class_dir / 'images', self._list(class_dir / 'images')
    files = []
    for name, is_folder in listed:
      if is_folder:
        self._refuse_folder(place / name)
        self._others['folder', 'inside class folders'] += 1
      elif self._is_image(place / name):
        files.append(place / name)
    for name, is_folder in beside:
      if is_folder:
        self._others['folder', 'inside class folders'] += 1
      elif self._is_image(class_dir / name):
        self._others['image', 'next to a folder images/'] += 1
    if not files:
      kinds = sorted({os.path.splitext(name)[1].lower() or name for name, _ in listed})[:5]
      raise UserError(
        f'{self._name}: folder {place} holds no image file, such as .jpg or .png, '
        f'{"but " + ", ".join(kinds) if kinds else "nor anything else"}; fill or remove it'
      )
    return files

  def _is_image(self, path):
    suffix = os.path.splitext(path.name)[1].lower()
    if suffix in image_file.suffixes():
      return True
    self._suffixes[suffix] += 1
    return False

  def _refuse_folder(self, path):
    if os.path.splitext(path.name)[1].lower() in image_file.suffixes():
      raise UserError(f'{self._name}: {path} is a folder, but is called like an image file; rename or remove it')

  def _list(self, folder) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of everything in a folder that is not hidden, sorted by NFC."""
    try:
      entries = sorted(_entries(folder), key=lambda entry: (_nfc(entry[0]), entry))
    except OSError as e:
      raise UserError(f'{self._name}: folder {folder} cannot be read ({e.strerror or e}); make it readable') from e
    listed = []
    for name, kind in entries:
      if name.startswith('.'):
        self._others['hidden name', ''] += 1
      elif kind != 'special':
        listed.append((name, kind == 'folder'))
      elif os.path.splitext(name)[1].lower() in image_file.suffixes():
        raise UserError(f'{self._name}: {folder / name} is a pipe, socket or device, not an image file; remove it')
      else:
        self._others['special file', ''] += 1
    return listed


def _entries(folder: epath.Path) -> Iterator[tuple[str, str]]:
  """(name, 'file', 'folder' or 'special') of everything in a folder."""
  if '://' in os.fspath(folder):  # An object store has no special files, only folders and files.
    for path in folder.iterdir():
      suffix = os.path.splitext(path.name)[1].lower()
      yield path.name, 'file' if suffix in image_file.suffixes() or not path.is_dir() else 'folder'
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      kind = 'file'  # also a link to nothing or to itself, which cannot be read
      with contextlib.suppress(OSError):
        if entry.is_dir():
          kind = 'folder'
        elif not entry.is_file() and os.path.exists(entry):
          kind = 'special'
      yield entry.name, kind


def _nfc(name):
  return unicodedata.normalize('NFC', name)


def _count(number, noun, rest):
  return f'{number} {noun}{"s" * (number != 1)} {rest}'.rstrip()
