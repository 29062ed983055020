"""Digests of the files of a checkpoint: what is read is what was written, or the checkpoint counts as damaged.

Without them a flipped bit on a disk would be read as a weight: the format has checksums of its index, not of its data.
"""

import json
import zlib

from cmtkd_jax.runtime import local_file

FILE = 'digests.json'
_BLOCK = 2**24


class ChecksumError(Exception):
  """A file of a checkpoint is not what was written."""


def write(folder):
  """Writes `folder/digests.json`, the CRC-32 of every file in the folders of `folder`, an `epath.Path`."""
  items = [path for path in folder.iterdir() if path.is_dir()]
  found = {str(path.relative_to(folder)): _crc(path) for item in items for path in _files(item)}
  (folder / FILE).write_text(json.dumps(found))


def check(folder, items):
  """Raises `ChecksumError` unless the folders `items` of `folder` hold what `write` saw; other errors prove nothing.

  Where it has not been, only pipes and devices in place of files are damage. (Object stores have neither.)
  """
  for path in _files(folder) if '://' not in str(folder) else ():
    if kind := local_file.not_a_file(path):
      raise ChecksumError(f'{path.relative_to(folder)} is {kind}, not a file')
  if not local_file.is_there(folder / FILE):
    return
  try:
    wanted = {name: crc for name, crc in json.loads((folder / FILE).read_text()).items() if name.split('/')[0] in items}
  except (ValueError, AttributeError, RecursionError):
    raise ChecksumError(f'{FILE} is damaged') from None
  for name, crc in wanted.items():
    if not local_file.is_there(folder / name):
      raise ChecksumError(f'{name} is missing')
    if _crc(folder / name) != crc:
      raise ChecksumError(f'{name} is not what was written')


def _files(folder):
  for path in folder.iterdir():
    yield from _files(path) if path.is_dir() else [path]


def _crc(path):
  crc = 0
  with path.open('rb') as file:
    while block := file.read(_BLOCK):
      crc = zlib.crc32(block, crc)
  return crc
