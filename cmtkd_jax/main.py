"""Command line: `python -m cmtkd_jax.main --config=configs/digits_resnet8.py [--workdir=DIR] [--mode=evaluate]`."""

import os
import pathlib
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from cmtkd_jax import config as config_lib
from cmtkd_jax import distributed, modes, preemption
from cmtkd_jax.errors import UserError

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported, if ever it is

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, e.g. configs/digits_resnet8.py[:smoke].')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; by default runs/<name of the config file>.')
_MODE = flags.DEFINE_enum('mode', 'train', list(modes.MODES), 'train: train or resume; evaluate: print JSON; '
                         'bits: what networks cost; table, collect: runs of a table; report: HTML page of a run.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint to evaluate; by default the newest.')


def parse(argv):
  """Returns (mode, config or None, work directory, step or None), or raises a `UserError` of one line."""
  for field in re.findall(r'^--?(?:no)?config\.([\w.]+)', '\n'.join(argv), re.MULTILINE):
    config_lib.check_field(field)
  try:
    app.define_help_flags()
    rest = flags.FLAGS(argv)
    config = _CONFIG.value
    getattr(config, 'is_locked', None)  # a file that cannot be read is told at the first look into it
  except (flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError) as e:
    raise UserError(_one_line(e)) from e
  if rest[1:]:
    raise UserError(f'{rest[1]!r} is no flag; flags are --config, --config.FIELD, --workdir, --mode and --step')
  workdir = _WORKDIR.value or _default_workdir()
  return _MODE.value, config, workdir, _STEP.value


def _one_line(error):
  """What an exception of the flag libraries comes down to; they wrap ours, and print stack traces into theirs."""
  ours, link = None, error
  while link is not None:
    ours, link = link if isinstance(link, UserError) else ours, link.__cause__ or link.__context__
  text = str(ours or error)
  in_config_file = not ours and ('Failed loading config file' in text or 'whilst parsing config file' in text)
  return f'--config: {text.strip().splitlines()[-1].strip()}' if in_config_file else ' '.join(text.split())


def _default_workdir():
  """runs/<config file>, with the argument after the colon."""
  if _CONFIG.value is None:
    raise UserError('--workdir is missing; name the directory of a run')
  path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
  return os.path.join('runs', '_'.join(filter(None, [pathlib.Path(path).stem, *argument.split(',')])))


def main(argv):
  """Runs one mode; returns the exit status."""
  try:
    mode, *arguments = parse(argv)
    if mode in modes.ON_DEVICES:
      distributed.initialize()
    modes.MODES[mode](*arguments)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except preemption.Stopped as e:
    print(e, file=sys.stderr)
    return preemption.EXIT_STATUS
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
