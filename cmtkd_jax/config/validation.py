"""The checks that refuse a configuration that cannot be honored, by field, value and what is allowed."""

import copy
import difflib
import re

import ml_collections
from ml_collections import config_dict

from cmtkd_jax import options
from cmtkd_jax.config import durations, sections
from cmtkd_jax.config.defaults import default, flat
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import parse_rules
from cmtkd_jax.quantizers import Quantizer

# The part of a field's name that says to which run of a chain or table it belongs.
_RUN = re.compile(r'^(?:(?:prerequisites|table\.runs)\.[^.]+\.)+')


def check(config):
  """Raises `UserError`, naming field, value and what is allowed, for a configuration that cannot be honored."""
  values, known = config.to_dict(), sections.fields()
  given = flat(values)
  for field in given:
    if field not in known:
      check_field(field)
  for field, option in known.items():
    if field not in given and not isinstance(option.default, dict):
      raise UserError(f'config.{field} is missing; start the config file from cmtkd_jax.config.default()')
  for section in sections.SECTIONS:
    _create(values, section)
  for field, option in known.items():
    if count := option.allowed.get('durations'):
      durations.check(given[field], f'config.{field}', several=count == 'several')
  together = values['batch_size'] // values['grad_accum_steps']
  if together % (groups := values['model']['bn_groups']):
    raise UserError(
      f'config.model.bn_groups={groups!r} does not divide the {together} images that are normalized together '
      '(config.batch_size / config.grad_accum_steps); take a divisor'
    )
  parse_rules(values['bits']['rules'])


def create(config, section):
  """Returns the options of `config.<section>`, e.g. 'optimizer' or 'method.kd', as an object of their class.

  Raises:
    UserError: a value is not allowed.
  """
  return _create(config.to_dict(), section)


def _create(values, section):
  cls = sections.SECTIONS[section]
  for name in filter(None, section.split('.')):
    values = values[name]
  others = {'bits': cls.bit_widths[-1]} if issubclass(cls, Quantizer) else {}
  return options.create(cls, section, values, **others)


def run_of(field):
  """Returns the part of `field` that says to which run of a chain or table it belongs, 'table.runs.NAME.'; else ''."""
  return match[0] if (match := _RUN.match(field)) else ''


def check_field(field):
  """Raises `UserError` unless `field`, such as 'optimizer.learning_rate', is a field of the base configuration."""
  known = sections.fields()
  run = run_of(field)
  field = field.removeprefix(run)
  if field not in known:
    parent = field
    while parent and not any(name.startswith(f'{parent}.') for name in known):
      parent = parent.rpartition('.')[0]
    prefix = f'{parent}.' if parent else ''
    names = sorted({name.removeprefix(prefix).split('.')[0] for name in known if name.startswith(prefix)})
    if parent == field:
      fields = ', '.join(f'config.{field}.{name}' for name in sorted(names, key='name'.__ne__))
      raise UserError(f'config.{run}{field} is a section; set a field of it: {fields}')
    close = suggest(field, settable=True)
    hint = f', perhaps config.{close}' if close else ''
    listed = f'; fields of config{prefix and "."}{parent} are {", ".join(names)}' if parent or not close else ''
    raise UserError(f'config.{run}{field}: there is no such field{hint}{listed}')


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
  'pretrained': 'init_from',
  'first': 'prerequisites',
  'teacher': 'teacher_workdirs',
  'teachers': 'teacher_workdirs',
  'resident': 'on_device',
  'bits': 'student.weight_bits',
  'wbits': 'student.weight_bits',
  'abits': 'student.activation_bits',
  'w_bits': 'student.weight_bits',
  'a_bits': 'student.activation_bits',
}


def suggest(name, settable=False):
  """Returns the field or section that `name`, a word that is neither, most likely means; '' if none is near.

  Args:
    name: the word.
    settable: whether only a field will do.
  """
  known = sections.fields()
  if f'{name}.name' in known:  # a section, of which one is selected by name
    return f'{name}.name'
  own = f'method.{known["method.name"].default}.'  # of methods, this library's own comes first
  is_other = lambda field: not field.startswith(own)
  if moved := next((field for field in sorted(known, key=is_other) if field.endswith(f'.{name}')), ''):
    return moved
  name = name.lower().replace('-', '_')
  if '.' in name and (inside := _inside(name, known)):
    return inside
  leaf = name.rpartition('.')[2]
  leaf = _SYNONYMS.get(leaf, leaf)
  fields = sorted(known, key=lambda field: (field.count('.'), is_other(field), field))
  for close in (leaf, *difflib.get_close_matches(leaf, [field.rpartition('.')[2] for field in fields], 1, 0.75)):
    found = next((field for field in fields if field == close or field.endswith(f'.{close}')), '')
    if found:
      return found
  all_sections = {field.rsplit('.', above)[0] for field in known for above in range(1, 1 + field.count('.'))}
  section = next(iter(difflib.get_close_matches(name, sorted(all_sections), 1, 0.75)), '')
  if settable:
    return f'{section}.name' if f'{section}.name' in known and '.' not in name else ''
  return section


