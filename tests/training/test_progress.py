"""What a user sees between two rows of metrics: progress that is true, and what takes long said once."""

import io
import types

import jax
import numpy as np
import pytest

from cmtkd_jax.runtime.progress import Progress
from cmtkd_jax.training import journal, window


class Metric:
  """A value on the device, which knows whether it was waited for."""

  def __init__(self):
    self.waited = False

  def block_until_ready(self):
    self.waited = True
    return self


def test_the_loop_is_at_most_two_steps_ahead_of_the_device():
  metrics = [Metric() for _ in range(5)]
  ours = window.Window(batch_size=8)
  for metric in metrics:
    ours.add({'loss': metric})
  assert [metric.waited for metric in metrics] == [True, True, True, False, False]


def test_the_shown_speed_is_that_of_the_window_before_until_there_are_three_steps(monkeypatch):
  """The first steps are dispatched and not done; a row of metrics has the speed of its own steps alone."""
  now = [0.0]
  monkeypatch.setattr(window.time, 'monotonic', lambda: now[0])
  ours, shown = window.Window(batch_size=8), []
  for seconds in (1.0, 1.0, 1.0, 4.0, 1.0, 1.0):
    if len(shown) == 3:
      ours.restart()
    now[0] += seconds
    ours.add({'loss': np.float32(1)})
    shown.append(ours.images_per_second())
  assert shown == [0.0, 0.0, 8.0, 8.0, 8.0, 4.0]  # then 3 steps in 6 seconds
  assert ours.close(6, None).images_per_second == 4.0


def test_other_work_is_not_counted_in_the_speed(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(window.time, 'monotonic', lambda: now[0])
  ours = window.Window(batch_size=8)
  for _ in range(2):
    now[0] += 2.0
    ours.add({'loss': np.float32(1)})
    with ours.paused():
      now[0] += 50.0
  assert ours.close(2, None).images_per_second == 4.0


def test_how_long_compilation_takes_is_said_before_and_after(monkeypatch):
  """0.45 s a layer."""
  lines = []
  progress = types.SimpleNamespace(note=lines.append, meanwhile=None)
  ours = journal.Journal(types.SimpleNamespace(layers=[None] * 40), 0, log=None, progress=progress, profile=None)
  now = iter((0.0, 14.0))
  monkeypatch.setattr(journal.time, 'monotonic', lambda: next(now))
  with ours.compiling():
    assert lines == ['compiling the train step, about 18.0 s on an idle machine']
  assert lines[1:] == ['compiled the train step in 14.0 s']


def test_the_first_step_alone_says_nothing_about_the_end(shown):
  """It is slow on a GPU, where operations are tuned when they first run: 60 s, then 1 s each."""
  shown.clock.now += 60
  shown.stepped(11, 0.0)
  shown.clock.now += 20
  shown.stepped(31, 16.0)
  lines = shown.stream.getvalue().splitlines()
  assert lines[0] == 'step 11/1000  1 %' and lines[1].endswith('ETA 16 min 9 s')  # 969 steps


@pytest.fixture
def shown():
  """A journal whose progress has a stream and a clock of its own."""
  clock, stream = types.SimpleNamespace(now=0.0), io.StringIO()
  progress = Progress(1000, 10, stream, clock=lambda: clock.now, images_per_step=16)
  ours = journal.Journal(plan=None, start=10, log=None, progress=progress, profile=None)
  ours.clock, ours.stream = clock, stream
  return ours


def step_through(shown, steps, seconds):
  for step in steps:
    shown.clock.now += seconds
    shown.stepped(step, 16 / seconds)
  return shown.stream.getvalue().splitlines()


def test_a_log_shows_steps_between_two_rows(shown):
  lines = step_through(shown, range(11, 40), 1.5)
  steps = [int(line.split('/')[0].split()[1]) for line in lines]
  assert steps == [11, 18, 25, 32, 39]  # every ten seconds, in steps of 1.5
  assert lines[1] == 'step 18/1000  1 %  11 img/s  1.5 s/step  ETA 24 min 33 s'


def test_a_log_that_ends_early_promises_no_more_steps(shown):
  assert step_through(shown, range(11, 16), 3.0)[-1] == 'step 15/1000  1 %  5.3 img/s  3.0 s/step  ETA 49 min 15 s'
  shown._progress.close()
  assert shown.stream.getvalue().count('step 15') == 1  # it was shown
  step_through(shown, [16], 3.0)
  shown._progress.close()
  assert shown.stream.getvalue().splitlines()[-1] == 'step 16/1000  1 %  5.3 img/s  3.0 s/step'


def test_a_long_run_on_a_cpu_says_once_how_to_shorten_it(shown):
  lines = step_through(shown, range(11, 20), 4.0)
  (advice,) = [line for line in lines if 'config.duration' in line]
  assert advice.startswith('about 1 h 6 min on this CPU; config.duration shortens it')


def test_a_short_run_or_an_accelerator_does_not(shown, monkeypatch):
  assert not [line for line in step_through(shown, range(11, 20), 3.0) if 'config.duration' in line]
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not [line for line in step_through(shown, range(13, 15), 40.0) if 'config.duration' in line]
