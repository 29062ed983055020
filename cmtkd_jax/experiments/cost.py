"""What bit policies cost, before anything is trained: bits of every layer, model size, bit operations."""

from typing import NamedTuple

from cmtkd_jax import config as config_lib
from cmtkd_jax.models import bit_table
from cmtkd_jax.models.bit_policy import parse_rules
from cmtkd_jax.runtime import text_table
from cmtkd_jax.training import build


class Cost(NamedTuple):
  """What `compare` finds. students: `{run: bit_table.Total}`, '' for a configuration without a table."""

  layers: list
  students: dict[str, bit_table.Total]


def compare(config):
  """Returns the `Cost` of a configuration: its layers, if it has no table of runs, and the student of every run.

  Raises:
    UserError: a configuration or its data cannot be used.
  """
  config_lib.check(config)
  layers, students, outlines = [], {}, {}
  for name in config.table.only or config.table.runs or ('',):
    changes = config.table.runs[name].to_dict() if name else {}
    run = config_lib.derive(config, changes)
    data = build.outline_data(run, outlines)
    if not name and not run.teacher_workdirs:
      method = build.method_of(run, data.num_classes)
      layers = bit_table.collect(method, data.input_shape, parse_rules(run.bits.rules))
    alone = {'method': {'name': 'single'}, 'teacher_workdirs': (), 'init_from': '', 'prerequisites': {}}
    student = build.method_of(config_lib.derive(config, changes | alone), data.num_classes)
    students[name] = bit_table.total(bit_table.collect(student, data.input_shape))
  return Cost(layers, students)


def render(cost, unnamed):
  """Returns `cost` as text; `unnamed` names the student of a configuration without a table."""
  header = ['student of', 'parameters', 'weights, KiB', 'bits a weight', 'million MACs', 'million bit operations']
  body = [
    [
      name or unnamed,
      f'{total.parameters:,}',
      f'{total.size / 8192:,.1f}',
      f'{total.size / total.parameters:.2f}',
      f'{total.macs / 1e6:,.1f}',
      f'{total.bops / 1e6:,.1f}',
    ]
    for name, total in cost.students.items()
  ]
  layers = [bit_table.render(cost.layers), ''] if cost.layers else []
  return '\n'.join([*layers, *text_table.lines(header, body)])
