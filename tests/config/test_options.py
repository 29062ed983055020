"""Options: what each line allows, how a wrong value is told, and that every field of the configuration says enough."""

import dataclasses
import re
import sys

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses, methods, models, options, quantizers
from cmtkd_jax.config import sections
from cmtkd_jax.errors import UserError
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Example(Options):
  count: int = option(3, 'a number')
  rate: float = option(0.5, 'a number', above=0)
  share: float = option(0.1, 'a number', least=0, below=1)
  side: int = option(8, 'a number', least=1, most=16)
  clip: float = option(None, 'an optional number', above=0)
  kind: str = option('a', 'a choice', choices=('a', 'b'))
  flag: bool = option(False, 'a switch')
  seeds: tuple = option((0, 1), 'numbers', items=0)
  anything: tuple = option((), 'of any kind')
  pattern: str = option('', 'a pattern', regex=True)
  runs: dict = option({}, 'by name')


@pytest.mark.parametrize(
  'values',
  [
    {},
    dict(count=0, rate=1, share=0, side=16, clip=None, kind='b', flag=True, seeds=(), pattern='a.*', runs={'a': 1}),
    dict(clip=2.5, seeds=[1, 2], anything=('a', (1, 2)), rate=1e-30, share=0.999),
  ],
)
def test_allowed_values_are_kept(values):
  example = Example(**values)
  assert {name: getattr(example, name) for name in values} == values


@pytest.mark.parametrize(
  'field, value, problem',
  [
    ('count', -1, 'must not be negative'),
    ('count', 1.0, 'is float; it must be int, such as 3'),
    ('count', True, 'is bool; it must be int, such as 3'),
    ('count', None, 'is NoneType; it must be int, such as 3'),
    ('count', 10**10, 'must be at most 1e+09'),
    ('rate', 0, 'must be positive'),
    ('rate', float('nan'), 'must be finite'),
    ('rate', float('inf'), 'must be finite'),
    ('share', 1, 'must lie in [0, 1)'),
    ('share', -0.1, 'must lie in [0, 1)'),
    ('side', 0, 'must lie in [1, 16]'),
    ('side', 17, 'must lie in [1, 16]'),
    ('clip', 0.0, 'must be positive'),
    ('clip', 'x', 'is str; it must be float, such as 1.0'),
    ('kind', 'c', "is not one of 'a', 'b'"),
    ('kind', 3, "is int; it must be str, such as 'a'"),
    ('flag', 1, 'is int; it must be True or False'),
    ('seeds', 3, 'is int; it must be tuple, such as (0, 1)'),
    ('seeds', (0, 0.5), 'must hold values like 0'),
    ('pattern', '(', 'is not a regular expression'),
  ],
)
def test_wrong_values_are_refused_by_field_value_and_what_is_allowed(field, value, problem):
  with pytest.raises(ValueError) as e:
    Example(**{field: value})
  assert str(e.value).startswith(f'{field}={value!r} {problem}')
  with pytest.raises(UserError) as e:
    options.create(Example, 'section', {**dataclasses.asdict(Example()), field: value})
  assert str(e.value).startswith(f'config.section.{field}={value!r} {problem}')


def test_descriptions():
  described = {field.name: field.describe() for field in options.fields(Example)}
  assert described == {
    'count': '>= 0',
    'rate': '> 0',
    'share': 'in [0, 1)',
    'side': 'in [1, 16]',
    'clip': '> 0',
    'kind': "one of 'a', 'b'",
    'flag': 'True or False',
    'seeds': 'a tuple of values like 0',
    'anything': '',
    'pattern': 'a regular expression',
    'runs': '',
  }


def test_lists_become_tuples():
  assert options.create(Example, '', {**dataclasses.asdict(Example()), 'seeds': [4]}).seeds == (4,)


def test_an_option_with_an_unknown_bound_is_refused():
  with pytest.raises(TypeError, match='at_most'):
    option(1, 'a number', at_most=3)


def test_options_of_a_class_that_is_no_dataclass_are_refused():
  class Undecorated(Example):
    weight: float = option(100.0, 'of a loss')

  with pytest.raises(TypeError, match=r'Undecorated: weight is an option .*dataclass\(frozen=True\)'):
    options.fields(Undecorated)


def test_a_default_that_is_no_option_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Plain(Example):
    beta: float = 1.0

  with pytest.raises(TypeError, match=r'Plain: beta has a default; give it as option'):
    options.fields(Plain)


def test_dictionaries_are_not_shared():
  Example().runs['x'] = 1
  assert Example().runs == {}


@pytest.mark.parametrize('section', config_lib.SECTIONS)
def test_every_field_has_a_meaning_and_every_default_is_allowed(section):
  cls = config_lib.SECTIONS[section]
  assert cls.__doc__
  for field in options.fields(cls):
    field.check(field.default)
    assert field.doc and not field.doc.endswith('.') and '\n' not in field.doc, field.name


