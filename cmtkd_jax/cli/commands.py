"""What `--mode` can be: one function of a `flags.Command` each."""

import json
import shlex
import sys

import jax
from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax.cli import output
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain
from cmtkd_jax.runtime import preemption
from cmtkd_jax.training import evaluate

CONFIG_MISSING = '--config is missing; give a config file, e.g. --config=configs/digits_resnet8.py'


def run_train(command):
  """Trains, first the runs that have to come first; resumes what is in the work directory."""
  chain.train_chain(_single_run(command), command.workdir, report=output.write)
  run = f'python -m cmtkd_jax.main --workdir={shlex.quote(command.workdir)}'
  output.write(f'\n{command.workdir} holds the run. Next:')
  output.write(f'  {run} --mode=report     curves, weights and errors as an HTML page')
  output.write(f'  {run} --mode=export     files to deploy')
  output.write(f'  {run} --mode=predict a.png     classes of images')


def run_evaluate(command):
  """Evaluates a checkpoint, by default the newest, and prints one JSON object."""
  if command.integer and jax.process_count() > 1:
    raise UserError('--integer compares in one process; start it again without the other processes')
  preemption.end_at_once()  # there is nothing to save
  results = evaluate.evaluate_run(command.workdir, command.config, command.step)
  if command.integer:
    from cmtkd_jax.export import compare

    results |= compare.integer_against_training(command.workdir, command.config, results['step'])
  output.write(json.dumps(results, indent=1))


def run_table(command):
  """Trains the runs of a table that are not finished, and prints it.

  Returns 1 if a run of it is not finished.
  """
  from cmtkd_jax.experiments import table, table_text

  config = _config(command)
  rows = table.train_table(config, command.workdir, report=output.write)
  output.write(table_text.render(config.table.title, rows))
  return int(any(row['run'] and not row['is_complete'] for row in rows))


def run_summarize(command):
  """Prints the table of the runs that are finished."""
  from cmtkd_jax.experiments import table, table_text

  config = _config(command)
  output.write(table_text.FORMATS[command.output](config.table.title, table.collect(config, command.workdir)))


def run_report(command):
  """Writes a run's report as one HTML page; --workdir=RUN,OTHER,... compares runs."""
  from cmtkd_jax import report  # needs matplotlib

  one = epath.Path(command.workdir).is_dir()  # a name may have a comma
  run, *others = [command.workdir] if one else command.workdir.split(',')
  output.write(str(report.write(run, others)))


def run_config(command):
  """Prints every field with its value, allowed values and meaning."""
  config = config_lib.default() if command.config is None else command.config
  config_lib.check(config)
  output.write(config_lib.describe(config, selected_only=command.config is not None, wanted=command.arguments))


def run_bits(command):
  """Prints bits, size and bit operations of the networks, without training them."""
  from cmtkd_jax.experiments import cost

  config = _config(command)
  output.write(cost.render(cost.compare(config), config.method.name))


def run_plan(command):
  """Prints memory and time of a step on the devices at hand, or on TPUs: --topology=v5e:2x2."""
  from cmtkd_jax.experiments import requirements

  config = _single_run(command)
  where = f'{command.topology}, which takes minutes' if command.topology else 'the devices at hand'
  output.write(f'compiling the train step for {where}')
  output.write(requirements.render(requirements.find(config, command.workdir, command.topology)))


def run_export(command):
  """Writes the files of a run's network, and evaluates each on the test images."""
  from cmtkd_jax.export import compare

  output.write(compare.export_and_compare(command.workdir, command.format, command.config, command.step))


def run_predict(command):
  """Prints the most likely classes of images.

  Returns 1 where one could not be read.
  """
  from cmtkd_jax.export import predict

  unreadable = []

  def read(predictions):
    for prediction in predictions:
      if prediction.error:
        unreadable.append(prediction.file)
        print(f'error: {prediction.error}', file=sys.stderr)
      yield prediction

  for line in predict.render(
    read(predict.predict(command.workdir, [*(command.images or ()), *command.arguments])), command.output
  ):
    output.write(line)
  return 1 if unreadable else 0


def _config(command):
  if command.config is None:
    raise UserError(CONFIG_MISSING)
  return command.config


def _single_run(command):
  config = _config(command)
  runs = getattr(config.get('table'), 'runs', ())
  if runs:
    instead = 'use --mode=table' if command.mode == 'train' else 'name the configuration of one run'
    raise UserError(f'--mode={command.mode}: this configuration is a table of {len(runs)} runs; {instead}')
  return config


MODES = {
  'train': run_train,
  'evaluate': run_evaluate,
  'config': run_config,
  'bits': run_bits,
  'plan': run_plan,
  'table': run_table,
  'summarize': run_summarize,
  'report': run_report,
  'export': run_export,
  'predict': run_predict,
}
ON_DEVICES = ('train', 'evaluate', 'table')  # of all processes; the others need no more than one
