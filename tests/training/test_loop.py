"""The smoke run of every recipe; evaluation of a finished run; losses that are not finite."""

import collections
import functools
import pathlib
import runpy
import sys

import jax
import pytest

from cmtkd_jax import models
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import resnet
from cmtkd_jax.runs import metric_log
from cmtkd_jax.training import evaluate, loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = [  # of CMT-KD
  path.stem
  for path in sorted((ROOT / 'configs').glob('*.py'))
  if path.stem.endswith(('_resnet8', '_resnet18', '_alexnet'))
]


def load(name, argument=''):
  return runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config'](argument)


@pytest.mark.parametrize('name', RECIPES)
def test_smoke_trains_and_evaluates(name, tmp_path, monkeypatch, request):
  config = load(name, 'smoke')
  if name == 'digits_resnet8':
    request.getfixturevalue('eight_devices')
  else:  # one teacher and two stages of one block are enough where compiling takes longest
    monkeypatch.setitem(models.MODELS, 'resnet18', functools.partial(resnet._resnet, (1, 1), (64, 128)))
    config.method.cmtkd.teacher_bits = config.method.cmtkd.teacher_bits[:1]
  summary = loop.train_and_evaluate(config, tmp_path)
  assert summary['steps'] == 3
  assert set(summary['results']) == {'test/student', 'test/combined_teacher'}
  rows = metric_log.read(tmp_path)
  assert [row['step'] for row in rows if 'train/loss' in row] == [1, 2, 3]
  assert {
    'train/student/cross_entropy',
    'train/combined_teacher/mutual',
    'train/learning_rate',
    'perf/images_per_second',
  } <= rows[0].keys()
  importance = {name: value for name, value in rows[-2].items() if name.startswith('importance/')}
  taps = {name.split('/')[1] for name in importance}
  assert sum(importance.values()) == pytest.approx(len(taps), abs=1e-5)
  if name == 'digits_resnet8':
    # The evaluation of the checkpoint is that of the run's last step.
    evaluated = evaluate.evaluate_run(tmp_path)
    assert evaluated['step'] == 3
    assert evaluated['test/student/top5'] == summary['results']['test/student']['last']['top5']
    evaluations = [row for row in rows if 'test/student/top1' in row]
    for key in ('test/student/cross_entropy', 'test/combined_teacher/cross_entropy'):
      assert evaluated[key] == pytest.approx(evaluations[-1][key], rel=1e-5)
    # The same work directory with another configuration is refused.
    config.batch_size = 8
    with pytest.raises(UserError, match='batch_size: 16 -> 8'):
      loop.train_and_evaluate(config, tmp_path)


def test_minival_is_what_chooses_the_best_checkpoint_and_no_tensorflow_is_needed(tmp_path, monkeypatch):
  for module in ('tensorflow', 'tensorboard', 'clu', 'tensorflow_datasets', 'grain', 'array_record'):
    monkeypatch.setitem(sys.modules, module, None)
  config = load('digits_resnet8', 'smoke')
  config.tensorboard = True
  config.method.name, config.data.minival, config.duration, config.eval_every = 'single', 0.25, '4 steps', '1 steps'
  summary = loop.train_and_evaluate(config, tmp_path)
  assert set(summary['results']) == {'minival/student', 'test/student'}
  rows = [row for row in metric_log.read(tmp_path) if 'minival/student/top1' in row]
  chosen = max(rows, key=lambda row: (row['minival/student/top1'], row['step']))
  assert summary['results']['test/student']['chosen']['top1'] == chosen['test/student/top1']
  best = chosen['step']
  kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()}
  assert kept == {3, 4, best}


def test_everything_is_compiled_once(tmp_path, caplog):
  config = load('digits_resnet8', 'smoke')
  config.method.name, config.duration, config.eval_every, config.log_every = 'single', '6 steps', '2 steps', '1 steps'
  with jax.log_compiles():
    loop.train_and_evaluate(config, tmp_path)
  messages = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Compiling')]
  compiled = collections.Counter(messages)  # what, and for which shapes
  assert sum('train_step' in message for message in messages) == 1
  assert sum('eval_step' in message for message in messages) == 1
  assert compiled.most_common(1)[0][1] == 1, compiled.most_common(3)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
  config = load('digits_resnet8', 'smoke')
  config.method.name, config.duration, config.checkpoint_every = 'single', '6 steps', '1 steps'
  config.optimizer.learning_rate = 1e9
  with pytest.raises(UserError, match=r'step \d: \S+ is (nan|inf).*not finite.*config.optimizer.learning_rate'):
    loop.train_and_evaluate(config, tmp_path)
  rows = metric_log.read(tmp_path)
  kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()}
  assert kept and max(kept) == rows[-1]['step'] < 6


def test_duration_without_steps_is_refused(tmp_path):
  config = load('digits_resnet8', 'smoke')
  config.duration = '0 epochs'
  with pytest.raises(UserError, match='config.duration'):
    loop.train_and_evaluate(config, tmp_path)
