"""What a user sees between two rows of metrics: progress that is true, and what takes long said once."""

import io
import types

import jax
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


@pytest.fixture
def shown():
  """A journal whose progress has a stream and a clock of its own."""
  ours = journal.Journal(plan=None, run=None, start=10)
  ours.clock = types.SimpleNamespace(now=0.0)
  ours.stream = io.StringIO()
  ours._progress = Progress(1000, 10, ours.stream, clock=lambda: ours.clock.now)
  ours.note = ours._progress.note
  ours._progress.compiled(1.0)
  return ours


def step_through(shown, steps, seconds):
  for step in steps:
    shown.clock.now += seconds
    shown.stepped(step, 5.0)
  return shown.stream.getvalue().splitlines()[1:]


def test_a_log_shows_steps_between_two_rows(shown):
  lines = step_through(shown, range(11, 40), 1.5)
  steps = [int(line.split('/')[0].split()[1]) for line in lines]
  assert steps == [11, 18, 25, 32, 39]  # every ten seconds, in steps of 1.5
  assert lines[1] == 'step 18/1000  1 %  5 img/s  1.5 s/step  ETA 24 min 33 s'


def test_a_long_run_on_a_cpu_says_once_how_to_shorten_it(shown):
  lines = step_through(shown, range(11, 20), 4.0)
  (advice,) = [line for line in lines if 'config.duration' in line]
  assert advice.startswith('about 1 h 6 min on this CPU; config.duration shortens it')


def test_a_short_run_or_an_accelerator_does_not(shown, monkeypatch):
  assert not [line for line in step_through(shown, range(11, 20), 3.0) if 'config.duration' in line]
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not [line for line in step_through(shown, range(13, 15), 40.0) if 'config.duration' in line]
