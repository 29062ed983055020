"""Chains and tables of runs: order, directories, what is refused, and what is told of rows that cannot run."""

import json
import pathlib
import re
import runpy
import shutil

import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.cli import commands
from cmtkd_jax.cli.flags import Command
from cmtkd_jax.config import init_from
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain, table, table_text
from cmtkd_jax.runs import checkpoint, run_files, run_summary
from cmtkd_jax.training import evaluate, loop
from tests import networks
from tests.small_run import make_config

small_network = networks.named(networks.two_convolutions, 'resnet8')

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL = dict(method=dict(name='single'), student=dict(weight_bits=32, activation_bits=32))


def load(name, argument=''):
  return runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config'](argument)


def smoke_config():
  config = load('digits_resnet8', 'smoke')
  config.model.width = 1 / 16
  return config


def variables(workdir):
  return checkpoint.load_variables(f'{workdir}/checkpoints')[0]


def test_kd_trains_its_teacher_first_keeps_it_and_can_be_evaluated_without_it(tmp_path):
  config = smoke_config()
  config.method.name, config.teacher_workdirs, config.prerequisites.teacher = 'kd', ('{teacher}',), FULL
  summary = chain.train_chain(config, tmp_path / 'kd')
  assert set(summary['results']) == {'test/student', 'test/teacher'}
  teacher, student = variables(tmp_path / 'kd' / 'teacher'), variables(tmp_path / 'kd')
  for collection in ('params', 'batch_stats'):
    flat = lambda tree: {tuple(map(str, path)): leaf for path, leaf in _leaves(tree)}
    there, here = flat(teacher[collection]['student']), flat(student[collection]['teacher1'])
    assert there.keys() == here.keys()
    for path, array in there.items():
      np.testing.assert_array_equal(here[path], array)
  # Again: nothing is trained, the same summary. Then the teacher is gone and the student still knows what it was.
  reported = []
  assert chain.train_chain(config, tmp_path / 'kd', report=reported.append)['results'] == summary['results']
  assert sum('is finished' in text for text in reported) == 2
  (tmp_path / 'kd').rename(tmp_path / 'moved')  # with all of its runs: they are the same ones
  assert chain.train_chain(config, tmp_path / 'moved', report=reported.append)['results'] == summary['results']
  assert sum('is finished' in text for text in reported) == 4
  # A teacher that has been trained again since is named.
  assert not any('learned from an earlier' in text for text in reported)
  described = tmp_path / 'moved' / 'teacher' / run_files.CONFIG
  there = json.loads(described.read_text())
  described.write_text(json.dumps(there | {'seed': 7}))
  chain.train_chain(config, tmp_path / 'moved', report=reported.append)
  (note,) = [text for text in reported if 'learned from an earlier' in text]
  assert note.startswith(f'note: it learned from an earlier {tmp_path}/moved/teacher (seed: 0 -> 7); delete ')
  described.write_text(json.dumps(there))
  (tmp_path / 'moved' / 'summary.json').unlink()
  assert chain.train_chain(config, tmp_path / 'moved')['results'] == summary['results']
  (tmp_path / 'moved' / 'teacher').rename(tmp_path / 'elsewhere')
  results = evaluate.evaluate_run(tmp_path / 'moved')
  assert results['test/teacher/top1'] == summary['results']['test/teacher']['last']['top1']
  # To save space: a finished run is finished without its checkpoints and its teacher, too.
  shutil.rmtree(tmp_path / 'moved' / run_files.CHECKPOINTS)
  alone = config_lib.derive(config, {'teacher_workdirs': (f'{tmp_path}/moved/teacher',), 'prerequisites': {}})
  assert chain.train_chain(alone, tmp_path / 'moved')['results'] == summary['results']


def _leaves(tree, path=()):
  if not isinstance(tree, dict):
    return [(path, tree)]
  return [leaf for name, child in tree.items() for leaf in _leaves(child, (*path, name))]


def test_runs_come_after_those_they_refer_to():
  config = load('digits_qkd')
  runs = config.prerequisites
  assert chain.in_order(runs, runs) == ['full_precision', 'self_studying', 'co_studying']
  assert chain.in_order(runs, ['self_studying']) == ['full_precision', 'self_studying']
  config.prerequisites.full_precision.init_from = '{co_studying}'
  with pytest.raises(UserError, match='in a circle'):
    chain.in_order(runs, runs)


