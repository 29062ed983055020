"""What the user may have meant by a name of a data set that does not exist."""

import contextlib
import difflib
import glob
import json
import os
import pathlib
from collections.abc import Iterable

from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file

ALLOWED = (
  "allowed are 'digits', 'generated:HxWxC:CLASSES:N', 'npy:/path', 'folder:/path', or a name of "
  "TensorFlow Datasets such as 'cifar100', 'svhn_cropped', 'imagenet2012'"
)
_KINDS = ('digits', 'generated', 'npy', 'folder', 'tfds')


def is_path(name: str) -> bool:
  """Whether a name can only be that of a file or folder."""
  return name.startswith(('/', './', '../', '~')) or name in ('.', '..') or '://' in name


def unknown(name: str, known: Iterable[str] = ()) -> UserError | None:
  """Returns the error for a name that is not a data set and resembles something, None where it resembles nothing.

  Args:
    name: config.data.name.
    known: names of TensorFlow Datasets.
  """
  field, path = f'config.data.name={name!r}', os.path.expanduser(name)
  if os.path.isdir(path):
    if place := prepared(path):
      return UserError(f'{field} is a prepared data set; write {place[1]}, and config.data.dir={place[0]!r}')
    kind = 'npy' if os.path.exists(os.path.join(path, 'train_images.npy')) else 'folder'
    return UserError(f'{field} is a folder; write {kind}:{name}')
  if is_path(name):
    fault = 'is a file' if os.path.exists(path) else 'is a path' if '://' in name else 'does not exist'
    return UserError(f'{field} {fault}; write folder:PATH or npy:PATH, with the path of a folder')
  kind, colon, rest = name.partition(':')
  if kind in known:
    return None
  if colon and (near := _near(kind, _KINDS)):
    return UserError(f'{field} is unknown; did you mean {near if near == "digits" else f"{near}:{rest}"!r}? {ALLOWED}')
  if near := _near(kind, ('digits', *known)):
    return UserError(f'{field} is unknown; did you mean {near!r}? {ALLOWED}')
  return None


def prepared(path: str) -> tuple[str, ...]:
  """Returns (config.data.dir, config.data.name) of a folder that tensorflow_datasets has prepared, else ()."""
  for levels in ('', '*', '*/*'):  # the version, the data set, a variant of it between the two
    for found in sorted(glob.glob(os.path.join(glob.escape(path), levels, 'dataset_info.json'))):
      with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        info = json.loads(local_file.read_bytes(found))
        variant = info.get('configName', '')
        root = pathlib.Path(found).absolute().parents[3 if variant else 2]
        return str(root), f'tfds:{info["name"]}{f"/{variant}" if variant else ""}:{info["version"]}'
  return ()


def _near(name, names):
  return next(iter(difflib.get_close_matches(name.lower(), names, 1, 0.7)), None)
