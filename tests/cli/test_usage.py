"""`--help`, and arguments that are not flags."""

import pathlib
import sys

import pytest
from absl.testing import flagsaver

from cmtkd_jax import main
from cmtkd_jax.cli import commands, flags
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def flags_as_they_were():
  with flagsaver.flagsaver():
    yield


@pytest.mark.parametrize('flag', ['--help', '-h', '--helpfull'])
def test_help_fits_a_screen_and_names_every_mode_and_flag(capsys, flag):
  with pytest.raises(SystemExit) as ended:
    main.main(['main', '--config=/absent.py', flag])
  assert not ended.value.code
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) <= 45 and max(map(len, lines)) <= 115
  first = {line.split()[0] for line in lines if line.startswith('  ')}
  assert first >= commands.MODES.keys()
  own = {f'--{flag.name}' for flag in flags.flags.FLAGS.get_flags_for_module(flags.__name__)}
  assert first >= own - {'--mode'} and len(own) > 10


def test_arguments_that_are_not_flags():
  command = flags.parse(['main', '--mode=predict', '--workdir=/a', 'b.png', 'c', '--images=d.png,e.png'])
  assert command.images == ['d.png', 'e.png'] and command.arguments == ('b.png', 'c') and command.output == 'text'
  assert flags.parse(['main', '--mode=predict', '--workdir=/a', 'b.png', '--output=csv']).output == 'csv'


@pytest.mark.parametrize(
  'flag, modes', [('--output=csv', '--mode=predict or --mode=summarize'), ('--topology=v5e:2x2', '--mode=plan')]
)
def test_flags_of_another_mode_are_refused(flag, modes):
  name = flag.partition('=')[0]
  with pytest.raises(UserError, match=f'{name}=.* belongs to {modes}, not to --mode=train'):
    flags.parse(['main', '--workdir=/a', flag])


@pytest.mark.parametrize('mode, output', [('predict', 'markdown'), ('summarize', 'csv')])
def test_forms_that_a_mode_does_not_print(mode, output):
  with pytest.raises(UserError, match=rf'--output={output}: --mode={mode} prints text, \w+, json; choose one'):
    flags.parse(['main', '--workdir=/a', f'--mode={mode}', f'--output={output}'])


def test_fields_that_are_not_flags():
  assert flags.parse(['main', '--mode=config', 'quantizer.lsq']).arguments == ('quantizer.lsq',)


def test_config_prints_what_is_asked_for(capsys):
  assert main.main(['main', '--mode=config', 'quantizer.lsq', 'config.optimizer.momentum']) == 0
  lines = capsys.readouterr().out.splitlines()
  fields = [line.split()[0] for line in lines if line.startswith('  ') and '.' in line.split()[0]]
  assert fields == ['optimizer.momentum', 'quantizer.lsq.weight.per_channel', 'quantizer.lsq.activation.count']
  assert main.main(['main', '--mode=config', 'quantizer.lqs']) == 2
  assert 'neither a field nor a section' in capsys.readouterr().err
  assert main.main(['main', '--mode=config', 'momentum']) == 2
  assert 'did you mean optimizer.momentum?' in capsys.readouterr().err


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize(
  'argument, field, value',
  [
    ('duration=20 epochs', 'duration', '20 epochs'),
    ('student.weight_bits=8', 'student.weight_bits', 8),  # which the run changes
    ('optimizer.grad_clip_norm=2.5', 'optimizer.grad_clip_norm', 2.5),  # which is None
    ('method.kd.temperature=3', 'method.kd.temperature', 3.0),  # below a section that the run changes
    ('data.mean=(0.1,)', 'data.mean', (0.1,)),
    ('tensorboard=False', 'tensorboard', False),
  ],
)
def test_fields_of_a_run_of_a_chain(monkeypatch, argument, field, value):
  arguments = ['main', f'--config={ROOT}/configs/digits_kd.py', f'--config.prerequisites.teacher.{argument}']
  monkeypatch.setattr(sys, 'argv', arguments)  # where config flags look
  config = flags.parse(arguments).config
  found = chain.prerequisite(config, 'teacher').to_dict()
  default = config.to_dict()
  for name in field.split('.'):
    found, default = found[name], default[name]
  assert found == value != default and type(found) is type(value)
  assert chain.prerequisite(config, 'teacher').method.name == 'single' and config.is_locked
