"""The configuration as text: value, allowed values and meaning of every field."""

from cmtkd_jax.config import sections, validation
from cmtkd_jax.config.defaults import flat
from cmtkd_jax.errors import UserError, printable
from cmtkd_jax.runtime import text_table

_CHANGED = '*'


def describe(config, selected_only=True, wanted=()):
  """Returns a table for each section, a field a line; values that differ from the default are marked.

  Args:
    config: a checked `ConfigDict`.
    selected_only: leave out methods, quantizers and losses that `config` does not select.
    wanted: names of sections and fields, such as 'quantizer.lsq' or 'optimizer.momentum'; () for all.

  Raises:
    UserError: one of `wanted` is not the name of a section or field.
  """
  wanted = [name.removeprefix('config.') for name in wanted]
  for name in wanted:
    if not any(_is_within(field, [name]) for field in sections.fields()):
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
    if not fields or (selected_only and not wanted and not _is_selected(section, values)):
      continue
    body = [
      [
        _CHANGED if name in values and values[name] != field.default else '',
        name,
        _shown(name, values),
        field.doc + (f' [{allowed}]' if (allowed := field.describe()) else ''),
      ]
      for name, field in fields.items()
    ]
    title = (cls.__doc__ or '').partition('\n')[0]
    lines += ['', f'config.{section}: {title}' if section else title]
    lines += text_table.lines(['', 'field', 'value', 'meaning [allowed values]'], body, left=range(4))
  return '\n'.join([*lines, '', f'{_CHANGED} differs from the default. Set a field with --config.FIELD=VALUE.'])


def _is_within(field, names):
  return any(field == name or field.startswith(f'{name}.') for name in names)


def _is_selected(section, values):
  kind, _, rest = section.partition('.')
  if not rest:
    return True
  name, _, role = rest.partition('.')
  chosen = values[f'{kind}.{role}s'] if role else ''
  return name == (chosen or values[f'{kind}.name'])


def _shown(name, values):
  return printable(repr(values[name])) if name in values else '{...}'
