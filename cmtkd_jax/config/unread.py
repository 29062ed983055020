"""Fields that no run of a configuration reads: those of a method, loss or quantizer that is not selected."""

from cmtkd_jax import methods
from cmtkd_jax.config import sections
from cmtkd_jax.config.defaults import flat

_LOSSES = ('feature_loss', 'logit_loss')


def unread(config, fields):
  """Returns `{field: reason}` for those of `fields` that neither `config` nor a run of its chain or table reads.

  Args:
    config: a `ConfigDict`.
    fields: such as 'quantizer.lsq.weight.per_channel'.
  """
  values = flat(config)

  def chosen(name):
    """What the runs select, as the field `name` of each of them says."""
    return {value for field, value in values.items() if f'.{field}'.endswith(f'.{name}')}

  def reason(field):
    kind, *inner = field.split('.')
    readers = {name for name, method in methods.METHODS.items() if kind in getattr(method, 'READS', ())}
    if kind in _LOSSES and not readers & chosen('method.name'):
      return f'config.method.name is {_names(chosen("method.name"))}, and {kind} is for {", ".join(sorted(readers))}'
    if kind not in sections.SELECTING or len(inner) < 2:
      return ''
    name, *role = inner[:-1]
    selector = f'{kind}.name'
    selected = chosen(selector)
    if role and (own := chosen(f'{kind}.{role[0]}s')) != {''}:  # of a quantizer; '' stands for quantizer.name
      selector = f'{kind}.{role[0]}s'
      selected = own - {''} | (selected if '' in own else set())
    return '' if name in selected else f'config.{selector} is {_names(selected)}'

  return {field: why for field in fields if (why := reason(field))}


def _names(values):
  return ' or '.join(sorted(map(repr, values)))