def test_a_rows_own_prerequisite_comes_before_a_row_of_that_name():
  config = config_lib.default()
  own = {'teacher_workdirs': ('{teacher}',), 'prerequisites': {'teacher': {'student': {'weight_bits': 8}}}}
  config.table.runs = {'teacher': {}, 'own': own, 'of_the_row': {'teacher_workdirs': ('{teacher}',)}}
  assert chain.in_order(config.table.runs, ['own']) == ['own']
  assert chain.in_order(config.table.runs, ['of_the_row']) == ['teacher', 'of_the_row']


def test_references_are_replaced_or_named():
  config = config_lib.default()
  config.init_from, config.teacher_workdirs = 'student={a},teacher={b}', ('{a}', 'runs/other')
  resolved = chain.resolve(config, {'a': 'runs/1', 'b': 'runs/2'})
  assert (resolved.init_from, resolved.teacher_workdirs) == ('student=runs/1,teacher=runs/2', ('runs/1', 'runs/other'))
  with pytest.raises(UserError, match=r"config.init_from: there is no run 'b' before this one; there are a"):
    chain.resolve(config, {'a': 'runs/1'})


def test_names_of_directories_that_look_like_references_or_networks(tmp_path):
  config = config_lib.default()
  (tmp_path / '{x}').mkdir()
  config.init_from, config.teacher_workdirs = '{a}', (f'{tmp_path}/{{x}}', '{a}')
  resolved = chain.resolve(config, {'a': 'lr=0.1/full'})
  assert init_from.parse(resolved.init_from) == {'': './lr=0.1/full'}
  assert resolved.teacher_workdirs == (f'{tmp_path}/{{x}}', './lr=0.1/full')
  config.init_from = 'student={a}'
  assert init_from.parse(chain.resolve(config, {'a': 'lr=0.1,2/a b'}).init_from) == {'student': './lr=0.1,2/a b'}
  with pytest.raises(UserError, match='student=./lr=0.1,beta=4.*comma before NAME=.* choose another workdir'):
    chain.resolve(config, {'a': 'lr=0.1,beta=4'})


def test_a_run_of_a_chain_has_its_changes_and_no_plans():
  config = load('digits_guided', 'smoke')
  derived = config_lib.derive(config, config.prerequisites.w4a8.to_dict())
  assert (derived.student.weight_bits, derived.student.activation_bits) == (4, 8)
  assert derived.duration == config.duration and not derived.prerequisites and config.prerequisites
  with pytest.raises(UserError, match='config.student.weigth_bits: there is no such field'):
    config_lib.derive(config, {'student': {'weigth_bits': 4}})


def test_schedules_belong_to_the_loss_of_a_method():
  config = load('digits_kd')
  config.beta_schedule.warmup = config.temperature_schedule.warmup = '2 epochs'
  config.temperature_schedule.first_factor = 0.5
  config.prerequisites.student = dict(student=dict(weight_bits=4))
  config.prerequisites.scheduled = dict(method=dict(name='average_teacher'), beta_schedule=dict(warmup='3 epochs'))
  warmups = lambda name: tuple(
    chain.prerequisite(config, name)[f'{x}_schedule'].warmup for x in ('beta', 'temperature')
  )
  assert warmups('teacher') == ('', '')  # trained alone, which has neither
  assert warmups('student') == ('2 epochs', '2 epochs')
  assert warmups('scheduled') == ('3 epochs', '')
  assert config.beta_schedule.warmup == '2 epochs'


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('data.mean', (0.1,), r'config.data.mean=\(0.305,\)'),
    ('data.name', 'generated:8x8x1:7:48', 'other classes'),
  ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, field, value, words):
  config = smoke_config()
  config.update_from_flattened_dict(
    {'method.name': 'single', 'duration': '1 steps', 'eval_every': '1 steps', 'optimizer.decay_at': ''}
  )
  chain.train_chain(config, tmp_path / 'teacher')
  config.update_from_flattened_dict(
    {'method.name': 'kd', 'teacher_workdirs': (str(tmp_path / 'teacher'),), field: value}
  )
  with pytest.raises(UserError, match=words):
    chain.train_chain(config, tmp_path / 'student')
  config.teacher_workdirs = (str(tmp_path / 'nothing'),)
  with pytest.raises(UserError, match='there is no config.json'):
    chain.train_chain(config, tmp_path / 'student')


