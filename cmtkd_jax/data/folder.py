"""Images in folders: train/<class>/*.jpg, likewise test/ or val/; or Tiny ImageNet as shipped."""

import functools
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from cmtkd_jax.data import decode
from cmtkd_jax.data.sources import Source, Splits
from cmtkd_jax.errors import UserError

_SUFFIXES = ('.jpg', '.jpeg', '.png')
_TINY_LABELS = 'val_annotations.txt'


class FolderSource(Source):
  """Image files with a label each."""

  def __init__(self, files: list[epath.Path], labels: list[int], channels: int):
    # Strings: a million paths would weigh on every worker process.
    self._files, self._labels, self._channels = list(map(str, files)), np.asarray(labels, np.int32), channels

  def __len__(self):
    return len(self._files)

  def read(self, records):
    return _Files([self._files[record] for record in records]), self._labels[records]

  def describe(self, record):
    return f'file {self._files[record]}'

  def _shape_of(self, record):
    with decode.blame(self, record), epath.Path(self._files[record]).open('rb') as file, Image.open(file) as image:
      return image.height, image.width, self._channels

  @functools.cached_property
  def first_shape(self):
    return decode.first_shape(self._shape_of, len(self))

  @functools.cached_property
  def shape(self):
    same = all(self._shape_of(r) == self.first_shape for r in range(1, len(self)))
    return self.first_shape if same else None


class _Files(Sequence):
  """The contents of files, each read when it is taken: one that is missing does not hide the others."""

  def __init__(self, files: list[str]):
    self._files = files

  def __len__(self):
    return len(self._files)

  def __getitem__(self, row):
    return epath.Path(self._files[row]).read_bytes()


def read(path: str, channels: int) -> Splits:
  """Finds the images of a folder data set; class names are folder names, sorted.

  Where test/ and val/ both exist, test/ is used, except in Tiny ImageNet, whose test images have no labels.

  Args:
    path: the folder that holds train/.
    channels: 1 (read as grey) or 3 (read as RGB).

  Raises:
    UserError: no images, or the classes of the splits differ.
  """
  name = f"config.data.name='folder:{path}'"
  root = epath.Path(path).expanduser()
  if channels not in (1, 3):
    raise UserError(f'{name}: image files are read with 1 or 3 channels, but config.data.mean has {channels} '
                    'numbers; give 1 or 3')
  if not (root / 'train').is_dir():
    raise UserError(f'{name}: there is no folder {root / "train"}; '
                    'put the images under train/<class>/ and test/<class>/ (or val/<class>/)')
  train = _by_class(root / 'train', name)
  if (root / 'val' / _TINY_LABELS).is_file():
    test = _tiny_val(root / 'val', name)
  else:
    folders = [root / d for d in ('test', 'val') if (root / d).is_dir()]
    if not folders:
      raise UserError(f'{name}: there is neither {root / "test"} nor {root / "val"}; '
                      'one must hold the images to test on')
    test = _by_class(folders[0], name)
  classes = sorted(train)
  if unknown := sorted(set(test) - set(train)):
    raise UserError(f'{name}: class {unknown[0]!r} has images to test on, but none in {root / "train"}; '
                    'both must have the same class folders')
  if missing := sorted(set(train) - set(test)):
    raise UserError(f'{name}: class {missing[0]!r} of {root / "train"} has no images to test on; '
                    'both must have the same class folders')

  def source(files_of):
    pairs = [(file, label) for label, c in enumerate(classes) for file in files_of[c]]
    return FolderSource([file for file, _ in pairs], [label for _, label in pairs], channels)

  return Splits(source(train), source(test), tuple(classes))


def _by_class(folder, name):
  """{class: sorted image files}, from <class>/* or <class>/images/*."""
  files_of = {}
  for class_dir in sorted(d for d in folder.iterdir() if d.is_dir()):
    inner = class_dir / 'images'
    place = inner if inner.is_dir() else class_dir
    files = sorted(f for f in place.iterdir() if f.suffix.lower() in _SUFFIXES)
    if not files:
      raise UserError(f'{name}: folder {class_dir} holds no {", ".join(_SUFFIXES)} file; fill or remove it')
    files_of[class_dir.name] = files
  if not files_of:
    raise UserError(f'{name}: folder {folder} holds no class folders; put the images under {folder}/<class>/')
  return files_of


def _tiny_val(folder, name):
  """{class: image files} from lines "file<TAB>class<TAB>..." about folder/images/."""
  files_of = {}
  for line in (folder / _TINY_LABELS).read_bytes().decode(errors='replace').splitlines():
    file, _, rest = line.partition('\t')
    if not rest:
      raise UserError(f'{name}: {folder / _TINY_LABELS} has the line {line!r}; write "FILE<TAB>CLASS"')
    files_of.setdefault(rest.split('\t')[0], []).append(folder / 'images' / file)
  return files_of
