"""Configurations as JSON, and how two of them differ."""

import json
import os
import re

import ml_collections

from cmtkd_jax.config.defaults import default, flat
from cmtkd_jax.config.sections import SELECTING
from cmtkd_jax.config.validation import check
from cmtkd_jax.errors import UserError

_PATHS = ('init_from', 'teacher_workdirs', 'data.name')


def to_json(config):
  """Returns `config` as indented JSON text."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text):
  """Returns the `ConfigDict` that `to_json` wrote, checked.

  Methods, quantizers and losses that the configuration does not use need not exist here.
  """
  config = default()
  try:
    with config.unlocked():
      _assign(config, _without_unknown(json.loads(text), config))
  except (AttributeError, TypeError, OverflowError) as e:  # fields where there is a number, or 10^400
    raise UserError(
      f'the stored configuration is damaged ({" ".join(str(e).split())}); restore it, or train in another --workdir'
    ) from None
  check(config)
  return config


def difference(a, b, exclude=()):
  """Returns lines 'field: value in a -> value in b' of the fields in which configurations differ, without `exclude`.

  A relative path and its absolute one do not differ.
  """
  a, b = flat(a), flat(b)
  return [
    f'{field}: {a.get(field)!r} -> {b.get(field)!r}'
    for field in sorted(a.keys() | b.keys())
    if field not in exclude and _comparable(field, a.get(field)) != _comparable(field, b.get(field))
  ]


def same_path(a, b):
  """Returns whether two values of `config.data.name` are one: the same name, or the same folder of the same kind."""
  return _absolute(a) == _absolute(b)


def _comparable(field, value):
  if field not in _PATHS or not value:
    return _tuples(value)
  return tuple(map(_absolute, value.split(',') if isinstance(value, str) else value))


def _absolute(text):
  """'DIR', 'network=DIR' or 'npy:DIR' with the absolute name of its directory; an object store's name is one."""
  prefix, directory = re.fullmatch(r'(\s*\w+\s*=\s*|npy:|folder:|)(.*)', text, re.DOTALL).groups()
  return ''.join(prefix.split()) + (directory if '://' in directory else os.path.abspath(os.path.expanduser(directory)))


def _without_unknown(values, known):
  """`values` without methods, quantizers and losses of other installations, and their options, where none is used."""

  def kept(values, known):
    inner = lambda name, value: kept(value, known[name]) if isinstance(value, dict) else value
    return {name: inner(name, value) for name, value in values.items() if name in known}

  for section in SELECTING:
    entries = values.get(section)
    if not isinstance(entries, dict):
      continue
    used, found = {value for value in entries.values() if isinstance(value, str)}, {}
    for name, value in entries.items():
      if not isinstance(value, dict) or (name in used and name in known[section]):
        found[name] = value
      elif name in known[section]:
        found[name] = kept(value, known[section][name])
      # Otherwise it is unknown. Where it is used, its name is refused later, with those that there are.
    values = {**values, section: found}
  return values


def _assign(config, values):
  for name, value in values.items():
    section = isinstance(config.get(name), ml_collections.ConfigDict)
    if name in config and section != isinstance(value, dict):
      raise TypeError(f'{name} is a {type(value).__name__}')
    if section:
      _assign(config[name], value)
    else:
      config[name] = _tuples(value)


def _tuples(value):
  if isinstance(value, dict):
    return {name: _tuples(entry) for name, entry in value.items()}
  return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
