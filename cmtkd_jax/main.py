"""Command line: `python -m cmtkd_jax.main --config=configs/digits_resnet8.py [--workdir=DIR] [--mode=evaluate]`."""

import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from cmtkd_jax import modes
from cmtkd_jax.errors import UserError

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported, if ever it is

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, e.g. configs/digits_resnet8.py[:smoke].')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; by default runs/<name of the config file>.')
_MODE = flags.DEFINE_enum('mode', 'train', list(modes.MODES), 'train: train or resume; evaluate: print one JSON object.')


def parse(argv):
  """Parses the flags; whatever is wrong with them becomes a `UserError` of one line."""
  try:
    rest = flags.FLAGS(argv, known_only=False)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
    raise UserError(' '.join(str(e).split())) from e
  if rest[1:]:
    raise UserError(f'{rest[1]!r} is no flag; flags are --config, --config.FIELD, --workdir and --mode')


def default_workdir():
  """Returns runs/<config file>, with the argument after the colon, or raises `UserError` without a config."""
  if _CONFIG.value is None:
    raise UserError('--workdir is missing; name the directory of a run')
  path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
  return os.path.join('runs', '_'.join(filter(None, [pathlib.Path(path).stem, *argument.split(',')])))


def main(argv):
  """Runs one mode; returns the exit status."""
  try:
    parse(argv)
    modes.MODES[_MODE.value](_CONFIG.value, _WORKDIR.value or default_workdir())
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