def _inside(name, known):
  """The field of `known` that a dotted `name` means, within the sections that it names or nearly names, or ''."""
  section = ''
  *parts, leaf = name.split('.')
  for part in parts:
    children = {field[len(section) :].split('.')[0] for field in known if field.startswith(section)}
    inner = sorted(child for child in children if f'{section}{child}' not in known)
    if not (close := [part] if part in inner else difflib.get_close_matches(part, inner, 1, 0.75)):
      return ''
    section += f'{close[0]}.'
  chosen = known[f'{section}name'].default if f'{section}name' in known else ''  # comes first
  fields = sorted(
    (field for field in known if field.startswith(section)),
    key=lambda field: (field.count('.'), not field.startswith(f'{section}{chosen}.'), field),
  )
  leaves = [field.rpartition('.')[2] for field in fields]
  meant = difflib.get_close_matches(leaf, leaves, 1, 0.75)  # the word itself, if it is there
  meant += [other for other in leaves if len(leaf) > 2 and other.startswith(leaf)]
  return fields[leaves.index(meant[0])] if meant else ''


# A run of a chain or table, or all of them.
_RUNS = re.compile(r'(?:(?:prerequisites|table\.runs)\.[^.]+\.)*(?:prerequisites|table\.runs)(?:\.[^.]+)?')


def check_settable(field):
  """Raises `UserError` unless `field`, which may be one of a run of a chain or table, can be set by a flag."""
  if _RUNS.fullmatch(field):
    raise UserError(
      f'--config.{field}: a whole dict cannot be set on the command line; set single fields of a run, such as '
      '--config.prerequisites.NAME.seed=1, or change the config file'
    )
  check_field(field)


def add_to_run(config, field):
  """Lets a run of a chain or table have `field`, such as 'prerequisites.teacher.seed', with the configuration's value.

  Other fields, and those that the run has, stay as they are.

  Raises:
    UserError: there is no such run.
  """
  if not (match := _RUN.match(field)):
    return
  place, name = config, field[match.end() :]
  for of, run in re.findall(r'(prerequisites|table\.runs)\.([^.]+)\.', match[0]):
    runs = place.get('prerequisites', {}) if of == 'prerequisites' else place.get('table', {}).get('runs', {})
    check_runs(runs)
    if run not in runs:
      raise UserError(f'--config.{field}: there is no run {run!r}; runs of config.{of} are {", ".join(runs) or "none"}')
    with config.unlocked():
      place = _own(runs, run)
  with config.unlocked():
    *above, leaf = name.split('.')
    for section in above:
      place, config = _own(place, section), config[section]
    if leaf not in place:
      place[leaf] = config_dict.placeholder(float) if config[leaf] is None else config[leaf]


def _own(place, name):
  """The section `name` of `place`, made where there is none; where runs share one, as from one dict, a copy of it."""
  place[name] = copy.deepcopy(place[name]) if name in place else ml_collections.ConfigDict()
  return place[name]


def check_runs(runs):
  """Raises `UserError` unless `runs`, of `config.prerequisites` or `config.table`, are dicts of changes by name."""
  for name, changes in runs.items():
    if not isinstance(changes, ml_collections.ConfigDict):
      raise UserError(
        f'config.prerequisites and config.table.runs: {name}={changes!r} must be a dict of changes, such as '
        "dict(method=dict(name='single'))"
      )


def _is_of_the_student(pattern):
  try:
    return re.fullmatch(pattern, STUDENT) is not None
  except (re.error, TypeError):  # refused below, with all that is wrong
    return True


def derive(config, changes):
  """Returns the checked configuration of one run of a chain or table: `config` with `changes`, and without its plans.

  What `config` says of its own networks does not reach runs of others: a run of another method has the schedules of the
  loss that `changes` give it, and no others, and `remat` only where it names the student, which all have. A run whose
  student has other bits, such as a full-precision teacher, has the `bits.rules` of `changes`.

  Raises:
    UserError: a field does not exist, or does not fit.
  """
  derived = config.copy_and_resolve_references()
  with derived.unlocked(), derived.ignore_type():
    derived.prerequisites, derived.table = default().prerequisites, default().table
    changed = flat(ml_collections.ConfigDict(changes))
    if 'method.name' in changed and changed['method.name'] != config.method.name:
      for name in sections.SCHEDULES:  # of the loss of that method
        derived[name] = default()[name]
      if not _is_of_the_student(config.get('remat', '')):
        derived.remat = ''
    for field, value in changed.items():
      if field.split('.')[0] != 'prerequisites':
        check_field(field)
        derived.update_from_flattened_dict({field: value})
    derived.prerequisites = ml_collections.ConfigDict(changes.get('prerequisites', {}))
  if derived.get('student') != config.get('student') and 'bits.rules' not in changed:
    derived.bits.rules = ()
  check(derived)
  return derived
