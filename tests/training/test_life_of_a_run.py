"""What a second start finds, keeps and replaces in a work directory."""

import logging
import os
import re
import shutil
import signal
import subprocess
import types

import jax
import numpy as np
import pytest
from PIL import Image

import cmtkd_jax
from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain
from cmtkd_jax.runs import compatibility, metric_log, provenance, run_files, run_reader, run_summary
from cmtkd_jax.runtime.preemption import Preempted, Preemption
from cmtkd_jax.training import evaluate, loop, restore
from tests import networks
from tests.small_run import make_config

small_network = networks.named(networks.two_convolutions, 'resnet8')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  loop.train_and_evaluate(make_config(), workdir)
  return workdir


@pytest.fixture
def finished(trained, tmp_path):
  """Work directory of a finished run, a copy."""
  return shutil.copytree(trained, tmp_path / 'run')


def contents(workdir):
  return {path.name: path.read_bytes() for path in workdir.glob('*.json*')}


def test_a_start_that_does_not_fit_the_checkpoint_changes_nothing(finished):
  before = contents(finished)
  with pytest.raises(UserError, match='does not fit'):
    loop.train_and_evaluate(
      make_config(**{'model.width': 0.25, 'duration': '3 steps', 'allow_config_changes': True}), finished
    )
  assert contents(finished) == before and evaluate.evaluate_run(finished)['step'] == 2


def test_results_without_checkpoints_are_not_overwritten(finished):
  shutil.rmtree(finished / run_files.CHECKPOINTS)
  before = contents(finished)
  with pytest.raises(UserError, match='holds a run of another configuration .*learning_rate'):
    loop.train_and_evaluate(make_config(**{'optimizer.learning_rate': 0.003}), finished)
  assert contents(finished) == before


def test_a_run_that_is_extended_has_no_summary_until_it_ends(finished, monkeypatch):
  longer = make_config(duration='4 steps', allow_config_changes=True)
  monkeypatch.setattr(Preemption, 'requested', lambda self: True)  # after the first step that is new
  with pytest.raises(Preempted, match='step 3 of 4 is saved'):
    loop.train_and_evaluate(longer, finished)
  assert run_summary.read(finished) is None
  monkeypatch.undo()
  assert loop.train_and_evaluate(longer, finished)['steps'] == 4 == run_summary.read(finished)['steps']


def test_a_finished_run_is_not_called_by_another_configuration(finished):
  """Nothing is left to train: its results are those of the configuration that it has."""
  before = contents(finished)
  with pytest.raises(
    UserError, match=r'is trained to its end, and another configuration \(seed: 0 -> 7\) would change'
  ):
    loop.train_and_evaluate(make_config(seed=7, allow_config_changes=True), finished)
  assert contents(finished) == before


def test_images_that_were_trained_on_are_not_held_out_later(finished, tmp_path):
  before = contents(finished)
  longer = make_config(**{'duration': '4 steps', 'allow_config_changes': True, 'data.minival': 0.25})
  with pytest.raises(UserError, match=r'^config.data.minival=0.25: the run in .* would hold out \(0.0 so far\)'):
    loop.train_and_evaluate(longer, finished)
  assert contents(finished) == before
  start = make_config(**{'init_from': str(finished), 'data.minival': 0.25})
  with pytest.raises(UserError, match='^config.init_from: the run in .*minival=0.0, on images that this run holds out'):
    loop.train_and_evaluate(start, tmp_path / 'new')
  start.data.name = 'digits'  # other images
  compatibility.check_minival(finished, start)


@pytest.mark.parametrize('lost', ['the evaluation', 'only the summary'])
def test_a_lost_evaluation_is_repeated(finished, lost):
  """The checkpoint is there, but the last row of the metrics and the summary are not."""
  summary, log = run_summary.read(finished), finished / metric_log.FILE
  (finished / run_files.SUMMARY).unlink()
  lines = log.read_text().splitlines(keepends=True)
  kept = [line for line in lines if lost == 'only the summary' or 'test/student/top1' not in line]
  assert (len(lines) - len(kept)) == (1 if lost == 'the evaluation' else 0)
  log.write_text(''.join(kept))
  assert loop.train_and_evaluate(make_config(), finished)['results'] == summary['results']
  assert len(metric_log.read(finished)) == len(lines)


