"""What `--mode` can be: one function of (config, workdir, step) each."""

import json

from cmtkd_jax import chain, evaluate
from cmtkd_jax.errors import UserError


def run_train(config, workdir, step):
  """Trains, first what the configuration says comes first, resuming what is in `workdir`."""
  _no_step(step)
  if _needed(config).table.runs:
    raise UserError(f'--mode=train: this configuration is a table of {len(config.table.runs)} runs; use --mode=table')
  chain.train_chain(config, workdir)


def run_evaluate(config, workdir, step):
  """Evaluates a checkpoint in `workdir`, by default the newest, and prints one JSON object."""
  print(json.dumps(evaluate.evaluate_run(workdir, config, step), indent=1))


def run_table(config, workdir, step):
  """Trains the missing runs of a table and prints it."""
  from cmtkd_jax.report import table
  _no_step(step)
  table.train_table(_needed(config), workdir)


def run_collect(config, workdir, step):
  """Prints the table of the runs that are finished."""
  from cmtkd_jax.report import table
  _no_step(step)
  table.collect(_needed(config), workdir)


def run_report(config, workdir, step):
  """Writes a run's report, one HTML page and its pictures; `workdir` may be RUN,OTHER,... for accuracy against size."""
  from cmtkd_jax import report  # needs matplotlib
  del config
  _no_step(step)
  run, *others = workdir.split(',')
  print(report.write(run, others))


def run_bits(config, workdir, step):
  """Prints bits, size and bit operations of the networks, without training them."""
  from cmtkd_jax.report import bits
  del workdir
  _no_step(step)
  bits.compare(_needed(config))


def _needed(config):
  if config is None:
    raise UserError('--config is missing; give a config file, e.g. --config=configs/digits_resnet8.py')
  return config


def _no_step(step):
  if step is not None:
    raise UserError(f'--step={step} belongs to --mode=evaluate; the newest checkpoint is taken everywhere else')


MODES = {'train': run_train, 'evaluate': run_evaluate, 'bits': run_bits, 'table': run_table, 'collect': run_collect,
         'report': run_report}
ON_DEVICES = ('train', 'evaluate', 'table')  # of all processes; the others need no more than one
