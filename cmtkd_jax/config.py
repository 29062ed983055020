"""The base configuration, how a config file changes it, and the checks that refuse what cannot be honoured."""

import dataclasses
import difflib
import functools
import json
import math
import pathlib
import re
import runpy

import ml_collections
from ml_collections import config_dict

from cmtkd_jax import layers, local_file, losses, methods, models, options, quantizers
from cmtkd_jax.bit_policy import (FULL_PRECISION, QUANTIZER_ROLES, check_bits, create_quantizer, parse_rules,
                                  quantizer_class, quantizer_names)
from cmtkd_jax.errors import UserError

CHOICES = {
    'method': tuple(methods.METHODS),
    'dtype': ('float32', 'bfloat16'),
    'model.name': tuple(models.MODELS),
    'model.stem': ('cifar', 'imagenet'),
    'model.block_order': tuple(models.ORDERS),
    'model.init': tuple(layers.INITIALIZERS),
    'bits.first_last': (FULL_PRECISION, 8),
    'bits.shortcut': ('quantized', 'full_precision'),
    'quantizer.name': tuple(quantizers.QUANTIZERS),
    'quantizer.weights': ('', *quantizers.QUANTIZERS),
    'quantizer.activations': ('', *quantizers.QUANTIZERS),
    'optimizer.schedule': ('step', 'cosine'),
    'data.pad_mode': ('zeros', 'reflect', 'symmetric'),
    'data.workers': ('threads', 'processes'),
    'data.decoder': ('pil', 'tensorflow'),
}
POSITIVE = ('batch_size', 'eval_batch_size', 'accumulate', 'keep_checkpoints', 'model.width', 'model.bn_groups',
            'optimizer.learning_rate', 'optimizer.decay_factor', 'optimizer.gradient_clip')
NON_NEGATIVE = ('optimizer.importance_lr_factor', 'optimizer.weight_decay', 'optimizer.weight_decay_low_bits')
RANGES = {'seed': 2**32, 'model.bn_momentum': 1, 'optimizer.momentum': 1}  # from 0 to below this
WIDTHS = (0.01, 64.0)  # of model.width: from one feature a layer to more than any device holds
LARGEST = 1e9  # other numbers: beyond it float32 sums overflow, and int32 counts
ITEMS = {'data.mean': 0.5, 'data.std': 0.5, 'teachers': 'runs/teacher', 'table.seeds': 0, 'table.only': 'single',
         'cmtkd.taps': 5, 'cmtkd.importance_init': 0.5}  # what tuples are made of
REGEXES = ('remat', 'init_from_allow')


LOSSES = {'feature_loss': losses.FEATURE_LOSSES, 'logit_loss': losses.LOGIT_LOSSES}

# The part of a field's name that says to which run of a chain or table it belongs.
_RUN = re.compile(r'^(?:(?:first|table\.runs)\.[^.]+\.)+')