def test_the_epoch_of_an_evaluation_is_that_of_its_row():
  """Another batch size later does not move it."""
  rows = [
    {'step': 2, 'train/epoch': 0.5, 'test/student/top1': 9.0, 'test/student/top5': 9.0},
    {'step': 4, 'test/student/top1': 3.0, 'test/student/top5': 9.0},
  ]
  best = run_summary.results(rows, steps_per_epoch=2)['test/student']['best']
  assert best == {'top1': 9.0, 'top5': 9.0, 'epoch': 0.5}
  best = run_summary.results(rows[1:], steps_per_epoch=2)['test/student']['best']
  assert best['epoch'] == 2.0


def test_files_that_are_lost_are_named(finished):
  (finished / run_files.CLASSES).unlink()
  with pytest.raises(
    UserError, match=r'classes.json is missing or names no classes; restore it, or delete it and summ'
  ):
    restore.load_trained(run_reader.read(finished))
  (finished / run_files.CONFIG).unlink()
  with pytest.raises(
    UserError, match=r"config.json is missing; restore it, or copy what summary.json has under 'confi"
  ):
    run_reader.read(finished)


def test_being_asked_to_stop_in_the_last_evaluation_ends_a_chain(tmp_path, monkeypatch):
  """The run in work is whole, the one after it does not begin, and the same command goes on with it."""
  config = make_config()
  config.prerequisites.first = {}
  evaluator = evaluate.Evaluator.evaluate

  def run(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluator(self, *arguments)

  monkeypatch.setattr(evaluate.Evaluator, 'evaluate', run)
  with pytest.raises(Preempted, match='first is finished; the same command continues from there'):
    chain.train_chain(config, tmp_path)
  assert run_summary.read(tmp_path / 'first')['steps'] == 2 and not run_files.has_checkpoint(tmp_path)
  monkeypatch.undo()
  assert chain.train_chain(config, tmp_path)['steps'] == 2


def test_an_end_before_the_checkpoint_is_refused(finished):
  before = contents(finished)
  with pytest.raises(
    UserError, match=r"config.duration='1 steps' ends at step 1, and .*/checkpoints is at step 2; give"
  ):
    loop.train_and_evaluate(make_config(duration='1 steps', allow_config_changes=True), finished)
  assert contents(finished) == before


def test_brackets_in_the_name_of_a_directory(finished, tmp_path):
  """orbax would lose what it saves there; what was saved elsewhere can be read."""
  with pytest.raises(UserError, match=r"^workdir: .*/\[2,4\]/run has a '\[' in its name, .*; choose another workdir$"):
    loop.train_and_evaluate(make_config(), tmp_path / '[2,4]' / 'run')
  assert not (tmp_path / '[2,4]').exists()
  copied = shutil.copytree(finished, tmp_path / '[2,4]' / 'run')
  assert evaluate.evaluate_run(copied)['step'] == 2
  assert chain.train_chain(make_config(), copied)['steps'] == 2


def test_a_finished_run_says_that_its_data_were_not_read(finished):
  said = []
  chain.train_chain(make_config(), finished, report=said.append)
  assert said[0] == f'{finished} is finished; its data were not looked at again'


def test_what_only_a_start_reads_is_said_to_stay(finished, caplog):
  with caplog.at_level(logging.WARNING):
    loop.train_and_evaluate(make_config(init_from='elsewhere', duration='3 steps', allow_config_changes=True), finished)
  assert 'init_from' in caplog.text and 'it keeps those that it has' in caplog.text


@pytest.mark.parametrize(
  'before, after, words',
  [
    ({}, {'averaging.name': 'ema'}, "config.averaging.name='ema': the checkpoints in .* were saved with 'none'"),
    ({'averaging.name': 'swa'}, {}, "config.averaging.name='none': the checkpoints in .* were saved with 'swa'"),
    ({}, {'bn_reestimation': 2}, 'config.bn_reestimation=2: the checkpoints in .* were saved with 0'),
    ({'bn_reestimation': 2}, {}, 'config.bn_reestimation=0: the checkpoints in .* were saved with 2'),
    ({'averaging.name': 'swa'}, {'averaging.name': 'ema'}, "config.averaging.name='ema': .* were saved with 'swa'"),
    ({'averaging.name': 'ema'}, {'averaging.name': 'ema', 'averaging.start': '1 steps'}, ''),
    (
      {'averaging.name': 'swa'},
      {'averaging.name': 'swa', 'averaging.every': '3 steps'},
      "config.averaging.every='3 ste",
    ),
    (
      {'averaging.name': 'swa'},
      {'averaging.name': 'swa', 'averaging.start': '3 steps'},
      "config.averaging.start='3 ste",
    ),
    ({}, {'optimizer.name': 'lamb'}, "config.optimizer.name='lamb': the checkpoints in .* were saved with 'sgd'"),
    ({}, {'freezing.threshold': 0.1}, 'config.freezing.threshold=0.1: the checkpoints in .* were saved with 0.0'),
    ({'freezing.threshold': 0.2}, {'freezing.threshold': 0.1}, ''),
    ({'averaging.name': 'ema'}, {'averaging.name': 'ema', 'bn_reestimation': 2}, ''),
  ],
)
def test_what_checkpoints_hold_arrays_of_stays_in_a_run(finished, before, after, words):
  (finished / run_files.CONFIG).write_text(config_lib.to_json(make_config(**before)))
  config = make_config(**after, allow_config_changes=True)
  if not words:
    compatibility.check_configuration(finished, config)
    return
  with pytest.raises(UserError, match=f'^{words}.* and hold what belongs to it; keep that value, or choose another'):
    compatibility.check_configuration(finished, config)


def test_a_finished_run_is_not_said_to_go_on(finished, caplog):
  """Only a longer training would."""
  for changes, words in (
    ({'seed': 5}, r'the same configuration$'),
    ({'duration': '9 steps'}, r'the same configuration, or set config.allow_config_changes=True$'),
    ({'early_stopping': '9 steps', 'data.minival': 0.0}, 'or set config.allow_config_changes=True$'),
  ):
    with pytest.raises(UserError, match=words):
      compatibility.check_configuration(finished, make_config(**changes))
  with caplog.at_level(logging.WARNING):
    compatibility.check_configuration(finished, make_config(seed=5, allow_config_changes=True))
  assert not caplog.text


def test_what_decides_at_evaluations_is_told_of_others(finished):
  compatibility.check_configuration(finished, make_config(eval_every='1 steps'))
  patience = {'early_stopping': '9 steps'}
  (finished / run_files.CONFIG).write_text(config_lib.to_json(make_config(**patience)))
  compatibility.check_configuration(finished, make_config(**patience))
  with pytest.raises(UserError, match='another configuration .eval_every: '):
    compatibility.check_configuration(finished, make_config(**patience, eval_every='1 steps'))


def test_data_whose_path_is_relative(finished):
  (finished / run_files.CONFIG).write_text(config_lib.to_json(make_config(**{'data.name': 'npy:some/place'})))
  with pytest.raises(UserError, match='some/place is relative to where the run was started; if the images have moved'):
    evaluate.evaluate_run(finished)


def test_the_closing_table_of_unequal_taps():
  results = {'test/student': {'last': {'top1': 1.0, 'top5': 2.0}, 'best': {'top1': 1.0, 'top5': 2.0, 'epoch': 3.0}}}
  importance = {'tap3/a': 0.5, 'tap3/b': 0.5, 'tap5/b': 1.0}
  *_, first, second = run_summary.closing_table({'results': results, 'importance': importance}).splitlines()
  assert (first.split(), second.split()) == (['tap3', '0.500', '0.500'], ['tap5', '-', '1.000'])


def test_epochs_of_a_page_are_those_of_the_last_batch_size(finished):
  """As in the summary and the log: 16 steps of 8 an epoch, then 16 of 4."""
  run = run_reader.read(finished)
  rows = [{'step': 16, 'train/epoch': 2.0, 'train/loss': 1.0}, {'step': 32, 'train/epoch': 8.0, 'train/loss': 0.5}]
  np.testing.assert_array_equal(run._replace(rows=rows).series('train/loss'), [[4, 8], [1, 0.5]])


def test_an_evaluation_without_room_names_its_batch_size(finished, monkeypatch):
  def exhausted(*unused):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes')

  monkeypatch.setattr(evaluate.Evaluator, 'evaluate', exhausted)
  with pytest.raises(UserError, match='^config.eval_batch_size=16 does not fit'):
    evaluate.evaluate_run(finished)


def test_images_of_another_mean_are_not_evaluated(finished):
  with pytest.raises(UserError, match=r'config.data.mean=\(0.9,\): the run in .* was trained with \(0.5,\); make'):
    evaluate.evaluate_run(finished, make_config(**{'data.mean': (0.9,)}))


def test_images_that_were_trained_on_are_not_evaluated_as_held_out(finished):
  with pytest.raises(UserError, match=r'^config.data.minival=0.25: the run in .* would hold out \(0.0 so far\)'):
    evaluate.evaluate_run(finished, make_config(**{'data.minival': 0.25}))


def test_another_size_before_the_crop_is_mentioned(finished, caplog):
  evaluate.evaluate_run(finished, make_config(**{'data.resize': 9}))
  assert 'images are resized with config.data.resize=9; the run in' in caplog.text


def train_on_photos(tmp_path):
  """Trains for a step in tmp_path/run on image files in tmp_path/data, some of which are held out."""
  rng = np.random.default_rng(0)
  for name in ('ant', 'bee'):
    (tmp_path / 'data' / name).mkdir(parents=True)
    for k in range(12):
      Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / 'data' / name / f'{k:02}.png')
  config = make_config(**{'data.name': f'folder:{tmp_path}/data', 'duration': '1 steps'})
  loop.train_and_evaluate(config, tmp_path / 'run')
  return config


