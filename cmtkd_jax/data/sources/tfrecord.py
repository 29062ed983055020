"""TFRecord files with random access: an index of where each record begins, made once and cached.

A record is uint64 length, uint32 masked crc32c of these 8 bytes, data, uint32 masked crc32c of the data, all little
endian. Checksums of lengths are always checked, those of data where `google_crc32c`, which requirements.txt names, or
`crc32c` is installed (in Python they would cost more than decoding). Reference: tensorflow/core/lib/io/record_writer.h.
"""

import contextlib
import hashlib
import io
import os
import struct
import sys
import uuid
import zipfile
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np
from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime.local_file import not_a_file, read_bytes

try:
  from google_crc32c.cext import value as _fast_crc32c  # Only what is compiled is fast enough.
except ImportError:
  try:
    from crc32c import crc32c as _fast_crc32c
  except ImportError:
    _fast_crc32c = None

_HEADER, _FOOTER = struct.Struct('<QI'), struct.Struct('<I')
_FRAME = _HEADER.size + _FOOTER.size
_THREADS = 16  # that read headers; they mostly wait for the disk
_ANNOUNCED = 2**30  # bytes from which a first scan is announced
_INDEX_VERSION = 1


def _crc_table():
  for byte in range(256):
    for _ in range(8):
      byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
    yield byte


_TABLE = tuple(_crc_table())


def crc32c(data: bytes) -> int:
  """CRC-32C, a byte at a time: for headers."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
  return crc ^ 0xFFFFFFFF


def checks_data() -> bool:
  """Returns whether checksums of data are checked."""
  return _fast_crc32c is not None


def mask(crc: int) -> int:
  """What TFRecord stores for a CRC."""
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path: epath.Path, size: int) -> np.ndarray:
  """Returns where the records of a file of `size` bytes begin, and `size`: int64[n + 1].

  Raises:
    UserError: the file is cut short or damaged.
  """
  offsets = [0]
  with path.open('rb') as file:
    while offsets[-1] < size:
      file.seek(offsets[-1])
      length = _length(file.read(_HEADER.size), path, len(offsets) - 1)
      offsets.append(offsets[-1] + _FRAME + length)
  if offsets[-1] > size:
    raise _damaged(path, f'ends within record {len(offsets) - 2}')
  return np.array(offsets, np.int64)


class Files:
  """The records of several TFRecord files as one sequence, in the order of the files; thread-safe, picklable.

  Args:
    paths: the files.
    counts: how many records each must have.

  Raises:
    UserError: a file is missing, damaged, or has another number of records.
  """

  def __init__(self, paths: Sequence[epath.Path], counts: Sequence[int]):
    self._paths = [epath.Path(path) for path in paths]
    self._files, self._offsets = _index(self._paths)  # of record r: file _files[r], from _offsets[r] on
    for path, count, found in zip(self._paths, counts, np.bincount(self._files, minlength=len(self._paths))):
      if found != count:
        raise _damaged(path, f'has {found} records, not the {count} of dataset_info.json')

  def __len__(self):
    return len(self._files)

  def read(self, records: np.ndarray) -> list[bytes]:
    """Returns the data of each record.

    Raises:
      UserError: a file has changed, cannot be read or is damaged.
    """
    return [self._read(int(record)) for record in records]

  def _read(self, record):
    path, (begin, end) = self._paths[self._files[record]], self._offsets[record]
    try:
      with path.open('rb') as file:  # Opened each time: ImageNet has more files than a process may hold open.
        file.seek(int(begin))
        frame = file.read(int(end - begin))
    except OSError as e:
      raise _damaged(path, f'cannot be read ({e})') from e
    if len(frame) != end - begin or _length(frame[: _HEADER.size], path, record) != len(frame) - _FRAME:
      raise _damaged(path, 'has changed since it was opened')
    data = frame[_HEADER.size : -_FOOTER.size]
    if _fast_crc32c and mask(_fast_crc32c(data)) != _FOOTER.unpack_from(frame, len(frame) - _FOOTER.size)[0]:
      raise _damaged(path, f'is damaged in record {record} of the split')
    return data


def _length(header, path, record):
  if len(header) < _HEADER.size:
    raise _damaged(path, f'ends within record {record}')
  length, crc = _HEADER.unpack(header)
  if mask(crc32c(header[:8])) != crc:
    raise _damaged(path, f'is not a TFRecord file, or damaged at record {record}')
  return length


def _damaged(path, what):
  return UserError(f'config.data.name: {path} {what}; copy it again, or prepare the data set again')


# --- The index.


def _index(paths):
  """(int32[N], int64[N, 2]): of every record its file, and where it begins and ends; cached."""
  try:
    for path, kind in zip(paths, _parallel(not_a_file, paths)):
      if kind:
        raise _damaged(path, f'is {kind}, not a file')
    stats = _parallel(lambda path: path.stat(), paths)
  except OSError as e:
    raise UserError(
      f'config.data.name: {e.filename or paths[0].parent} cannot be read ({e.strerror or e}); prepare '
      'the data set again'
    ) from e
  state = np.array([(stat.length, stat.mtime) for stat in stats], np.int64)
  names = np.array([path.name for path in paths])
  places = _places(paths)
  for place in places:
    if (found := _load(place, names, state)) is not None:
      break
  else:
    if (total := int(state[:, 0].sum())) > _ANNOUNCED:
      print(f'indexing {len(paths)} files, {total / 2**30:.0f} GiB, in {paths[0].parent}: once', file=sys.stderr)
    starts = _parallel(scan, paths, state[:, 0].tolist())
    found = np.cumsum([0, *map(len, starts)]), np.concatenate(starts)
    _save(places, names=names, state=state, bounds=found[0], offsets=found[1])
  bounds, offsets = found
  files = np.repeat(np.arange(len(paths), dtype=np.int32), np.diff(bounds) - 1)
  spans = np.stack([offsets[:-1], offsets[1:]], 1) if len(offsets) else np.zeros((0, 2), np.int64)
  # Between the last offset of a file and the first of the next there is no record.
  return files, np.delete(spans, bounds[1:-1] - 1, axis=0)


def _parallel(function: Callable, *arguments):
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(function, *arguments))


def _places(paths):
  """Where an index may be: next to the data, else in the user's cache."""
  folder, name = paths[0].parent, paths[0].name.split('.tfrecord')[0]
  home = epath.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
  digest = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:16]
  return folder / f'.{name}.cmtkd_index.npz', home / 'cmtkd_jax' / f'{digest}-{name}.npz'


def _load(place, names, state):
  """(bounds, offsets) as saved, or None where nothing is, or is not of these files as they are now."""
  try:
    with np.load(io.BytesIO(read_bytes(place)), allow_pickle=False) as saved:
      version, saved_names, saved_state, bounds, offsets = (
        saved[key] for key in ('version', 'names', 'state', 'bounds', 'offsets')
      )
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None
  same = version == _INDEX_VERSION and np.array_equal(saved_names, names) and np.array_equal(saved_state, state)
  return (bounds, offsets) if same else None


def _save(places, **arrays):
  """Writes the index to the first place that takes it, in one rename."""
  buffer = io.BytesIO()
  np.savez(buffer, version=_INDEX_VERSION, **arrays)
  for place in places:
    temporary = place.parent / f'{place.name}.{uuid.uuid4().hex}.tmp'
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      temporary.write_bytes(buffer.getvalue())
      temporary.replace(place)
      return
    except OSError:  # read-only or full; if no place takes it, the next start makes it again
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