def default():
  """Returns the base `ConfigDict`: CMT-KD with HWGQ, a 2-bit student and 4/6/8-bit teachers, on the digits."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.method = 'cmtkd'
  # Of convolutions; parameters, statistics, the classifier and losses are float32. bfloat16 has 8 significant bits, so
  # that maps of 6 to 8 bits lose some of their levels in it.
  config.dtype = 'float32'
  config.init_from = ''  # a work directory, or 'student=DIR,teacher1_4bit=DIR': start from trained networks
  config.init_from_allow = ''  # regex of parameters that may be missing or mismatched there
  config.teachers = ()  # work directories of finished runs, for the methods that learn from trained teachers
  # Runs that come first, {name: changes to this configuration}; '{name}' in init_from and teachers is their directory.
  config.first = ml_collections.ConfigDict()

  config.data = dict(
      name='digits',  # 'digits', a tfds name, 'folder:PATH', 'npy:PATH', 'generated:HxWxC:CLASSES:N'
      dir='',  # tfds data_dir
      minival=0.0,  # fraction of train held out, for choosing
      augment='pad_crop', pad=1, pad_mode='zeros', image_size=8, resize=0, mean=(0.5,), std=(0.5,),
      resident='auto', num_workers=4,
      workers='threads',  # that read and decode where images stream; 'processes' where one Python is too slow
      decoder='pil',  # of streamed images; 'tensorflow' is faster, resizes without antialiasing, and must be installed
      max_corrupt=0.01)  # share of training images that may be broken, and are replaced by the next ones
  config.model = dict(
      name='resnet8', width=1.0, stem='cifar', block_order='pre', init='he_fan_out', bn_affine=True, bn_momentum=0.9,
      bn_groups=1)  # statistics of the whole batch; of so many parts of it: as many as devices = each for itself
  config.student = dict(weight_bits=2, activation_bits=2)
  config.bits = dict(
      first_last=32, shortcut='quantized',
      rules=())  # ordered (regex on 'student/stage1/..', weight bits, activation bits); the first match wins

  config.quantizer = dict(name='hwgq', weights='', activations='')  # the last two where one role has another quantizer
  for name, module in quantizers.QUANTIZERS.items():
    roles = {role: getattr(module, role.capitalize(), None) for role in QUANTIZER_ROLES}
    config.quantizer[name] = {role: options.defaults(cls, but=('bits',)) for role, cls in roles.items() if cls}
  for kind, table in LOSSES.items():
    config[kind] = {name: options.defaults(cls) for name, cls in table.items()}
  for name, module in methods.METHODS.items():
    config[name] = options.defaults(module.Settings)

  config.optimizer = dict(
      learning_rate=0.1, momentum=0.9, nesterov=False, schedule='step', decay_at='', decay_factor=0.1, warmup='',
      importance_lr_factor=0.1, weight_decay=1e-4,
      weight_decay_low_bits=25e-6,  # of networks whose weights have 1 or 2 bits
      gradient_clip=config_dict.placeholder(float))
  config.batch_size = 64
  config.eval_batch_size = 256
  # What saves memory, at the price of time.
  config.accumulate = 1  # parts of the batch that are computed one after the other, and their gradients averaged
  config.remat = ''  # regex of networks whose maps are computed again in the backward pass: 'teacher.*', '.*'
  # Durations: '120 epochs', '3000 steps' or '1000000 examples'.
  config.duration = '60 epochs'
  config.log_every = '50 steps'
  config.eval_every = '10 epochs'
  config.checkpoint_every = '10 epochs'
  config.keep_checkpoints = 2
  config.profile = ''  # e.g. '10 steps': after a few steps, record so many with JAX's profiler into WORKDIR/profile
  config.allow_changes = False  # go on in a work directory of another configuration
  config.tensorboard = True  # also write TensorBoard files where clu and TensorFlow are installed

  # A table of runs (--mode=table): {name: changes to this configuration}, and its lines, see report/table.py.
  config.table = dict(title='', seeds=(0, 1, 2), only=(), runs={}, lines=())
  return config


def settings(config, name):
  """Returns the checked `Settings` of method `name`, from `config.<name>`.

  Raises:
    UserError: a value is not one of its choices, or out of range.
  """
  cls, values = methods.METHODS[name].Settings, config[name]
  for field, allowed in getattr(cls, 'choices', {}).items():
    _check_choice(f'{name}.{field}', values[field], allowed)
  for field in dataclasses.fields(cls):
    value = values[field.name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      lowest = 'be positive' if 'temperature' in field.name or 'power' in field.name else 'not be negative'
      if value < 0 or value == 0 and lowest == 'be positive':
        raise UserError(f'config.{name}.{field.name}={value!r} must {lowest}')
  return cls(**values)


def check_field(field):
  """Raises `UserError` unless `field`, such as 'optimizer.learning_rate', is a field of the base configuration."""
  known = _known()
  field = _RUN.sub('', field)
  if field not in known:
    parent = field.rpartition('.')[0]
    while parent and not any(name.startswith(f'{parent}.') for name in known):
      parent = parent.rpartition('.')[0]
    prefix = f'{parent}.' if parent else ''
    names = sorted({name.removeprefix(prefix).split('.')[0] for name in known if name.startswith(prefix)})
    hint = f', perhaps config.{close}' if (close := suggest(field)) else ''
    raise UserError(f'config.{field}: there is no such field{hint}; fields of config{prefix and "."}{parent} are '
                    f'{", ".join(names)}')


# What other programs call our fields.
_SYNONYMS = {'epochs': 'duration', 'epoch': 'duration', 'num_epochs': 'duration', 'steps': 'duration',
             'num_steps': 'duration', 'lr': 'learning_rate', 'wd': 'weight_decay', 'bs': 'batch_size',
             'arch': 'model.name', 'dataset': 'data.name', 'data_dir': 'data.dir', 'workers': 'num_workers',
             'resume': 'init_from', 'pretrained': 'init_from',
             'bits': 'student.weight_bits', 'wbits': 'student.weight_bits',
             'abits': 'student.activation_bits', 'w_bits': 'student.weight_bits', 'a_bits': 'student.activation_bits'}


def suggest(name):
  """Returns the field that `name`, a word that is not a field, most likely means; '' if none is near."""
  leaf = name.rpartition('.')[2].lower().replace('-', '_')
  leaf = _SYNONYMS.get(leaf, leaf)
  fields = sorted(_known(), key=lambda field: (field.count('.'), field))
  for close in (leaf, *difflib.get_close_matches(leaf, [field.rpartition('.')[2] for field in fields], 1, 0.75)):
    found = next((field for field in fields if field == close or field.endswith(f'.{close}')), '')
    if found:
      return found
  return ''


def check(config):
  """Raises `UserError`, naming field, value and what is allowed, for a configuration that cannot be honoured."""
  known, fields = _known(), flat(config)
  for field, value in fields.items():
    check_field(field)
    if _RUN.match(field):  # checked when it is applied to this configuration
      continue
    expected = known[field]
    if expected is not None and not _same_kind(value, expected):
      raise UserError(f'config.{field}={value!r} is {type(value).__name__}; '
                      f'it must be {type(expected).__name__}, such as {expected!r}')
    if field in ITEMS and not all(_same_kind(item, ITEMS[field]) for item in value):
      raise UserError(f'config.{field}={value!r} must hold values like {ITEMS[field]!r}')
    for number in value if field in ITEMS else (value,):
      if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f'config.{field}={value!r} must be finite')
      if isinstance(number, (int, float)) and field not in RANGES and abs(number) > LARGEST:
        raise UserError(f'config.{field}={value!r} must lie between -{LARGEST:g} and {LARGEST:g}')
  for field in known:
    if field not in fields:
      raise UserError(f'config.{field} is missing; start the config file from cmtkd_jax.config.default()')
  for field, allowed in CHOICES.items():
    _check_choice(field, fields[field], allowed)
  for field in POSITIVE:
    if fields[field] is not None and not fields[field] > 0:
      raise UserError(f'config.{field}={fields[field]!r} must be positive')
  for field in NON_NEGATIVE:
    if not fields[field] >= 0:
      raise UserError(f'config.{field}={fields[field]!r} must not be negative')
  if not WIDTHS[0] <= config.model.width <= WIDTHS[1]:
    raise UserError(f'config.model.width={config.model.width!r} must lie between {WIDTHS[0]:g} and {WIDTHS[1]:g}')
  if config.batch_size % config.accumulate:
    raise UserError(f'config.accumulate={config.accumulate!r} does not divide config.batch_size={config.batch_size!r}; '
                    'choose a divisor')
  if config.batch_size // config.accumulate % config.model.bn_groups:
    raise UserError(f'config.model.bn_groups={config.model.bn_groups!r} does not divide the '
                    f'{config.batch_size // config.accumulate} images that are normalised together (config.batch_size '
                    '/ config.accumulate); choose a divisor')
  for field in REGEXES:
    try:
      re.compile(fields[field])
    except re.error as e:
      raise UserError(f'config.{field}={fields[field]!r} is no regular expression ({e}); mend or empty it') from None
  for field, below in RANGES.items():
    if not 0 <= fields[field] < below:
      raise UserError(f'config.{field}={fields[field]!r} must lie in [0, {below})')
  if config.optimizer.schedule == 'cosine' and config.optimizer.decay_at:
    raise UserError(f"config.optimizer.decay_at={config.optimizer.decay_at!r} contradicts "
                    "config.optimizer.schedule='cosine'; set it to '', or the schedule to 'step'")
  for field in ('weight_bits', 'activation_bits'):
    check_bits(config.student[field], f'config.student.{field}')
  parse_rules(config.bits.rules)
  for role, name in quantizer_names(config.quantizer).items():
    if role in config.quantizer[name]:
      create_quantizer(name, role, quantizer_class(name, role).widths[-1], config.quantizer[name][role].items())
  for kind, table in LOSSES.items():
    for name, cls in table.items():
      try:
        cls(**config[kind][name])
      except ValueError as e:
        raise UserError(f'config.{kind}.{name}.{e}') from None
  settings(config, config.method)


def check_runs(runs):
  """Raises `UserError` unless `runs`, of `config.first` or `config.table`, are dicts of changes by name."""
  for name, changes in runs.items():
    if not isinstance(changes, ml_collections.ConfigDict):
      raise UserError(f'config.first and config.table.runs: {name}={changes!r} must be a dict of changes, such as '
                      "dict(method='single')")


def derive(config, changes):
  """Returns the checked configuration of one run of a chain or table: `config` with `changes`, and without its plans.

  Raises:
    UserError: a field does not exist, or does not fit.
  """
  derived = config.copy_and_resolve_references()
  with derived.unlocked(), derived.ignore_type():
    derived.first, derived.table = default().first, default().table
    for field, value in flat(ml_collections.ConfigDict(changes)).items():
      if field.split('.')[0] != 'first':
        check_field(field)
        derived.update_from_flattened_dict({field: value})
    derived.first = ml_collections.ConfigDict(changes.get('first', {}))
  check(derived)
  return derived


def to_json(config):
  """Returns `config` as indented JSON text."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text):
  """Returns the `ConfigDict` that `to_json` wrote, checked."""
  config = default()
  try:
    with config.unlocked():
      _assign(config, json.loads(text))
  except (AttributeError, TypeError, OverflowError) as e:  # fields where there is a number, or 10^400
    raise UserError(f'the stored configuration is damaged ({" ".join(str(e).split())}); restore it, or train in '
                    'another --workdir') from None
  check(config)
  return config


