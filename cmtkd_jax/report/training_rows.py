"""Rows of training metrics as equal windows, and the time between them."""

import itertools
import math
import statistics

import numpy as np

from cmtkd_jax.training import loss_schedule

# train/METRIC that holds for one step, not for a window.
NO_MEAN = ('learning_rate', 'epoch', 'corrupt_images', *loss_schedule.VALUES)
_PAUSE_SECONDS, _PAUSE_FACTOR = 60, 10  # a gap above both this and this many times what its steps take is a pause


def series(run, name):
  """Returns (epochs, values) of one metric, float arrays.

  A training metric is the mean since the training row before. A row soon after another one, as at a stop or between
  two evaluations, is a mean of few steps and would look like a dip or a spike; such a window is merged with the next
  one, the last with the one before, by the mean weighted with steps.
  """
  if not name.startswith('train/') or name.split('/')[-1] in NO_MEAN or not run.steps_per_epoch:
    return run.series(name)
  points = []
  for rows in _merged(_windows(run.rows)):
    values = [(steps, row[name]) for steps, row in rows if name in row]
    if values:
      weights, numbers = np.array(values, float).T
      points.append((rows[-1][1]['step'] / run.steps_per_epoch, np.sum(weights * numbers) / np.sum(weights)))
  return np.array(points, float).reshape(-1, 2).T


def _windows(rows):
  """[(steps, row)] of the rows of training."""
  windows, before = [], 0
  for row in rows:
    if 'train/loss' in row:
      windows.append((max(row['step'] - before, 1), row))
      before = row['step']
  return windows


def _merged(windows):
  """The windows in groups, each of at least half the typical number of steps."""
  enough = statistics.median_high(steps for steps, _ in windows) / 2 if windows else 0
  length = lambda group: sum(steps for steps, _ in group)
  groups = []
  for window in windows:
    if groups and length(groups[-1]) < enough:
      groups[-1].append(window)
    else:
      groups.append([window])
  if len(groups) > 1 and length(groups[-1]) < enough:
    groups[-2:] = [groups[-2] + groups[-1]]
  return groups


def run_time(rows):
  """Returns (seconds from the first to the last row less pauses, seconds of pauses).

  A pause is what lies between a stop and the next start: much longer than the steps between two rows take. What
  happens between two rows of one step, an evaluation, is none.
  """
  times = [(row['step'], row['time']) for row in rows if math.isfinite(row.get('time', math.nan))]
  gaps = [(max(b - a, 0), max(end - start, 0.0)) for (a, start), (b, end) in itertools.pairwise(times)]
  speeds = [seconds / steps for steps, seconds in gaps if steps]
  typical = statistics.median(speeds) if speeds else math.inf
  is_pause = lambda steps, seconds: steps and seconds > max(_PAUSE_SECONDS, _PAUSE_FACTOR * typical * steps)
  paused = sum(seconds for steps, seconds in gaps if is_pause(steps, seconds))
  return sum(seconds for _, seconds in gaps) - paused, paused
