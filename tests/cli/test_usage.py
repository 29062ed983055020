"""`--help`, and arguments that are not flags."""

import logging
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import pytest
from absl.testing import flagsaver

from cmtkd_jax import config as config_lib
from cmtkd_jax import main
from cmtkd_jax.cli import commands, flags
from cmtkd_jax.cli import output as output_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain, table, table_text

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


def test_the_file_by_its_path():
  ended = subprocess.run([sys.executable, ROOT / 'cmtkd_jax' / 'main.py'], capture_output=True, text=True, check=False)
  assert ended.returncode == 2 and ended.stderr.count('\n') == 1 and '`python -m cmtkd_jax.main`' in ended.stderr


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


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # ml_collections loads config files so
@pytest.mark.parametrize('mode, noted', [('train', True), ('plan', True), ('bits', False)])
def test_a_field_that_no_run_reads_is_noted(monkeypatch, capsys, mode, noted):
  arguments = ['main', f'--mode={mode}', '--config=configs/digits_resnet8.py', '--workdir=/a']
  arguments += ['--config.quantizer.lsq.weight.per_channel=True', '--config.method.cmtkd.beta=1.0']
  monkeypatch.setattr(sys, 'argv', arguments)  # where config flags look
  monkeypatch.chdir(ROOT)
  assert flags.parse(arguments).config.quantizer.lsq.weight.per_channel
  note = "note: --config.quantizer.lsq.weight.per_channel has no effect: config.quantizer.name is 'hwgq'\n"
  assert capsys.readouterr().err == (note if noted else '')


def test_warnings_look_like_notes_and_errors(monkeypatch, capsys):
  package = logging.getLogger('cmtkd_jax')
  monkeypatch.setattr(package, 'handlers', [])
  monkeypatch.setattr(package, 'propagate', True)
  output_lib.show_warnings()
  logging.getLogger('cmtkd_jax.runs.checkpoint').warning('%s is damaged', 'checkpoints/3')
  assert capsys.readouterr().err == 'warning: checkpoints/3 is damaged\n'


def test_fields_that_are_not_flags():
  assert flags.parse(['main', '--mode=config', 'quantizer.lsq']).arguments == ('quantizer.lsq',)


def test_config_prints_what_is_asked_for(capsys):
  assert main.main(['main', '--mode=config', 'quantizer.lsq', 'config.optimizer.momentum']) == 0
  lines = capsys.readouterr().out.splitlines()
  fields = [line.split()[0] for line in lines if line.startswith('  ') and '.' in line.split()[0]]
  assert fields == ['optimizer.momentum', 'quantizer.lsq.weight.per_channel', 'quantizer.lsq.activation.count']
  assert main.main(['main', '--mode=config', 'quantizer.dorefa', 'logit_loss.kl_divergence']) == 0
  text = capsys.readouterr().out
  for section in ('quantizer.dorefa.weight', 'quantizer.dorefa.activation', 'logit_loss.kl_divergence'):
    assert re.search(rf'^config.{section}: .+\n  has no options$', text, re.MULTILINE)
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


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize('place', ['', 'prerequisites.teacher.'])
def test_an_optional_number_can_be_unset(monkeypatch, tmp_path, place):
  """As `--mode=config` shows it, also where the config file sets it."""
  (tmp_path / 'file.py').write_text(
    'from cmtkd_jax import config as base\n\n\ndef get_config(argument=""):\n'
    '  config = base.default()\n  config.optimizer.grad_clip_norm = 2.0\n'
    '  config.prerequisites.teacher = dict(optimizer=dict(grad_clip_norm=3.0))\n  return config\n'
  )
  arguments = ['main', f'--config={tmp_path}/file.py', f'--config.{place}optimizer.grad_clip_norm=None']
  monkeypatch.setattr(sys, 'argv', arguments)
  config = flags.parse(arguments).config
  found = [config.optimizer.grad_clip_norm, chain.prerequisite(config, 'teacher').optimizer.grad_clip_norm]
  assert found == ([2.0, None] if place else [None, 3.0])


def test_integers_are_compared_in_one_process(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(UserError, match='--integer compares in one process; start it again without'):
    commands.run_evaluate(flags.Command('evaluate', workdir='/nowhere', integer=True))


@pytest.mark.parametrize('workdir, quoted', [('runs/a', 'runs/a'), ("my runs/o'a;b", "'my runs/o'\"'\"'a;b'")])
def test_what_comes_next_can_be_pasted(monkeypatch, capsys, workdir, quoted):
  monkeypatch.setattr(chain, 'train_chain', lambda *unused, report: None)
  commands.run_train(flags.Command('train', config_lib.default(), workdir))
  lines = capsys.readouterr().out.splitlines()
  assert lines[1] == f'{workdir} holds the run. Next:' and len(lines) == 5
  for line, mode in zip(lines[2:], ('report', 'export', 'predict')):
    assert line.startswith(f'  python -m cmtkd_jax.main --workdir={quoted} --mode={mode} ')
    assert shlex.split(line)[3:5] == [f'--workdir={workdir}', f'--mode={mode}']


@pytest.mark.parametrize('is_complete, status', [(True, 0), (False, 1)])
def test_a_table_says_whether_every_run_is_there(monkeypatch, capsys, is_complete, status):
  rows = [
    {'run': '', 'is_complete': False},
    {'run': 'a', 'is_complete': True},
    {'run': 'b', 'is_complete': is_complete},
  ]
  monkeypatch.setattr(table, 'train_table', lambda *unused, report: rows)
  monkeypatch.setattr(table_text, 'render', lambda title, rows: 'the table')
  assert commands.run_table(flags.Command('table', config_lib.default(), 'x')) == status
  assert capsys.readouterr().out == 'the table\n'
