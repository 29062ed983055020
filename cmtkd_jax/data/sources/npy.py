"""NumPy files: DIR/{train,test}_{images,labels}.npy; one that does not fit is refused, with what makes it fit."""

import math
import os
import sys

import numpy as np
from etils import epath

from cmtkd_jax.data.sources.base import ArraySource, Splits, class_names
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runtime.local_file import cannot_be_read, not_a_file

_MAGIC = b'\x93NUMPY'
_MOST_CLASSES = 10**6
# What to save in place of Python objects.
_REPLACEMENTS = {
  'images': 'numpy.stack(images), after resizing them to one size',
  'labels': "labels.astype('int32')",
  'names': "names.astype('str')",
}
_SAMPLE = 256  # images or rows that are looked at to tell what an array holds


def read(path: str, channels: int) -> Splits:
  """Reads PATH/{train,test}_{images,labels}.npy and, if there, class_names.npy; images stay memory-mapped.

  Args:
    path: folder with images uint8[N, h, w, C], labels integer[N] and class names str[num_classes].
    channels: the C that is expected, to distinguish channels last from channels first.

  Raises:
    UserError: a file is missing or unreadable, has another dtype or shape, labels are out of range, or names of classes
      are empty or not unique.
  """
  name = f"config.data.name='npy:{path}'"
  folder = epath.Path(path).expanduser()
  names = None
  if (folder / 'class_names.npy').exists():
    names = _load(folder / 'class_names.npy', name)
    if names.ndim != 1 or names.dtype.kind != 'U':
      raise UserError(f'{name}: {folder}/class_names.npy is {_describe(names)}; save a vector of strings')
    code_points = np.frombuffer(names.tobytes(), np.dtype(np.uint32).newbyteorder(names.dtype.byteorder))
    if code_points.max(initial=0) > sys.maxunicode:  # Python would stumble over these later.
      raise UserError(f'{name}: {folder}/class_names.npy is damaged (it has no characters); save it again')
    names = class_names(tuple(map(str, names)), f'{name}: {folder}/class_names.npy')

  sources, num_classes = {}, len(names or ())
  for split in ('train', 'test'):
    images, labels = (_load(folder / f'{split}_{what}.npy', name) for what in ('images', 'labels'))
    _check_images(images, len(labels) if labels.ndim else 0, channels, f'{name}: {split}_images.npy')
    _check_labels(labels, len(images), f'{name}: {split}_labels.npy')
    if labels.min() < 0:
      raise UserError(f'{name}: {split}_labels.npy has the label {labels.min()}; number the classes from 0')
    if not num_classes:  # Training comes first: a class that only the test set has is a mistake.
      num_classes = int(labels.max()) + 1
      if num_classes > _MOST_CLASSES:
        raise UserError(
          f'{name}: {split}_labels.npy has the label {num_classes - 1}, and {_MOST_CLASSES} classes are '
          'the most; number the classes from 0'
        )
    if labels.max() >= num_classes:
      raise UserError(
        f'{name}: {split}_labels.npy has the label {labels.max()}, but there are {num_classes} classes; '
        f'labels must lie in 0..{num_classes - 1}'
      )
    sources[split] = ArraySource(images, labels, f'{folder}/{split}_images.npy')
  return Splits(sources['train'], sources['test'], names or tuple(map(str, range(num_classes))))


def _load(path, name):
  """The array of a file, memory-mapped where it is local."""
  if kind := not_a_file(path):
    raise UserError(f'{name}: {path} is {kind}, not a file; write an array there with numpy.save')
  try:
    with path.open('rb') as file:
      if '://' not in os.fspath(path) and file.read(6) == _MAGIC:
        # Mapped, so that no header makes room for more than the file holds.
        array = np.load(path, allow_pickle=False, mmap_mode='r')
      else:
        file.seek(0)
        array = np.load(file, allow_pickle=False)
  except (FileNotFoundError, NotADirectoryError) as e:
    raise UserError(
      f'{name}: {path} does not exist; the folder must hold train_images.npy, '
      'train_labels.npy, test_images.npy and test_labels.npy'
    ) from e
  except PermissionError as e:
    raise cannot_be_read(f'{name}: {path}', e) from e
  except Exception as e:  # A header is parsed as Python: tokenize and ast add kinds of their own.
    raise UserError(f'{name}: {path} {_fault(path, e)}') from e
  if isinstance(array, np.ndarray):
    return array
  with array:  # an archive, whatever its suffix
    first = next(iter(array.files), 'NAME')
  raise UserError(
    f"{name}: {path} is an .npz archive, not an array; save one of its arrays: numpy.save('{path.name}', "
    f"numpy.load(ARCHIVE)['{first}'])"
  )


