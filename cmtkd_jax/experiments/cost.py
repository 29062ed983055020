"""What bit policies cost, before anything is trained: bits of every layer, model size, bit operations."""

from cmtkd_jax import config as config_lib
from cmtkd_jax.models import bit_table
from cmtkd_jax.models.bit_policy import parse_rules
from cmtkd_jax.runtime import text_table
from cmtkd_jax.training import build


def compare(config):
  """Prints the bit table of a configuration, or of a table of runs one line for the student of each.

  Returns:
    `{run: bit_table.Total}` of the students; the run of a configuration without a table is ''.

  Raises:
    UserError: a configuration or its data cannot be used.
  """
  config_lib.check(config)
  dataset = build.load_data(config, build.make_mesh())
  totals = {}
  for name in config.table.only or config.table.runs or ('',):
    changes = config.table.runs[name].to_dict() if name else {}
    run = config_lib.derive(config, changes)
    if not name and not run.teachers and not run.first:
      method = build.create_method(run, dataset.num_classes)
      print(bit_table.render(bit_table.collect(method, dataset.input_shape, parse_rules(run.bits.rules))) + '\n')
    student = config_lib.derive(
      config, changes | {'method': {'name': 'single'}, 'teachers': (), 'init_from': '', 'first': {}}
    )
    rows = bit_table.collect(build.create_method(student, dataset.num_classes), dataset.input_shape)
    totals[name] = bit_table.total(rows)
  header = ['student of', 'parameters', 'weights, KiB', 'bits a weight', 'million MACs', 'million bit operations']
  body = [
    [
      name or config.method.name,
      f'{t.parameters:,}',
      f'{t.size / 8192:,.1f}',
      f'{t.size / t.parameters:.2f}',
      f'{t.macs / 1e6:,.1f}',
      f'{t.bops / 1e6:,.1f}',
    ]
    for name, t in totals.items()
  ]
  print('\n'.join(text_table.lines(header, body)))
  return totals
