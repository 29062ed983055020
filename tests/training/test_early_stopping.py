"""When training stops early, decided by hand; resuming decides the same."""

import types

import jax.numpy as jnp
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, run_summary
from cmtkd_jax.runs.metric_log import MetricLog
from cmtkd_jax.training import early_stopping

NAME = 'minival/student/top1'
ROWS = [(10, 50.0), (20, 60.0), (30, 60.0), (40, 55.0), (50, 70.0), (60, 69.0)]


def stopped_at(patience, rows=ROWS):
  """The steps after whose evaluation training would end."""
  stopping, found = early_stopping.EarlyStopping(patience, NAME, total=100), []
  for step, value in rows:
    stopping.add(step, {NAME: value, 'test/student/top1': 100 - value})
    stopping.add(step + 5, {})  # a checkpoint without an evaluation decides nothing
    found += [step] * stopping.is_due
  return found


@pytest.mark.parametrize('patience, steps', [(0, []), (10, [30, 40, 60]), (20, [40]), (30, [])])
def test_it_stops_when_the_best_is_so_old(patience, steps):
  assert stopped_at(patience) == steps  # 60 % again is not better


def test_the_last_evaluation_of_the_training_stops_nothing_early():
  for total, due in ((60, False), (61, True)):
    stopping = early_stopping.EarlyStopping(10, NAME, total)
    for step, value in ROWS:
      stopping.add(step, {NAME: value})
    assert stopping.is_due == due and bool(stopping.describe()) == due
  assert stopping.describe().startswith('stopped early at step 60: minival/student/top1 has not risen above 70.00 %')


def test_the_network_that_it_names_is_the_one_that_is_kept(tmp_path):
  """Of equal networks the last; `chosen` of the summary is the same one."""
  stopping, rows = early_stopping.EarlyStopping(6, NAME, total=12), []
  with checkpoint.Checkpoints(tmp_path, keep=2, best_metric=NAME) as checkpoints:
    for step, value in ((2, 90.0), (4, 95.0), (6, 95.0), (8, 94.0), (10, 94.0)):
      found = {NAME: value, 'minival/student/top5': 99.0, 'test/student/top1': float(step), 'test/student/top5': 99.0}
      stopping.add(step, found)
      checkpoints.save(step, {'variables': {'x': jnp.zeros(1)}, 'step': jnp.int32(step)}, {}, found)
      rows.append({'step': step, **found})
    assert stopping.is_due and '--step=6 evaluates' in stopping.describe()
  assert {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()} == {6, 8, 10}
  assert run_summary.results(rows, 1)['test/student']['chosen']['epoch'] == 6


def test_a_resumed_run_decides_as_before(tmp_path):
  with MetricLog(tmp_path, tensorboard=False) as log:
    for step, value in ROWS:
      log.write(step, {NAME: value})
      log.write(step, {'train/loss': 1.0})
  for patience in (0, 10, 20):
    schedule = types.SimpleNamespace(total=100)
    plan = types.SimpleNamespace(patience=patience, best_metric=NAME, schedule=schedule)
    due = [step for step, _ in ROWS if early_stopping.create(plan, tmp_path, step).is_due]
    assert due == stopped_at(patience)


def test_it_needs_a_held_out_slice():
  config = config_lib.default()
  config.early_stopping = '20 epochs'
  with pytest.raises(UserError, match="config.early_stopping='20 epochs' chooses on a held-out slice"):
    early_stopping.patience(config, steps_per_epoch=10, batch_size=4)
  config.data.minival = 0.1
  assert early_stopping.patience(config, steps_per_epoch=10, batch_size=4) == 200
  config.eval_every = ''
  with pytest.raises(UserError, match="decides at evaluations, but config.eval_every=''; set it"):
    early_stopping.patience(config, steps_per_epoch=10, batch_size=4)