def _fault(path, error):
  """Why NumPy does not load a file, in words for those who do not know its format, and what to do."""
  try:
    with path.open('rb') as file:
      if file.read(6) != _MAGIC:
        return 'is not a .npy file; write it with numpy.save'
      file.seek(0)
      version = np.lib.format.read_magic(file)
      read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
      shape, _, dtype = read_header[version](file)
      if dtype.hasobject:
        return f'holds Python objects, not numbers or strings; save {_REPLACEMENTS[path.stem.rpartition("_")[2]]}'
      needed, found = math.prod(shape) * dtype.itemsize, path.stat().length - file.tell()
      if found < needed:
        return f'is cut short: {dtype}{list(shape)} takes {needed} bytes, and it has {found}; copy or write it again'
  except Exception:  # an unreadable header: NumPy's own error is reported
    pass
  return f'cannot be loaded ({one_line(error, 200)}); write it with numpy.save'


def _describe(array):
  return f'{array.dtype}{list(array.shape)}'


def _check_images(images, num_labels, channels, where):
  """Raises `UserError` unless `images` are uint8[N, H, W, C], with what makes them so."""
  if not images.size or not images.ndim:
    raise UserError(f'{where} is {_describe(images)}, no images; save uint8[N, H, W, C], N > 0')
  faults, fixes = zip(*(_pixel_fault(images), _axes_fault(images, num_labels, channels)))
  if faults := list(filter(None, faults)):
    here = '' if None in fixes else f', here {fixes[0].format("images")}{fixes[1]}'
    raise UserError(f'{where} is {_describe(images)}: {", ".join(faults)}; save uint8[N, H, W, C]{here}')


def _pixel_fault(images) -> tuple[str, str | None]:
  """(what is wrong with the pixels, NumPy that fixes it as a format, None if nothing surely does)."""
  if images.dtype == np.uint8:
    return '', '{}'
  if images.dtype == bool:
    return 'booleans', "({} * 255).astype('uint8')"
  if images.dtype.kind not in 'fiu':
    return 'not numbers', None
  sample = images[:: -(-len(images) // _SAMPLE)]
  low, high = float(sample.min()), float(sample.max())
  fault = f'{"floats" if images.dtype.kind == "f" else "integers"} from {low:g} to {high:g}'
  if images.dtype.kind == 'f' and 0 <= low <= high <= 1:
    return fault, "({} * 255).round().astype('uint8')"
  if 0 <= low <= high <= 255:
    return fault, "{}.round().astype('uint8')" if images.dtype.kind == 'f' else "{}.astype('uint8')"
  if images.dtype == np.uint16:
    return fault, "({} / 257).round().astype('uint8')"
  return f'{fault}, not from 0 to 255', None


def _axes_fault(images, num_labels, channels) -> tuple[str, str | None]:
  """(what is wrong with the axes, NumPy that fixes it, None if nothing surely does)."""
  shape = images.shape
  if len(shape) == 4:
    if shape[0] != num_labels == shape[3]:
      return 'the last axis counts the images', '.transpose(3, 0, 1, 2)'
    if shape[3] != channels and (shape[1] == channels or (shape[1] in (1, 3, 4) and shape[3] > 4)):
      return 'it looks like channels first', '.transpose(0, 2, 3, 1)'
    return '', ''
  if len(shape) == 3:
    return 'it has no axis of channels', '[..., None]'
  if len(shape) == 2:
    fault = 'it looks like flattened images'
    for count in (1, 3):
      side = round((shape[1] / count) ** 0.5)
      if count * side * side == shape[1]:
        planes = f' or .reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1) if each color lies apart, as in CIFAR'
        return fault, f'.reshape(-1, {side}, {side}, {count}){planes if count == 3 else ""}'
    return fault, None
  return f'it has {len(shape)} axes', None


def _check_labels(labels, num_images, where):
  """Raises `UserError` unless `labels` are integer[num_images], with what makes them so."""
  if labels.dtype.kind not in 'iu' or labels.shape != (num_images,):
    fault, fix = _label_fault(labels, num_images)
    raise UserError(
      f'{where} is {_describe(labels)}: {fault}; save integers [{num_images}], one for each image'
      + (f', here {fix}' if fix else '')
    )


def _label_fault(labels, num_images) -> tuple[str, str | None]:
  """(what is wrong with labels, NumPy that fixes it, None if nothing surely does)."""
  if labels.ndim and len(labels) != num_images:
    return f'it has {len(labels)} labels, not {num_images}', None
  if labels.ndim == 2 and labels.shape[1] == 1:
    return 'it has a second axis', "labels[:, 0].astype('int32')"
  if labels.ndim == 2 and labels.dtype.kind in 'biuf':
    rows = np.asarray(labels[:_SAMPLE], np.float64)
    if (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3):
      return 'rows of ' + ('one-hot labels' if np.isin(rows, (0, 1)).all() else 'probabilities'), 'labels.argmax(1)'
  if labels.ndim != 1:
    return f'it has {labels.ndim} axes', None
  if labels.dtype.kind == 'b' or (labels.dtype.kind == 'f' and np.array_equal(labels, np.floor(labels))):
    return 'not integers', "labels.astype('int32')"
  if labels.dtype.kind in 'US':
    return 'names', 'numpy.unique(labels, return_inverse=True)[1], and the [0] of that as class_names.npy'
  return 'not integers', None
