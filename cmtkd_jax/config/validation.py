"""The checks that refuse a configuration that cannot be honored, by field, value and what is allowed."""

import dataclasses
import difflib
import math
import re

import ml_collections

from cmtkd_jax import methods, models, quantizers
from cmtkd_jax.config.defaults import LOSSES, default, flat, known_fields
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import layers
from cmtkd_jax.models.bit_policy import (
  FULL_PRECISION,
  check_bits,
  create_quantizer,
  parse_rules,
  quantizer_class,
  quantizer_names,
)

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
POSITIVE = (
  'batch_size',
  'eval_batch_size',
  'accumulate',
  'keep_checkpoints',
  'model.width',
  'model.bn_groups',
  'optimizer.learning_rate',
  'optimizer.decay_factor',
  'optimizer.gradient_clip',
)
NON_NEGATIVE = ('optimizer.importance_lr_factor', 'optimizer.weight_decay', 'optimizer.weight_decay_low_bits')
RANGES = {'seed': 2**32, 'model.bn_momentum': 1, 'optimizer.momentum': 1}  # from 0 to below this
WIDTHS = (0.01, 64.0)  # of model.width: from one feature a layer to more than any device holds
LARGEST = 1e9  # other numbers: beyond it float32 sums overflow, and int32 counts
ITEMS = {
  'data.mean': 0.5,
  'data.std': 0.5,
  'teachers': 'runs/teacher',
  'table.seeds': 0,
  'table.only': 'single',
  'cmtkd.taps': 5,
  'cmtkd.importance_init': 0.5,
}  # what tuples are made of
REGEXES = ('remat', 'init_from_allow')

# The part of a field's name that says to which run of a chain or table it belongs.
_RUN = re.compile(r'^(?:(?:first|table\.runs)\.[^.]+\.)+')


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
  known = known_fields()
  field = _RUN.sub('', field)
  if field not in known:
    parent = field.rpartition('.')[0]
    while parent and not any(name.startswith(f'{parent}.') for name in known):
      parent = parent.rpartition('.')[0]
    prefix = f'{parent}.' if parent else ''
    names = sorted({name.removeprefix(prefix).split('.')[0] for name in known if name.startswith(prefix)})
    hint = f', perhaps config.{close}' if (close := suggest(field)) else ''
    raise UserError(
      f'config.{field}: there is no such field{hint}; fields of config{prefix and "."}{parent} are {", ".join(names)}'
    )


# What other programs call our fields.
_SYNONYMS = {
  'epochs': 'duration',
  'epoch': 'duration',
  'num_epochs': 'duration',
  'steps': 'duration',
  'num_steps': 'duration',
  'lr': 'learning_rate',
  'wd': 'weight_decay',
  'bs': 'batch_size',
  'arch': 'model.name',
  'dataset': 'data.name',
  'data_dir': 'data.dir',
  'workers': 'num_workers',
  'resume': 'init_from',
  'pretrained': 'init_from',
  'bits': 'student.weight_bits',
  'wbits': 'student.weight_bits',
  'abits': 'student.activation_bits',
  'w_bits': 'student.weight_bits',
  'a_bits': 'student.activation_bits',
}


def suggest(name):
  """Returns the field that `name`, a word that is not a field, most likely means; '' if none is near."""
  leaf = name.rpartition('.')[2].lower().replace('-', '_')
  leaf = _SYNONYMS.get(leaf, leaf)
  fields = sorted(known_fields(), key=lambda field: (field.count('.'), field))
  for close in (leaf, *difflib.get_close_matches(leaf, [field.rpartition('.')[2] for field in fields], 1, 0.75)):
    found = next((field for field in fields if field == close or field.endswith(f'.{close}')), '')
    if found:
      return found
  return ''


def check(config):
  """Raises `UserError`, naming field, value and what is allowed, for a configuration that cannot be honored."""
  known, fields = known_fields(), flat(config)
  for field, value in fields.items():
    check_field(field)
    if _RUN.match(field):  # checked when it is applied to this configuration
      continue
    expected = known[field]
    if expected is not None and not _same_kind(value, expected):
      raise UserError(
        f'config.{field}={value!r} is {type(value).__name__}; '
        f'it must be {type(expected).__name__}, such as {expected!r}'
      )
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
  for name in config.table.only:
    if name not in config.table.runs:
      raise UserError(
        f'config.table.only={config.table.only!r}: there is no run {name!r}; runs are '
        f'{", ".join(config.table.runs) or "none"}'
      )
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
    raise UserError(
      f'config.accumulate={config.accumulate!r} does not divide config.batch_size={config.batch_size!r}; '
      'choose a divisor'
    )
  if config.batch_size // config.accumulate % config.model.bn_groups:
    raise UserError(
      f'config.model.bn_groups={config.model.bn_groups!r} does not divide the '
      f'{config.batch_size // config.accumulate} images that are normalized together (config.batch_size '
      '/ config.accumulate); choose a divisor'
    )
  for field in REGEXES:
    try:
      re.compile(fields[field])
    except re.error as e:
      raise UserError(f'config.{field}={fields[field]!r} is not a regular expression ({e}); fix or empty it') from None
  for field, below in RANGES.items():
    if not 0 <= fields[field] < below:
      raise UserError(f'config.{field}={fields[field]!r} must lie in [0, {below})')
  if config.optimizer.schedule == 'cosine' and config.optimizer.decay_at:
    raise UserError(
      f'config.optimizer.decay_at={config.optimizer.decay_at!r} contradicts '
      "config.optimizer.schedule='cosine'; set it to '', or the schedule to 'step'"
    )
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
      raise UserError(
        f'config.first and config.table.runs: {name}={changes!r} must be a dict of changes, such as '
        "dict(method='single')"
      )


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
