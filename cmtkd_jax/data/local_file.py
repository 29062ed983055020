"""What lies at a path in place of a file: opening a pipe, say, would wait for somebody to write into it."""

import os


def not_a_file(path: str | os.PathLike) -> str:
  """Returns 'a folder' or 'a pipe, socket or device'; '' for a file, for nothing at all, and for object stores.

  (`epath` takes pipes and devices for files.)
  """
  path = os.fspath(path)
  if '://' in path or os.path.isfile(path) or not os.path.exists(path):
    return ''
  return 'a folder' if os.path.isdir(path) else 'a pipe, socket or device'