def test_fields_are_those_of_the_base_configuration():
  config = config_lib.default()
  known = {name: field.default for name, field in config_lib.fields().items() if not isinstance(field.default, dict)}
  assert config_lib.flat(config) == known
  assert config.prerequisites.to_dict() == config.table.runs.to_dict() == {}


def test_description_of_a_configuration():
  config = config_lib.default()
  config.optimizer.learning_rate, config.quantizer.activations = 0.25, 'lsq'
  text = config_lib.describe(config)
  (line,) = [line for line in text.splitlines() if ' optimizer.learning_rate ' in line]
  assert line.startswith('*') and '0.25' in line and line.endswith('about 0.001 [> 0]')
  assert 'quantizer.lsq.activation.count' in text and 'quantizer.hwgq.weight.per_channel' in text
  for other in ('quantizer.hwgq.activation', 'quantizer.lsq.weight', 'method.kd.', 'logit_loss.dkd'):
    assert other not in text
  everything = config_lib.describe(config_lib.default(), selected_only=False)
  assert all(f' {name} ' in everything for name in config_lib.fields())


def test_long_values_leave_room_for_the_meaning():
  config = config_lib.default()
  config.table.runs, config.table.lines = {'a': {}}, (('a title', '2/2', 'a', 'student', (None, None)),) * 3
  (line,) = [line for line in config_lib.describe(config).splitlines() if 'table.lines' in line]
  assert '(3 entries)' in line and 'a title' not in line
  assert "('a title', '2/2'" in config_lib.describe(config, wanted=['table.lines'])


def test_the_description_says_what_a_name_stands_for():
  lines = config_lib.describe(config_lib.default(), wanted=['quantizer.name']).splitlines()
  after = lines[lines.index('  quantizer.name can be:') + 1 :]
  found = {line.split()[0]: line.split(maxsplit=1)[1] for line in after if line.startswith('    ')}
  assert found.keys() == quantizers.QUANTIZERS.keys()
  assert found['lsq'] == 'LSQ: learned step size quantization (Esser et al., ICLR 2020).'
  text = config_lib.describe(config_lib.default(), selected_only=False)
  for names in (methods.METHODS, models.MODELS, losses.FEATURE_LOSSES, losses.LOGIT_LOSSES):
    for name in names:
      assert re.search(rf'^    {name} +\w.{{10,}}', text, re.MULTILINE), name


@pytest.mark.parametrize(
  'field, meant',
  [
    ('method', 'method.name'),
    ('cmtkd.alpha', 'method.cmtkd.alpha'),
    ('optimizer.lr', 'optimizer.learning_rate'),
    ('epochs', 'duration'),
    ('data.agument', 'data.augment'),
    ('nothing_like_it', ''),
    ('optimizr', 'optimizer'),
    ('quantizer.lqs', 'quantizer.lsq'),
    ('quantiser.name', 'quantizer.name'),
    ('quantizer.lsq.weights.per_channel', 'quantizer.lsq.weight.per_channel'),
    ('method.cmtkd.temp', 'method.cmtkd.temperature'),
    ('teacher_bits', 'method.cmtkd.teacher_bits'),
  ],
)
def test_suggestions(field, meant):
  assert config_lib.suggest(field) == meant


def test_suggestions_of_what_can_be_set():
  assert config_lib.suggest('optimizr', settable=True) == 'optimizer.name'
  assert config_lib.suggest('quantizer.lqs', settable=True) == ''
  assert config_lib.suggest('optimizer.nothing', settable=True) == ''


@pytest.mark.parametrize('section, table', [('quantizer', quantizers.QUANTIZERS), ('logit_loss', losses.LOGIT_LOSSES)])
def test_a_part_with_the_name_of_a_field_is_refused(section, table, monkeypatch):
  monkeypatch.setitem(table, 'name', next(iter(table.values())))
  with pytest.raises(ValueError, match=f"{section} 'name': config.{section} itself uses this name"):
    sections.selections()


def test_a_loss_named_none_is_refused(monkeypatch):
  monkeypatch.setitem(losses.FEATURE_LOSSES, 'none', losses.FEATURE_LOSSES['fitnet'])
  with pytest.raises(ValueError, match="feature_loss 'none': config.feature_loss itself uses this name"):
    sections.selections()


def test_two_losses_in_one_file_are_refused(tmp_path, monkeypatch):
  kind = 'class {}(base.LogitLoss):\n  def __call__(self, *args):\n    return 0\n'
  code = f'from cmtkd_jax.losses import base\n{kind.format("First")}{kind.format("Second")}'
  (tmp_path / 'twice.py').write_text(code)
  monkeypatch.setattr(losses, '__path__', [*losses.__path__, str(tmp_path)])
  with pytest.raises(TypeError, match='losses.twice has two losses, First and Second; make two files'):
    losses._of_kind(losses.LogitLoss)
  del sys.modules['cmtkd_jax.losses.twice']
