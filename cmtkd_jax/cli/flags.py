"""The flags of the command, which are parsed into a `Command`."""

import os
import pathlib
import re
import sys
import warnings
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from cmtkd_jax import config as config_lib
from cmtkd_jax.cli import commands, flag_errors, output, usage
from cmtkd_jax.config import unread, validation
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runtime import local_file
from cmtkd_jax.runtime.distributed import FROM_ENVIRONMENT, Cluster

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, e.g. configs/digits_resnet8.py[:smoke].')


class _NumberParser(flags.FloatParser):
  """Reads a number, or None: the value of an optional one."""

  def convert(self, argument):
    return None if argument == 'None' else super().convert(argument)


config_flags.register_flag_parser_for_type(float, _NumberParser())


class _ConfigParser(flags.ArgumentParser):
  """Reads a config file; then flags can set every field of its runs, not only those that the file changes."""

  fields = ()  # that flags set

  def __init__(self, parser):
    self._parser = parser

  def parse(self, argument):
    config = self._parser.parse(argument)
    if isinstance(config, ml_collections.ConfigDict):
      for field in self.fields:
        validation.add_to_run(config, field)
    return config

  def flag_type(self):
    return self._parser.flag_type()


flags.FLAGS['config'].parser = _ConfigParser(flags.FLAGS['config'].parser)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; by default runs/CONFIG[_VARIANTS].')
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  list(commands.MODES),
  'What to do, see above; by default train.',
)
_OF_PROCESSES = ('coordinator_address', 'num_processes', 'process_id')
# {flag: the modes that it belongs to}
_OF_MODES = {
  'step': ('evaluate', 'export'),
  'integer': ('evaluate',),
  'format': ('export',),
  'images': ('predict',),
  'topology': ('plan',),
  'output': ('predict', 'summarize'),
  **dict.fromkeys(_OF_PROCESSES, commands.ON_DEVICES),
}
_OUTPUTS = {'predict': ('text', 'csv', 'json'), 'summarize': ('text', 'markdown', 'json')}
_TRAINING = ('train', 'table', 'plan')
_OF_RUNS = ('evaluate', 'export', 'predict', 'report')  # which need no config file
_AS_TRAINED = ('predict', 'report')  # in which no field can be another
_WITH_ARGUMENTS = ('config', 'predict')  # fields, images; a shell has expanded ~ in them
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint to evaluate or export; by default the newest.')
_INTEGER = flags.DEFINE_bool('integer', None, 'Also evaluate in integers, and count the codes that differ.')
_FORMAT = flags.DEFINE_list('format', None, 'Formats to export; by default all but hub whose packages are installed.')
_IMAGES = flags.DEFINE_list('images', None, 'Image files, folders or patterns to classify; --images= can be left out.')
_OUTPUT = flags.DEFINE_enum('output', None, ['text', 'csv', 'json', 'markdown'], 'Format of predictions or a table.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU slice to plan for, e.g. v5e:2x2; by default the devices here.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, unless the scheduler sets it.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes of the run, with --coordinator_address.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Number of this process from 0, with --coordinator_address.')
_INIT_TIMEOUT = flags.DEFINE_integer(
  'init_timeout', 300, 'Seconds to wait for the other processes; by default 300.', lower_bound=1
)

_HELP = {'-h', '--h', '-help', '--help', '--helpfull', '--helpshort'}


class Command(NamedTuple):
  """One call: a mode of `commands.MODES` and what it works on; None where nothing was said."""

  mode: str
  config: Any = None
  workdir: str = ''
  step: int | None = None
  integer: bool | None = None
  format: list[str] | None = None
  images: list[str] | None = None
  output: str = 'text'
  topology: str | None = None
  arguments: tuple[str, ...] = ()
  cluster: Cluster = FROM_ENVIRONMENT


