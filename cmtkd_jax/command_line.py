"""The flags of the command, and what they come down to."""

import os
import pathlib
import re
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import config_flags

from cmtkd_jax import config as config_lib
from cmtkd_jax import modes
from cmtkd_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, e.g. configs/digits_resnet8.py[:smoke].')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; by default runs/<name of the config file>.')
_MODE = flags.DEFINE_enum('mode', 'train', list(modes.MODES), 'train: train or resume; evaluate: print JSON; '
                         'bits: what networks cost; table, collect: runs of a table; report: HTML page of a run; '
                         'export: files to deploy; predict: classes of image files.')
# {flag: the modes that it belongs to}
_OF_MODES = {'step': ('evaluate', 'export'), 'integer': ('evaluate',), 'format': ('export',), 'images': ('predict',)}
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint to evaluate or export; by default the newest.')
_INTEGER = flags.DEFINE_bool('integer', None, 'Also evaluate in integers, and count the codes that differ.')
_FORMAT = flags.DEFINE_list('format', None, 'Formats to export, by default all that are installed.')
_IMAGES = flags.DEFINE_list('images', None, 'Image files to classify, e.g. a.jpg,b.png.')


class Command(NamedTuple):
  """One call: a mode of `modes.MODES` and what it works on; None where nothing was said."""
  mode: str
  config: Any = None
  workdir: str = ''
  step: int | None = None
  integer: bool | None = None
  format: list[str] | None = None
  images: list[str] | None = None


def parse(argv):
  """Returns the `Command`, or raises a `UserError` of one line."""
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
    raise UserError(f'{rest[1]!r} is no flag; flags are --config, --config.FIELD, --workdir, --mode, '
                    f'--{", --".join(_OF_MODES)}')
  for name, allowed in _OF_MODES.items():
    if flags.FLAGS[name].value is not None and _MODE.value not in allowed:
      raise UserError(f'--{name}={flags.FLAGS[name].value} belongs to --mode={" or --mode=".join(allowed)}, not to '
                      f'--mode={_MODE.value}; leave it out')
  return Command(_MODE.value, config, _WORKDIR.value or _default_workdir(), _STEP.value, _INTEGER.value, _FORMAT.value,
                 _IMAGES.value)


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
