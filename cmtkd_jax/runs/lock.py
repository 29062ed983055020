"""The lock that keeps a second run out of a work directory."""

import contextlib
import errno
import os
import socket
import stat

from etils import epath

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None  # type: ignore[assignment]

from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import distributed

FILE = 'lock'
_HOLDER = b'process '


class Lock(contextlib.AbstractContextManager):
  """Makes a work directory and keeps a second run out of it, until it is left or the process ends.

  On a local file system only: object stores have no locks. The file stays; what counts is which process holds it.
  Nothing else is written before the lock is held.

  Raises:
    UserError: another run holds the lock, its file is of another program, or the directory cannot be written.
  """

  def __init__(self, workdir):
    self._path, self._file = epath.Path(workdir) / FILE, None

  def __enter__(self):
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if fcntl is None or '://' in str(self._path) or not distributed.is_first():
        return self
      self._file = _open(self._path)
    except OSError as e:
      raise _not_writable(self._path, e) from None
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = self._file.read().decode('utf-8', 'replace').strip() or 'another process'
      self.__exit__()
      raise UserError(
        f'workdir: {self._path.parent} is in use by {holder}; wait for it, stop it, or choose another workdir'
      ) from None
    except OSError:  # a file system without locks
      return self
    is_a_lock = _HOLDER.startswith(self._file.read(len(_HOLDER)))  # or empty, as before the first holder
    if not is_a_lock:
      self.__exit__()
      raise UserError(f'workdir: {self._path} is not of a run; choose another workdir, or remove the file')
    self._file.seek(0)
    with contextlib.suppress(OSError):  # The lock is held on a full disk, too; the next file reports the disk.
      self._file.truncate(0)
      self._file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    return self

  def __exit__(self, *unused):
    if self._file is not None:
      self._file.close()
      self._file = None


def _open(path):
  """Opens the file of a lock; neither follows a link out of the directory, nor waits for the other end of a pipe."""
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  file = os.fdopen(os.open(path, flags, 0o666), 'rb+', buffering=0)
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise OSError(None, 'not a regular file')
  return file


def _not_writable(path, error):
  """The `UserError` for a lock file that cannot be opened, or for its directory, that cannot be made."""
  where = path if os.path.lexists(path) else path.parent
  reason, fix = error.strerror or error, 'choose another one'
  if isinstance(error, FileExistsError):
    reason = 'it is a file, not a directory' if os.path.exists(where) else 'it is a link to nothing'
  elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    fix = 'make it writable, or choose another one'
  elif where == path:
    fix = 'remove it, or choose another one'
  return UserError(f'workdir: {where} cannot be written ({reason}); {fix}')
