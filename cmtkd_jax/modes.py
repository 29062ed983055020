"""What `--mode` can be: one function of (config, workdir, step) each."""

import json

from cmtkd_jax import evaluate, train
from cmtkd_jax.errors import UserError


def run_train(config, workdir, step):
  """Trains, resuming what is in `workdir`."""
  if step is not None:
    raise UserError(f'--step={step} belongs to --mode=evaluate; training goes on from the newest checkpoint')
  if config is None:
    raise UserError('--config is missing; give a config file, e.g. --config=configs/digits_resnet8.py')
  train.train_and_evaluate(config, workdir)


def run_evaluate(config, workdir, step):
  """Evaluates a checkpoint in `workdir`, by default the newest, and prints one JSON object."""
  print(json.dumps(evaluate.evaluate_run(workdir, config, step), indent=1))


MODES = {'train': run_train, 'evaluate': run_evaluate}
