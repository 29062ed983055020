"""Fields that no run of a configuration reads, such as those of a method, loss or quantizer that is not selected."""

import functools
import operator
import re

from cmtkd_jax.config import sections, validation
from cmtkd_jax.config.defaults import flat

_LOSSES = ('feature_loss', 'logit_loss')
_SEED_IN_TABLE = re.compile(r'(table\.runs\.[^.]+\.)?seed')


def find(config, fields):
  """Returns `{field: reason}` for those of `fields` that neither `config` nor a run of its chain or table reads.

  The reason is that of `config` itself; a field of one run, such as 'table.runs.kd.seed', has that of this run.

  Args:
    config: a `ConfigDict`, or its fields as `flat` returns them.
    fields: such as 'quantizer.lsq.weight.per_channel'.
  """
  values = flat(config)
  changes = _changes(values)
  runs = [values, *(values | changed for changed in changes.values())]
  found = {}
  has_table = any(run.startswith('table.runs.') for run in changes)
  for field in fields:
    if has_table and _SEED_IN_TABLE.fullmatch(field):
      found[field] = 'the runs of a table have config.table.seeds'
    elif run := validation.run_of(field):
      # A run of a row's own chain also has the row's changes.
      of_run = [changed for prefix, changed in sorted(changes.items()) if run.startswith(prefix)]
      why = reason(field.removeprefix(run), functools.reduce(operator.or_, of_run, values))
      found[field] = why and f'in this run {why}'
    else:
      reasons = [reason(field, run) for run in runs]
      found[field] = reasons[0] if all(reasons) else ''
  return {field: why for field, why in found.items() if why}


def _changes(values):
  """`{'table.runs.NAME.': flat fields that it changes}` of each run of the chain or table of a configuration."""
  changes = {}
  for field, value in values.items():
    if run := validation.run_of(field):
      changes.setdefault(run, {})[field.removeprefix(run)] = value
  return changes


def reason(field, values):
  """Returns why a run with the flat fields `values` does not read `field`; '' where it does."""
  kind, method = field.split('.')[0], values['method.name']
  if kind in _LOSSES and method not in sections.readers(kind).split(', '):
    return f'config.method.name is {method!r}, and {kind} is for {sections.readers(kind)}'
  section = field.rpartition('.')[0]
  if kind in sections.SELECTING and section != kind:
    selector = sections.selector(section, values)
    if section.split('.')[1] != values[selector]:
      return f'config.{selector} is {values[selector]!r}'
  return _turned_off(section, field, values)


def _turned_off(section, field, values):
  """The value of another option with which nothing reads `field`; '' where it is read."""
  known = sections.fields().get(field)
  for other, unread_with in known.allowed.get('unread_with', {}).items() if known else ():
    name = other if '.' in other else f'{section}.{other}'
    if values[name] in unread_with:
      return f'config.{name} is {values[name]!r}'
  return ''
