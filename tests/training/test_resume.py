"""A run that is killed at any step and started again ends with the same bits as one that was left alone."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cmtkd_jax.runs import checkpoint, metric_log
from tests import compiling

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 24
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures('own_cache')]


def start(workdir):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tests.tiny_main',
      '--config=configs/digits_resnet8.py:smoke',
      f'--workdir={workdir}',
      '--config.method.cmtkd.teacher_bits=(4,)',
      '--config.model.width=0.0625',
      f'--config.duration={STEPS} steps',
      '--config.eval_every=100 steps',
      '--config.checkpoint_every=3 steps',
      '--config.quantizer.name=lsq',
    ],
    cwd=ROOT,
    env=os.environ | compiling.QUICK,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr


def logged_step(workdir):
  if not (workdir / metric_log.FILE).exists():
    return 0
  return max((row['step'] for row in metric_log.read(workdir)), default=0)


def stopped_at(workdir, step, sent):
  """Starts the run and sends it a signal once it has logged `step`; returns (status, standard error)."""
  process = start(workdir)
  while logged_step(workdir) < step and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(sent)
  _, stderr = process.communicate(timeout=300)
  print('stopped at step', logged_step(workdir))
  return process.returncode, stderr


def test_a_run_that_is_killed_and_asked_to_stop_ends_with_the_same_bits(tmp_path):
  """SIGKILL leaves the last checkpoint; SIGTERM gives status 143, one line and a checkpoint of the very step."""
  alone, stopped = tmp_path / 'alone', tmp_path / 'stopped'
  finish(start(alone))
  stopped_at(stopped, random.Random().randrange(1, STEPS // 2), signal.SIGKILL)

  status, stderr = stopped_at(stopped, STEPS // 2 + 2, signal.SIGTERM)
  assert status == 143, stderr
  step = int(re.search(rf'asked to stop: step (\d+) of {STEPS} is saved', stderr)[1])
  assert stderr.splitlines()[-1].startswith('asked to stop') and 'Traceback' not in stderr
  assert checkpoint.load_variables(stopped / 'checkpoints')[2] == step < STEPS
  finish(start(stopped))

  expected, _, last = checkpoint.load_variables(alone / 'checkpoints')
  got, _, last_again = checkpoint.load_variables(stopped / 'checkpoints')
  assert last == last_again == STEPS
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  losses = [
    {row['step']: row['train/loss'] for row in metric_log.read(workdir) if 'train/loss' in row}
    for workdir in (alone, stopped)
  ]
  assert losses[0] == losses[1] and len(losses[0]) == STEPS
  steps = [row['step'] for row in metric_log.read(stopped) if 'train/loss' in row]
  assert steps == list(range(1, STEPS + 1))  # each step once
