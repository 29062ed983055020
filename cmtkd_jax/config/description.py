"""The configuration as text: value, allowed values and meaning of every field."""

import functools
import sys
import types

from cmtkd_jax import losses, methods, models, quantizers
from cmtkd_jax.config import sections, validation
from cmtkd_jax.config.defaults import flat
from cmtkd_jax.errors import UserError, printable
from cmtkd_jax.runtime import text_table

_CHANGED = '*'
_LONG = 80  # characters
_REGISTRIES = {
  'model.name': models.MODELS,
  'method.name': methods.METHODS,
  'feature_loss.name': losses.FEATURE_LOSSES,
  'logit_loss.name': losses.LOGIT_LOSSES,
  'quantizer.name': quantizers.QUANTIZERS,
}


def describe(config, selected_only=True, wanted=()):
  """Returns a table for each section, one field per line, and what the names in it stand for; marks what is no default.

  Args:
    config: a checked `ConfigDict`.
    selected_only: leave out methods, quantizers and losses that `config` does not select.
    wanted: names of sections and fields, such as 'quantizer.lsq' or 'optimizer.momentum'; () for all.

  Raises:
    UserError: one of `wanted` is not the name of a section or field.
  """
  wanted = [name.removeprefix('config.') for name in wanted]
  for name in wanted:
    if not any(_is_within(field, [name]) for field in (*sections.fields(), *sections.SECTIONS)):
      near = validation.suggest(name)
      hint = f'did you mean {near}?' if near else 'leave it out to see all'
      raise UserError(f'{name!r} is neither a field nor a section of the configuration; {hint}')
  values = flat(config)
  lines = []
  for section, cls in sections.SECTIONS.items():
    fields = {
      name: field
      for name, field in sections.fields().items()
      if name.rpartition('.')[0] == section and (not wanted or _is_within(name, wanted))
    }
    if not fields and not (wanted and _is_within(section, wanted)):
      continue
    if selected_only and not wanted and not _is_selected(section, values):
      continue
    body = [
      [
        _CHANGED if name in values and values[name] != field.default else '',
        name,
        _shown(name, values, whole=name in wanted),
        field.doc + (f' [{allowed}]' if (allowed := field.describe()) else ''),
      ]
      for name, field in fields.items()
    ]
    title = (cls.__doc__ or '').partition('\n')[0]
    lines += ['', f'config.{section}: {title}' if section else title]
    header = ['', 'field', 'value', 'meaning [allowed values]']
    lines += text_table.lines(header, body, left=range(4)) if body else ['  has no options']
    for name in fields.keys() & _REGISTRIES.keys():
      lines += [f'  {name} can be:', *_names(_REGISTRIES[name])]
  return '\n'.join([*lines, '', f'{_CHANGED} differs from the default. Set a field with --config.FIELD=VALUE.'])


def _names(registry):
  """A line for each entry of a registry: its name, and what it is."""
  width = max(map(len, registry))
  return [f'    {name.ljust(width)}  {_meaning(entry)}' for name, entry in registry.items()]


def _meaning(entry):
  """The line that documents an entry of a registry: a module, a class that is alone in its module, or a backbone."""
  if isinstance(entry, types.ModuleType):
    doc = entry.__doc__
  elif isinstance(entry, type):
    doc = sys.modules[entry.__module__].__doc__
  else:
    doc = (entry.func if isinstance(entry, functools.partial) else entry).__doc__
  return (doc or '').partition('\n')[0]


def _is_within(field, names):
  return any(field == name or field.startswith(f'{name}.') for name in names)


def _is_selected(section, values):
  return '.' not in section or section.split('.')[1] == values[sections.selector(section, values)]


def _shown(name, values, whole):
  if name in values:
    text, entries = printable(repr(values[name])), values[name]
    # The lines of a table would push the meanings off the screen.
    return text if whole or not isinstance(entries, tuple) or len(text) < _LONG else f'({len(entries)} entries)'
  return '{...}' if any(field.startswith(f'{name}.') for field in values) else '{}'
