"""The configuration of a run as others may see it."""

import re

from cmtkd_jax.config import init_from

# Fields of paths; a run of a chain or table has them, too.
_PATHS = re.compile(r'.*\.(data\.dir|data\.name|init_from|teacher_workdirs)')


def shorten_paths(value, field=''):
  """Returns a JSON-able configuration in which paths are their last part only, and so are absolute ones in other texts.

  A folder for others says nothing about the disk that it was made on: 'folder:/home/me/flowers' is 'folder:flowers'.
  """
  if isinstance(value, dict):
    return {name: shorten_paths(item, f'{field}.{name}') for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [shorten_paths(item, field) for item in value]
  if not isinstance(value, str):
    return value
  if _PATHS.fullmatch(field):
    kind, colon, path = value.partition(':')
    if field.endswith('.data.name'):
      is_path = kind in ('folder', 'npy') or path.startswith(('/', '~', '.')) or '://' in path  # also of own readers
      return f'{kind}:{_last_part(path)}' if colon and is_path else value
    if field.endswith('.init_from'):
      named = {name: _last_part(path) for name, path in init_from.parse(value).items()}
      return ','.join(f'{name}={path}' if name else path for name, path in named.items())
    return _last_part(value)
  return re.sub(r'(^|[:=,])(?:~[^/:=,]*|[a-z][a-z0-9]*:/)?/[^:=,]*?([^/:=,]*)/*(?=$|[:=,])', r'\1\2', value)


def _last_part(path):
  return re.split(r'[/\\]', path.rstrip('/\\'))[-1]
