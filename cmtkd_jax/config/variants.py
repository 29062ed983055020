"""How a config file changes a configuration: variants by name, neighboring files, the smoke test."""

import pathlib
import runpy

from cmtkd_jax import methods
from cmtkd_jax.config import sections
from cmtkd_jax.data.transforms.augments import AUGMENTS
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file

# What smoke makes of durations within a training.
_SHORT = {
  'averaging': {'start': '1 steps', 'every': '1 steps'},
  'optimizer': {'decay_at': '2 steps', 'warmup': ''},
  **{name: {'warmup': '1 steps', 'change_at': '2 steps'} for name in sections.SCHEDULES},
}
# Fields that a run of a table or chain has from the smoke test, whatever its own changes say.
_LENGTHS = ('duration', 'batch_size', 'eval_batch_size', 'log_every', 'eval_every', 'checkpoint_every')


def apply_argument(config, argument, **variants):
  """Applies the part of `--config=FILE.py:ARGUMENT` after the colon: names of variants, and of runs of a table.

  Args:
    config: changed in place.
    argument: '' or names joined by commas, e.g. 'smoke'.
    **variants: `{name: function of config}`.

  Returns:
    config.

  Raises:
    UserError: a name is unknown.
  """
  for name in sorted(filter(None, argument.split(',')), key='smoke'.__eq__):  # the last word is smoke's
    if name in config.table.runs:
      config.table.only = (*config.table.only, name)
    elif name in variants:
      variants[name](config)
    else:
      known = ', '.join([*sorted(variants), *config.table.runs])
      raise UserError(f'--config=...:{argument}: {name!r} is not one of {known}')
  return config


def load_config(path, name, argument=''):
  """Returns the configuration of file `name`, a path without suffix, seen from the folder of config file `path`."""
  file = pathlib.Path(path).parent / f'{name}.py'
  if kind := local_file.not_a_file(file):
    raise UserError(f'--config: {file} is {kind}, not a file; put a config file there')
  return runpy.run_path(str(file))['get_config'](argument)


def smoke(config, image_size, channels=3, classes=10):
  """Shrinks `config` to a few seconds anywhere: generated images, narrow layers, two teachers, three steps."""
  config.data.name = f'generated:{image_size}x{image_size}x{channels}:{classes}:48'
  config.data.image_size, config.data.resize = image_size, 0
  config.data.minival = min(config.data.minival, 0.25)
  if AUGMENTS[config.data.augment].random_box:
    config.data.augment = 'pad_crop_flip'
  config.model.width = min(config.model.width, 8 / 64)
  others = (*config.table.runs.values(), *config.prerequisites.values())
  runs = (config, *others)
  every = 1 if any('teacher' in changes.get('init_from', '') for changes in runs) else 2  # all that have names there
  for name in methods.METHODS:
    for field in ('teacher_bits', 'peer_bits'):
      if isinstance(config.method[name].get(field), tuple):
        config.method[name][field] = config.method[name][field][::every]
    if 'teacher_model' in config.method[name]:
      config.method[name].teacher_model = config.model.name
  for changes in config.prerequisites.values():
    if 'model' in changes:
      del changes.model  # every network is the student's
  for changes in others:
    for field in set(_LENGTHS).intersection(changes):
      del changes[field]
  config.table.seeds = config.table.seeds[:1]
  config.batch_size = config.eval_batch_size = 16
  config.duration = '3 steps'
  for changes in runs:
    for section, fields in _SHORT.items():
      for field, short in fields.items():
        if section in changes and changes[section].get(field):
          changes[section][field] = short
  config.log_every = '1 steps'
  config.eval_every = config.checkpoint_every = '3 steps'
  config.optimizer.learning_rate = min(config.optimizer.learning_rate, 0.01)
  config.tensorboard = False
