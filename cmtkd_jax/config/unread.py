"""Fields that no run of a configuration reads, such as those of a method, loss or quantizer that is not selected."""

from cmtkd_jax.config import sections, validation
from cmtkd_jax.config.defaults import flat

_LOSSES = ('feature_loss', 'logit_loss')


def find(config, fields):
  """Returns `{field: reason}` for those of `fields` that neither `config` nor a run of its chain or table reads.

  The reason is that of `config` itself.

  Args:
    config: a `ConfigDict`, or its fields as `flat` returns them.
    fields: such as 'quantizer.lsq.weight.per_channel'.
  """
  runs = _runs(flat(config))
  reasons = {field: [reason(field, run) for run in runs] for field in fields}
  return {field: why[0] for field, why in reasons.items() if all(why)}


def _runs(values):
  """Flat fields of the configuration, and of each run of its chain or table."""
  changes = {}
  for field, value in values.items():
    if run := validation.run_of(field):
      changes.setdefault(run, {})[field.removeprefix(run)] = value
  return [values, *(values | changed for changed in changes.values())]


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
