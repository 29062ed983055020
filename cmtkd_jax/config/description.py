"""The configuration as text: value, allowed values and meaning of every field."""

from cmtkd_jax.config import sections
from cmtkd_jax.config.defaults import flat
from cmtkd_jax.errors import printable
from cmtkd_jax.runtime import text_table

_CHANGED = '*'


def describe(config, selected_only=True):
  """Returns a table for each section, a field a line; values that differ from the default are marked.

  Args:
    config: a checked `ConfigDict`.
    selected_only: leave out methods, quantizers and losses that `config` does not select.
  """
  values = flat(config)
  lines = []
  for section, cls in sections.SECTIONS.items():
    fields = {name: field for name, field in sections.fields().items() if name.rpartition('.')[0] == section}
    if not fields or (selected_only and not _is_selected(section, values)):
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


def _is_selected(section, values):
  kind, _, rest = section.partition('.')
  if not rest:
    return True
  name, _, role = rest.partition('.')
  chosen = values[f'{kind}.{role}s'] if role else ''
  return name == (chosen or values[f'{kind}.name'])


def _shown(name, values):
  return printable(repr(values[name])) if name in values else '{...}'