def difference(a, b, but=()):
  """Returns lines 'field: value in a -> value in b' of the fields, `but` for some, in which configurations differ."""
  a, b = flat(a), flat(b)
  return [f'{field}: {a.get(field)!r} -> {b.get(field)!r}' for field in sorted(a.keys() | b.keys())
          if field not in but and _tuples(a.get(field)) != _tuples(b.get(field))]


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


def neighbour(path, name, argument=''):
  """Returns the configuration of file `name`, a path without suffix, seen from the folder of config file `path`."""
  file = pathlib.Path(path).parent / f'{name}.py'
  if kind := local_file.not_a_file(file):
    raise UserError(f'--config: {file} is {kind}, not a file; put a config file there')
  return runpy.run_path(str(file))['get_config'](argument)


def smoke(config, image_size, channels=3, classes=10):
  """Shrinks `config` to a few seconds anywhere: generated images, narrow layers, two teachers, three steps."""
  config.data.name = f'generated:{image_size}x{image_size}x{channels}:{classes}:48'
  config.data.image_size, config.data.resize = image_size, 0
  if config.data.augment in ('inception_crop_flip', 'resize_crop_flip'):
    config.data.augment = 'pad_crop_flip'
  config.model.width = min(config.model.width, 8 / 64)
  for name in methods.METHODS:
    for field in ('teacher_bits', 'peer_bits'):
      if field in config[name]:
        config[name][field] = config[name][field][::2]
  config.ctkd.teacher_model = config.model.name
  for changes in config.first.values():
    if 'model' in changes:
      del changes.model  # every network is the student's
  config.table.seeds = config.table.seeds[:1]
  config.batch_size = config.eval_batch_size = 16
  config.duration, config.optimizer.warmup = '3 steps', ''
  if config.optimizer.schedule == 'step':
    config.optimizer.decay_at = '2 steps'
  config.log_every = '1 steps'
  config.eval_every = config.checkpoint_every = '3 steps'
  config.optimizer.learning_rate = min(config.optimizer.learning_rate, 0.01)
  config.tensorboard = False


def flat(config, prefix=''):
  """Returns `{'optimizer.momentum': value}` of all fields."""
  fields = {}
  for name, value in config.items():
    nested = isinstance(value, ml_collections.ConfigDict)
    fields |= flat(value, f'{prefix}{name}.') if nested else {f'{prefix}{name}': value}
  return fields


@functools.cache
def _known():
  return flat(default())


def _same_kind(value, expected):
  if isinstance(expected, bool) or isinstance(value, bool):
    return isinstance(expected, bool) and isinstance(value, bool)
  if isinstance(expected, float):
    return isinstance(value, (int, float))
  if isinstance(expected, tuple):
    return isinstance(value, (tuple, list))
  return isinstance(value, type(expected))


def _check_choice(field, value, allowed):
  if value not in allowed:
    raise UserError(f'config.{field}={value!r} is not allowed; it is one of {", ".join(map(repr, allowed))}')


def _assign(config, values):
  for name, value in values.items():
    section = isinstance(config.get(name), ml_collections.ConfigDict)
    if name in config and section != isinstance(value, dict):
      raise TypeError(f'{name} is a {type(value).__name__}')
    if section:
      _assign(config[name], value)
    else:
      config[name] = _tuples(value)


def _tuples(value):
  return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
