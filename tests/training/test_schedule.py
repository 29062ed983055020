"""When a run logs, evaluates and saves, and what a window of steps comes down to."""

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.training import schedule, window
from cmtkd_jax.training.schedule import Schedule


def steps(due, total):
  return [step for step in range(1, total + 1) if due(step)]


def test_an_evaluation_saves_and_a_checkpoint_logs():
  when = Schedule(total=10, log_every=4, eval_every=6, checkpoint_every=5)
  assert steps(when.evaluates, 10) == [6, 10]
  assert steps(when.saves, 10) == [5, 6, 10]
  assert steps(when.logs, 10) == [4, 5, 6, 8, 10]


def test_the_last_step_is_evaluated_also_where_nothing_is_asked_for():
  when = Schedule(total=3)
  assert steps(when.evaluates, 3) == steps(when.saves, 3) == steps(when.logs, 3) == [3]


def test_durations_become_steps():
  config = config_lib.default()
  config.duration, config.log_every, config.eval_every = '2 epochs', '640 examples', ''
  config.checkpoint_every, config.profile = '0.5 epochs', '7 steps'
  assert schedule.create(config, steps_per_epoch=22, batch_size=64) == Schedule(44, 10, 0, 11, 7)
  config.duration = ''
  with pytest.raises(UserError, match="config.duration='' has no steps"):
    schedule.create(config, steps_per_epoch=22, batch_size=64)


@pytest.fixture
def clock(monkeypatch):
  """A clock that is set by hand: [seconds]."""
  now = [0.0]
  monkeypatch.setattr(window.time, 'monotonic', lambda: now[0])
  return now


def test_a_window_by_hand(clock):
  """Two steps of 50 images in 4 s, 1 s of which passes in waiting; what came before the restart does not count."""

  def batches():
    clock[0] += 1
    yield 'batch'

  steps = window.Window(batch_size=50)
  clock[0] += 100
  steps.restart()
  steps.add({'loss': 1.0})
  assert steps.next_batch(batches()) == 'batch'
  clock[0] += 3
  steps.add({'loss': 2.0})
  assert steps.close(2, None) == window.Summary({'loss': 1.5}, 25.0, 0.25)
  clock[0] += 1
  steps.add({'loss': 4.0})
  assert steps.close(3, None) == window.Summary({'loss': 4.0}, 50.0, 0.0)


def test_the_first_metric_that_is_not_finite_is_named(clock):
  steps = window.Window(batch_size=1)
  for loss, term in ((1.0, 1.0), (float('nan'), float('inf')), (float('nan'), 1.0)):
    steps.add(
      {'loss': loss, 'student/cross_entropy': term, 'student/gradient_norm': float('nan') if loss != loss else 1.0}
    )
  clock[0] += 1
  with pytest.raises(UserError, match='^step 8: student/cross_entropy is inf, .* checkpoint, of step 5, is kept'):
    steps.close(9, 5)


def test_what_may_help_against_gradients_that_are_not_finite(clock):
  steps = window.Window(batch_size=1)
  for norm in (1e5, float('inf')):
    steps.add({'loss': 1.0, 'student/gradient_norm': norm})
  clock[0] += 1
  with pytest.raises(UserError, match='^step 2: student/gradient_norm is inf, .*grad_clip_norm if the norm has grown'):
    steps.close(2, None)