def test_images_that_move_held_out_ones_are_refused(tmp_path):
  """One image more, and others are held out: the run has been trained on them."""
  config = train_on_photos(tmp_path)
  shutil.copy(tmp_path / 'data' / 'ant' / '00.png', tmp_path / 'data' / 'ant' / 'new.png')
  config.duration, config.allow_config_changes = '2 steps', True
  for start in (loop.train_and_evaluate, lambda config, run: evaluate.evaluate_run(run, config)):
    with pytest.raises(UserError, match='number of images .* Test images are held out of them.*another workdir'):
      start(config, tmp_path / 'run')
  assert [row['step'] for row in metric_log.read(tmp_path / 'run') if 'train/loss' in row] == [1]


def test_a_renamed_image_that_holds_out_others_is_refused(tmp_path):
  config = train_on_photos(tmp_path)
  assert evaluate.evaluate_run(tmp_path / 'run')['step'] == 1
  (tmp_path / 'data' / 'ant' / '00.png').rename(tmp_path / 'data' / 'ant' / 'last.png')
  config.duration, config.allow_config_changes = '2 steps', True
  for start in (loop.train_and_evaluate, lambda config, run: evaluate.evaluate_run(run, config)):
    with pytest.raises(UserError, match='others are held out to test on now, which the run was trained on; restore'):
      start(config, tmp_path / 'run')
  taught = dict(method=dict(name='kd'), teacher_workdirs=(str(tmp_path / 'run'),))
  for changes in (taught, dict(init_from=str(tmp_path / 'run'))):
    field = f'config.{next(field for field in changes if field != "method")}'
    with pytest.raises(UserError, match=f'{field}: the run in .* held out other images of .* that this run tests on'):
      loop.train_and_evaluate(config_lib.derive(config, changes), tmp_path / 'other')
  same = {'data': {'name': f'folder:{tmp_path}/run/../data/'}}  # the same folder, named otherwise
  with pytest.raises(UserError, match='held out other images'):
    loop.train_and_evaluate(config_lib.derive(config, changes | same), tmp_path / 'other')


