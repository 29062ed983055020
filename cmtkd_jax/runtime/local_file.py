"""Checks that a path is a file before it is opened: opening a pipe waits for a writer, and a device may never end.

All code that opens a path that a user names, or a file of a run, calls these functions first.
"""

import contextlib
import fnmatch
import os
import re

from etils import epath

from cmtkd_jax.errors import UserError


class NotAFileError(OSError):
  """Something else is in place of a file; the text is such as 'it is a folder, not a file'."""


def expanded(path: str | os.PathLike) -> str:
  """Returns `path` with the home directory in place of a ~ at its beginning."""
  return os.path.expanduser(os.fspath(path))


def matching(directory: epath.PathLike, pattern: str) -> list[epath.Path]:
  """Returns what in `directory` has a name that matches `pattern`, such as '*.png', sorted.

  (`glob` of `epath` takes brackets in the directory's own name for a pattern, too.)
  """
  directory = epath.Path(directory)
  found = directory.iterdir() if directory.is_dir() else ()
  return sorted(path for path in found if fnmatch.fnmatchcase(path.name, pattern))


def cannot_be_read(path: str | os.PathLike, error: OSError) -> UserError:
  """Returns what to raise where something lies at `path`, and reading it ended in `error`."""
  fix = 'make it readable' if isinstance(error, PermissionError) else 'check the disk'
  return UserError(f'{path} cannot be read ({error.strerror or error}); {fix}')


def cannot_be_written(folder: str | os.PathLike, error: OSError) -> str:
  """Returns what to say where writing into `folder`, or making it, ended in `error`."""
  if isinstance(error, (FileExistsError, NotADirectoryError)):
    return f'{error.filename or folder} cannot be a folder: a file or a link to nothing is in its place; remove that'
  return f'{folder} cannot be written ({error.strerror or error}); make room, or make it writable'


def is_there(path: str | os.PathLike) -> bool:
  """Returns whether anything lies at `path`. (`exists` also says no where that cannot be told.)

  Raises:
    UserError: it cannot be told, as below a folder that may not be entered, or on a disk that fails.
  """
  if '://' in os.fspath(path):
    return epath.Path(path).exists()
  try:
    os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  except OSError as e:
    raise cannot_be_read(path, e) from None
  return True


def not_a_file(path: str | os.PathLike) -> str:
  """Returns 'a folder' or 'a pipe, socket or device'; '' for a file, for nothing at all, and for object stores.

  (`epath` takes pipes and devices for files.)
  """
  path = os.fspath(path)
  if '://' in path or os.path.isfile(path) or not os.path.exists(path):
    return ''
  return 'a folder' if os.path.isdir(path) else 'a pipe, socket or device'


def check_schemes(field: str, value: str):
  """Raises `UserError` where `value` has a URL that is of no object store, such as http://."""
  for scheme in re.findall(r'(?i)([a-z][a-z0-9+.-]*://)', value):
    try:
      epath.Path(f'{scheme}x')
    except KeyError:
      raise UserError(
        f'{field}={value}: nothing is read from {scheme}; give a local path, or one of an object store such as gs://'
      ) from None


def check(path: str | os.PathLike):
  """Raises `NotAFileError` unless `path` is a file, or nothing is there."""
  if kind := not_a_file(path):
    raise NotAFileError(f'it is {kind}, not a file')


def refuse(path: str | os.PathLike):
  """Raises `UserError` unless `path`, which is to be written, is a file, or nothing is there."""
  if kind := not_a_file(path):
    raise UserError(f'{path} is {kind}, not a file; remove it')


def read_bytes(path: str | os.PathLike) -> bytes:
  """Returns what a file holds.

  Raises:
    OSError: it cannot be read; `NotAFileError` where it is none.
  """
  check(path)
  return epath.Path(path).read_bytes()


def write_whole(path: str | os.PathLike, data: bytes | str):
  """Writes a file whole or not at all, by a rename; of several processes that write it, the last one wins.

  Raises:
    OSError: it cannot be written.
    UserError: something else than a file lies at `path`.PROCESS.tmp, where it is written first.
  """
  target = epath.Path(path)
  temporary = target.parent / f'{target.name}.{os.getpid()}.tmp'
  refuse(temporary)
  try:
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(target)
  except OSError:
    with contextlib.suppress(OSError):  # half a file takes what room is left
      temporary.unlink(missing_ok=True)
    raise
