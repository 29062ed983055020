"""Configurations as JSON, and how two of them differ."""

import json
import os
import re

import ml_collections

from cmtkd_jax.config import init_from
from cmtkd_jax.config.defaults import default, flat
from cmtkd_jax.config.sections import SELECTING
from cmtkd_jax.config.validation import check
from cmtkd_jax.errors import UserError, one_line


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
  except (AttributeError, TypeError, ValueError, OverflowError) as e:  # a number for fields, a name with dots, 10^400
    raise UserError(
      f'the stored configuration is damaged ({one_line(e)}); restore it, or train in another workdir'
    ) from None
  check(config)
  return config


def difference(a, b, exclude=(), root=''):
  """Returns lines 'field: value in a -> value in b' of the fields in which configurations differ, without `exclude`.

  A relative path and its absolute one do not differ. `root` is the directory of a chain or table, which may have been
  moved since `a` was stored: a run below it in `b` is the run with the same path below another directory in `a`.
  """
  a, b = flat(a), flat(b)
  return [
    f'{field}: {a.get(field)!r} -> {b.get(field)!r}'
    for field in sorted(a.keys() | b.keys())
    if field not in exclude and not _same(field, a.get(field), b.get(field), root)
  ]


def same_path(a, b):
  """Returns whether two values of `config.data.name` are one: the same name, or the same folder of the same kind."""
  return _absolute(a) == _absolute(b)


def _same(field, before, now, root):
  if field == 'data.name' and before and now:
    return same_path(before, now)
  if field == 'init_from' and before and now:
    before, now = init_from.parse(before), init_from.parse(now)
    return before.keys() == now.keys() and all(_same_run(before[name], now[name], root) for name in now)
  if field == 'teacher_workdirs' and before and now:
    return len(before) == len(now) and all(_same_run(*pair, root) for pair in zip(before, now, strict=True))
  return _tuples(before) == _tuples(now)


def _same_run(before, now, root):
  before, now, above = _absolute(before), _absolute(now), f'{_absolute(root)}/' if root else ''
  return before == now or bool(above and now.startswith(above) and before.endswith(f'/{now.removeprefix(above)}'))


def _absolute(text):
  """'DIR' or 'npy:DIR' with the absolute name of its directory; an object store's name is one."""
  prefix, directory = re.fullmatch(r'(npy:|folder:|)(.*)', text, re.DOTALL).groups()
  return prefix + (directory if '://' in directory else os.path.abspath(os.path.expanduser(directory)))


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