def table_config(only=()):
  config = smoke_config()
  config.table.title, config.table.seeds, config.table.only = 'A table', (0, 1), only
  config.table.runs = dict(
    full=FULL,
    apot=dict(method=dict(name='single'), quantizer=dict(name='apot_of_tomorrow')),
    kd=dict(method=dict(name='kd'), teacher_workdirs=('{full}',)),
    lost=dict(method=dict(name='single'), data=dict(name='npy:/nowhere')),
  )
  config.table.lines = (
    ('full precision', '32/32', 'full', 'student', (75.3, 93.1)),
    ('not yet', '2/2', 'apot', 'student', (70.0, None)),
    ('KD', '2/2', 'kd', 'student', (75.1, 92.8)),
    ('its teacher', '32/32', 'kd', 'teacher', (None, None)),
    ('lost', '2/2', 'lost', 'student', (1.0, 2.0)),
    ('cited', '2/2', '', 'student', (72.1, 91.6)),
  )
  return config


def test_a_reference_without_a_run_is_found_before_any_training(tmp_path):
  config = load('digits_kd', 'smoke')
  config.teacher_workdirs = ('{typo}',)
  with pytest.raises(UserError, match="config.teacher_workdirs: there is no run 'typo' before this one; there are tea"):
    chain.train_chain(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'method.name': 'average_teacher'}, "config.method.name='average_teacher' needs at least 2;"),
    ({'beta_schedule.warmup': '900 steps'}, "config.beta_schedule.warmup='900 steps' does not lie before the end"),
    ({'averaging.name': 'ema', 'averaging.start': '900 steps'}, "config.averaging.start='900 steps' does not lie"),
    ({'quantizer.name': 'lq_nets', 'freezing.threshold': 0.02}, 'config.freezing.threshold=0.02: the weight quantizer'),
    ({'bits.rules': (('nowhere', 4, 4),)}, 'config.bits.rules'),
    ({'remat': 'nobody'}, "config.remat='nobody' matches none of the networks"),
    ({'early_stopping': '1 epochs', 'data.minival': 0.0}, 'config.data.minival=0.0; set it'),
    (
      {'init_from': '/nowhere'},
      'config.init_from: there is no checkpoint in /nowhere; name the directory of a trained run',
    ),
    (
      {'teacher_workdirs': ('{teacher}', '/nowhere')},
      'config.teacher_workdirs: there is no checkpoint in /nowhere; name the directory of a trained run',
    ),
  ],
)
def test_what_the_last_run_is_refused_for_is_found_before_any_training(tmp_path, changes, words):
  config = smoke_config()
  config.prerequisites.teacher = dict(method=dict(name='single'), freezing=dict(threshold=0.0), early_stopping='')
  config.method.name, config.teacher_workdirs = 'kd', ('{teacher}',)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=re.escape(words)):
    chain.train_chain(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_table_runs_its_rows_with_what_they_need_and_says_why_others_are_missing(tmp_path):
  config = table_config()
  config.table.seeds = (0,)
  rows = {row['title']: row for row in table.train_table(config, tmp_path)}
  assert rows['full precision']['seeds'] == rows['KD']['seeds'] == [0]
  assert "config.quantizer.name='apot_of_tomorrow' is not one of" in rows['not yet']['note']
  assert '/nowhere' in rows['lost']['note'] and rows['cited']['note'] == 'cited, not run here'
  summary = json.loads((tmp_path / 'kd' / 'seed0' / 'summary.json').read_text())
  assert summary['config']['teacher_workdirs'] == [f'{tmp_path}/full/seed0']
  assert rows['its teacher']['last']['top1']['values'] == [summary['results']['test/teacher']['last']['top1']]
  # A teacher is evaluated as it was when its own run ended.
  assert rows['its teacher']['last']['top1']['mean'] == rows['full precision']['last']['top1']['mean']

  # A copy of the whole directory needs no training.
  shutil.copytree(tmp_path, copied := tmp_path.with_name('copy [2,4]'))
  said = []
  assert table.train_table(config, copied, report=said.append) == list(rows.values())
  assert sum('is finished' in text for text in said) == 2

  # A second seed that was run elsewhere counts: mean, sample standard deviation, standard error by hand.
  other = tmp_path / 'full' / 'seed1'
  other.mkdir()
  first = json.loads((tmp_path / 'full' / 'seed0' / 'summary.json').read_text())
  first['results']['test/student']['last']['top1'] = rows['full precision']['last']['top1']['mean'] + 2
  (other / 'summary.json').write_text(json.dumps(first))
  (tmp_path / 'full' / 'seed_old').mkdir()  # a folder of the user's own
  (tmp_path / 'full' / 'seed_old' / 'summary.json').write_text('{}')
  collected = table.collect(config, tmp_path)
  row = collected[0]
  assert row['last']['top1']['mean'] == pytest.approx(rows['full precision']['last']['top1']['mean'] + 1)
  top1 = row['last']['top1']
  assert top1['sd'] == pytest.approx(2**0.5) and top1['standard_error'] == pytest.approx(1)
  text = table_text.render(config.table.title, collected)
  assert '75.3 / 93.1' in text and '70.0 / -' in text and f'{row["last"]["top1"]["mean"]:.2f} ± 1.00' in text
  stored = json.loads(table_text.as_json(config.table.title, collected))
  assert stored['lines'][0] == row | {'published': [75.3, 93.1]}
  assert f'| {row["last"]["top1"]["mean"]:.2f} ± 1.00 /' in table_text.markdown(config.table.title, collected)


def test_rows_as_arguments_and_unknown_ones():
  config = load('table2_resnet18_cifar100', 'kd,single4,smoke')
  assert config.table.only == ('kd', 'single4') and config.duration == '3 steps' and config.table.seeds == (0,)
  with pytest.raises(UserError, match="'kdd' is not one of smoke, average_teacher"):
    load('table2_resnet18_cifar100', 'kdd')


def test_every_table_of_the_paper_is_there_and_its_runs_are_configurations():
  for name, lines in (
    ('table1_alexnet_cifar100', 11),
    ('table2_resnet18_cifar100', 11),
    ('table3_teachers_cifar100', 2),
    ('table4_cifar100', 12),
    ('table5_imagenet', 15),
  ):
    config = load(name)
    assert len(config.table.lines) == lines
    for line in map(table.Line._make, config.table.lines):
      changes = config.table.runs[line.run].to_dict() if line.run else {}
      if line.run and changes.get('quantizer', {}).get('name', 'hwgq') in ('hwgq', 'lsq'):
        run = config_lib.derive(config, changes)
        if '/' in line.bits and line.run not in ('guided',):
          assert line.bits == f'{run.student.weight_bits}/{run.student.activation_bits}', line


def test_tables_are_not_trained_as_one_run():
  with pytest.raises(UserError, match='use --mode=table'):
    commands.run_train(Command('train', load('table2_resnet18_cifar100'), 'runs/x'))
  with pytest.raises(UserError, match='has no table'):
    commands.run_table(Command('table', load('digits_resnet8'), 'runs/x'))


def test_errors_of_a_run_that_comes_first_name_it(tmp_path):
  config = smoke_config()
  config.prerequisites.first = dict(method=dict(name='single'), remat='nobody')
  config.method.cmtkd.teacher_bits = (4,)
  config.remat = 'teacher.*'  # for the last run, which has teachers
  line = r"config.remat='nobody' matches none .* \(in the run 'first', .*--config.prerequisites.first.FIELD=VALUE"
  with pytest.raises(UserError, match=line):
    chain.train_chain(config, tmp_path)
  del config.prerequisites.first.remat
  chain._check([('first', tmp_path / 'first', chain.prerequisite(config, 'first')), ('', tmp_path, config)])


def test_another_field_of_the_last_run_alone(tmp_path, monkeypatch):
  """A field is also one of the runs before; what keeps it for a finished one is in the line."""
  config = make_config(**{'optimizer.learning_rate': 0.01})
  config.prerequisites.first = dict()
  chain.train_chain(config, tmp_path)
  (tmp_path / run_files.SUMMARY).unlink()
  config.optimizer.learning_rate, config.allow_config_changes = 0.02, True
  with pytest.raises(UserError, match=r"in the run 'first', .* --config.prerequisites.first.FIELD=VALUE sets a field"):
    chain.train_chain(config, tmp_path)
  config.prerequisites.first = dict(optimizer=dict(learning_rate=0.01))
  begun, summary = [], run_summary.read(tmp_path / 'first')
  monkeypatch.setattr(loop, 'train_and_evaluate', lambda config, workdir, root: begun.append(workdir) or summary)
  chain.train_chain(config, tmp_path)
  assert begun == [str(tmp_path)]  # the first run is finished
