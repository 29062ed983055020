"""JSON files of a run: written whole or not at all, checked when they are read."""

import json

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runtime import distributed, local_file


def read(path, kind, needed=(), valid=lambda value: True, fix='restore it'):
  """Returns what the JSON file `path` holds.

  Args:
    path: an `epath.Path`.
    kind: dict or list, what it must be.
    needed: keys that a dict must have.
    valid: whether the content is as it was written; may raise what a wrong structure raises.
    fix: what the user can do about a damaged file.

  Raises:
    UserError: it cannot be read, or holds something else.
  """
  try:
    value = json.loads(local_file.read_bytes(path))
    whole = isinstance(value, kind) and all(key in value for key in needed) and _holds(valid, value)
    problem = '' if whole else 'it is not what was written'
  except PermissionError as e:
    raise local_file.cannot_be_read(path, e) from None
  except (OSError, ValueError, RecursionError) as e:  # no file, not UTF-8, not JSON, nested too deeply
    problem = one_line(e)
  if problem:
    raise UserError(f'{path} is damaged ({problem}); {fix}')
  return value


def _holds(valid, value):
  try:
    return valid(value)
  except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
    return False


def write(path, text):
  """Writes a file whole or not at all, in the first process."""
  if distributed.is_first():
    local_file.write_whole(path, text)
