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

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 24
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures('own_cache')]


def start(workdir):
  environment = os.environ | {'XLA_FLAGS': ''}
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'cmtkd_jax.main',
      '--config=configs/digits_resnet8.py:smoke',
      f'--workdir={workdir}',
      '--config.method.cmtkd.teacher_bits=(4,)',
      f'--config.duration={STEPS} steps',
      '--config.eval_every=100 steps',
      '--config.checkpoint_every=3 steps',
      '--config.quantizer.name=lsq',
    ],
    cwd=ROOT,
    env=environment,
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


def test_killed_run_ends_with_the_same_bits(tmp_path):
  alone, killed = tmp_path / 'alone', tmp_path / 'killed'
  finish(start(alone))
  for step in sorted(random.Random().sample(range(1, STEPS), 3)):
    process = start(killed)
    while logged_step(killed) < step and process.poll() is None:
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    print('killed at step', logged_step(killed))
  finish(start(killed))

  expected, _, last = checkpoint.load_variables(alone / 'checkpoints')
  got, _, last_again = checkpoint.load_variables(killed / 'checkpoints')
  assert last == last_again == STEPS
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  losses = [
    {row['step']: row['train/loss'] for row in metric_log.read(workdir) if 'train/loss' in row}
    for workdir in (alone, killed)
  ]
  assert losses[0] == losses[1] and len(losses[0]) == STEPS
  assert len([row for row in metric_log.read(killed) if 'train/loss' in row]) == STEPS  # each step once


def test_asked_to_stop_it_saves_its_step_and_goes_on_from_there(tmp_path):
  """SIGTERM: status 143, one line, a checkpoint of the very step; the same command ends what is left."""
  process = start(tmp_path / 'run')
  while logged_step(tmp_path / 'run') < 5 and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=300)
  assert process.returncode == 143, stderr
  step = int(re.search(rf'asked to stop: step (\d+) of {STEPS} is saved', stderr)[1])
  assert stderr.splitlines()[-1].startswith('asked to stop') and 'Traceback' not in stderr
  assert checkpoint.load_variables(tmp_path / 'run' / 'checkpoints')[2] == step < STEPS
  finish(start(tmp_path / 'run'))
  steps = [row['step'] for row in metric_log.read(tmp_path / 'run') if 'train/loss' in row]
  assert steps == list(range(1, STEPS + 1))