def parse(argv):
  """Returns the `Command`, or raises a `UserError` of one line."""
  if _HELP.intersection(argv[1:]):
    own = flags.FLAGS.get_flags_for_module(__name__)
    output.write(usage.text(commands.MODES, [flag for flag in own if flag.name != 'mode']))
    sys.exit()
  fields = _find(r'^--?(?:no)?config\.([\w.]+)', argv)
  for field in fields:
    validation.check_settable(field)
  _check_fields(fields, _mode(argv))
  config, arguments = _read(argv, fields)
  _check_flags(arguments)
  if _MODE.value == 'predict':
    for image in (*(_IMAGES.value or ()), *arguments):
      _check_store('--images', image)
  if config is not None:
    _check_config(config, fields)
  return Command(
    mode=_MODE.value,
    config=config,
    workdir=_workdirs(),
    step=_STEP.value,
    integer=_INTEGER.value,
    format=_FORMAT.value,
    images=_IMAGES.value and [os.path.expanduser(image) for image in _IMAGES.value],
    output=_OUTPUT.value or 'text',
    topology=_TOPOLOGY.value,
    arguments=arguments,
    cluster=Cluster(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _INIT_TIMEOUT.value),
  )


def _read(argv, fields):
  """Returns (the `ConfigDict` or None, the arguments that are not flags); flags set `fields` of the configuration."""
  _ConfigParser.fields = fields
  _check_config_files(argv)
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', '.*load_module', DeprecationWarning)  # ml_collections' own
      rest = flags.FLAGS(argv)
    config = _CONFIG.value
    getattr(config, 'is_locked', None)  # raises what went wrong in reading the file
  except (Exception, SystemExit) as e:  # a config file is Python, and may raise anything
    raise UserError(flag_errors.describe(e, argv, next(reversed(_config_files(argv)), ''))) from e
  if flags.FLAGS['config'].present and not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f'--config: get_config() returns {type(config).__name__}; return the ConfigDict of '
      'cmtkd_jax.config.default() with your changes'
    )
  return config, tuple(rest[1:])


def _check_config(config, fields):
  """Refuses paths that cannot be reached; prints a note for each of the `fields` that has no effect."""
  for field, value in config_lib.flat(config).items():
    local_file.check_schemes(f'config.{field}', str(value))
  _check_store('config.data.dir', getattr(config.get('data'), 'dir', ''))
  if _MODE.value in _TRAINING and _is_valid(config):  # what is wrong is reported alone
    for field, why in unread.find(config, fields).items():
      print(f'note: --config.{field} has no effect: {why}', file=sys.stderr)


def _is_valid(config):
  try:
    config_lib.check(config)
  except UserError:
    return False
  return True


def _check_flags(arguments):
  """Refuses what does not belong to the mode, and empty values."""
  mode = _MODE.value
  if arguments and mode not in _WITH_ARGUMENTS:
    if re.search(r'\.py(:|$)', arguments[0]):
      raise UserError(f'{arguments[0]!r} is not a flag; did you mean --config={arguments[0]}?')
    raise UserError(
      f'{arguments[0]!r} is not a flag; flags are --config, --config.FIELD, --workdir, --mode, '
      f'--{", --".join(_OF_MODES)}'
    )
  for name, allowed in _OF_MODES.items():
    if flags.FLAGS[name].value is not None and mode not in allowed:
      if name in _OF_PROCESSES:
        raise UserError(
          f'--mode={mode} runs in one process; start it without --{name}={flags.FLAGS[name].value}, or without '
          'launch/local_processes.py, which gives this flag'
        )
      raise UserError(
        f'--{name}={flags.FLAGS[name].value} belongs to --mode={" or --mode=".join(allowed)}, not to '
        f'--mode={mode}; leave it out'
      )
  if _WORKDIR.value is not None and not all(_WORKDIR.value.split(',')):
    raise UserError(f'--workdir={_WORKDIR.value} lacks a directory; name it, or leave the flag out')
  if _FORMAT.value is not None and not all(_FORMAT.value or ['']):
    raise UserError(f'--format={",".join(_FORMAT.value)} lacks a format; name it, or leave the flag out')
  outputs = _OUTPUTS.get(mode, ('text',))
  if (form := _OUTPUT.value or 'text') not in outputs:
    raise UserError(f'--output={form}: --mode={mode} prints {", ".join(outputs)}; choose one of them')


