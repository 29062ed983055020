"""What lies in the folders of a data set: class folders, image files, and what is left out."""

import collections
import contextlib
import os
import unicodedata
from collections.abc import Iterator

from etils import epath

from cmtkd_jax.data.sources.base import class_names
from cmtkd_jax.data.transforms import image_file
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file

TINY_LABELS = 'val_annotations.txt'


class Finder:
  """Finds the image files of the data set called `name`, and remembers what it left out."""

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
    for line in local_file.read_bytes(folder / TINY_LABELS).decode(errors='replace').splitlines():
      file, _, rest = line.partition('\t')
      if not rest:
        raise UserError(f'{self._name}: {folder / TINY_LABELS} has the line {line!r}; write "FILE<TAB>CLASS"')
      files_of.setdefault(nfc(rest.split('\t')[0]), []).append(folder / 'images' / file)
    listed = collections.Counter(path.name for files in files_of.values() for path in files)
    if twice := [file for file, count in listed.items() if count > 1]:
      raise UserError(f'{self._name}: {folder / TINY_LABELS} lists {twice[0]!r} more than once; keep one line of it')
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
      fix = 'fill or remove it'
      if any(is_folder for _, is_folder in listed):  # such as Train/ and Test/, or one folder above all classes
        fix = 'images lie in <class>/, in train/<class>/ and test/<class>/, or in one of these with a folder images/'
      raise UserError(
        f'{self._name}: folder {place} holds no image file, such as .jpg or .png, '
        f'{"but " + ", ".join(kinds) if kinds else "nor anything else"}; {fix}'
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
      entries = sorted(_entries(folder), key=lambda entry: (nfc(entry[0]), entry))
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


def nfc(name):
  """Returns the text in the Unicode form in which names are compared."""
  return unicodedata.normalize('NFC', name)


def _count(number, noun, rest):
  return f'{number} {noun}{"s" * (number != 1)} {rest}'.rstrip()