def test_processes_that_hold_out_other_images_differ():
  dataset = types.SimpleNamespace(class_names=('a', 'b'), num_examples={'train': 8, 'test': 2}, held_out_digest='a')
  other = types.SimpleNamespace(**vars(dataset) | {'held_out_digest': 'b'})
  facts = [compatibility.facts(make_config(), data) for data in (dataset, other)]
  assert {name for name in facts[0] if facts[0][name] != facts[1][name]} == {'held-out images'}


def test_a_directory_below_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'home').mkdir()
  assert loop.train_and_evaluate(make_config(), '~/run')['steps'] == 2
  assert evaluate.evaluate_run('~/run')['step'] == 2
  assert [path.name for path in tmp_path.iterdir()] == ['home']


def test_runs_that_come_first_are_named(tmp_path):
  config = make_config()
  config.prerequisites.teacher = dict(seed=1)
  with pytest.raises(UserError, match=r'config.prerequisites: teacher must be trained first; call .*train_chain'):
    loop.train_and_evaluate(config, tmp_path / 'run')


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
  """Installed below the root of another repository, the package has none."""
  git = lambda *words: subprocess.run(['git', '-C', tmp_path, *words], check=True, capture_output=True)
  package = tmp_path / 'venv' / 'cmtkd_jax'
  package.mkdir(parents=True)
  (package / '__init__.py').touch()
  (tmp_path / 'README').touch()
  git('init')
  git('add', 'README')
  git('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-m', 'x')
  monkeypatch.setattr(cmtkd_jax, '__file__', str(package / '__init__.py'))
  assert provenance.commit.__wrapped__() == ''
  git('add', '-f', 'venv')
  assert provenance.commit.__wrapped__().endswith('-dirty')
  git('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-m', 'y')
  assert re.fullmatch('[0-9a-f]+', provenance.commit.__wrapped__())
  (tmp_path / 'notes').touch()
  assert re.fullmatch('[0-9a-f]+', provenance.commit.__wrapped__())
  (package / 'quantizer.py').touch()  # one's own, which the commit lacks
  assert re.fullmatch('[0-9a-f]+-dirty', provenance.commit.__wrapped__())