def _find(pattern, argv):
  """Returns the matches of `pattern` in the arguments, joined by line ends: a value may be an argument of its own."""
  return re.findall(pattern, '\n'.join(argv), re.MULTILINE)


def _mode(argv):
  """The value of --mode; before the flags are read, since without --config a field is an unknown flag."""
  return next(reversed(_find(r'^--?mode[=\n](\w+)', argv)), 'train')


def _check_fields(fields, mode):
  """Refuses fields of the configuration that the mode does not read."""
  of_evaluation = [field for field in fields if field.startswith('data.') or field == 'eval_batch_size']
  if fields != of_evaluation and mode in ('evaluate', 'export'):
    field = next(field for field in fields if field not in of_evaluation)
    raise UserError(
      f'--config.{field} does not belong to --mode={mode}, which takes config.data and config.eval_batch_size '
      'alone, the rest from its run; leave it out'
    )
  if fields and mode in _AS_TRAINED:
    raise UserError(
      f'--config.{fields[0]} does not belong to --mode={mode}, which takes the configuration of its run; leave it out'
    )


def _workdirs():
  """The work directories, joined by commas: those of the flag, or the default."""
  # `--workdir=~/x`: a shell expands ~ at the beginning of a word only.
  directories = [os.path.expanduser(part) for part in (_WORKDIR.value or _default_workdir()).split(',')]
  directories = [part.rstrip('/') or part for part in directories]
  for directory in directories:
    if re.search('[\ud800-\udfff]', directory):  # which no checkpoint can be saved in
      raise UserError(f'--workdir={directory} is not UTF-8; choose another name, or a locale such as LC_ALL=C.UTF-8')
    _check_store('--workdir', directory)
  return ','.join(directories)


def _config_files(argv):
  """The paths that --config gives; the last one counts."""
  return _find(r'^--?config[=\n]([^:\n]+)', argv)


def _check_config_files(argv):
  """Raises `UserError` where --config names nothing, or something else than a file: reading a pipe would never end."""
  if _find(r'^--?config[=\n](?::|$)', argv):
    raise UserError('--config= lacks a config file; name one, e.g. --config=configs/digits_resnet8.py')
  for path in _config_files(argv):
    if kind := local_file.not_a_file(path):
      raise UserError(
        f'--config: {path} is {kind}, not a file; name a config file, e.g. --config=configs/digits_resnet8.py'
      )


def _check_store(field, path):
  """Raises `UserError` where a path on object storage cannot be reached."""
  if '://' not in str(path):
    return
  local_file.check_schemes(field, path)
  try:
    epath.Path(path).exists()
  except ImportError as e:  # without TensorFlow, fsspec reads it, with a package for each kind of storage
    raise UserError(f'{field}={path}: {one_line(e)}; pip install the package, or use a local path') from e
  except Exception as e:  # as many kinds as there are storages
    reason = one_line(f'{type(e).__name__}: {e}', 200)
    raise UserError(f'{field}={path} cannot be reached ({reason}); check its name and your credentials') from e


def _default_workdir():
  """runs/<config file>, with the argument after the colon; of a path there, its last part."""
  if _CONFIG.value is None:
    if _MODE.value == 'config':
      return ''
    if _MODE.value in _OF_RUNS:
      raise UserError('--workdir is missing; name the directory of a run, e.g. --workdir=runs/digits_resnet8')
    raise UserError(commands.CONFIG_MISSING)
  path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
  words = [pathlib.PurePath(word).name for word in (path.removesuffix('.py'), *argument.split(','))]
  return os.path.join('runs', '_'.join(filter(None, words)))
