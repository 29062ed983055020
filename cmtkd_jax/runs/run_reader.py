"""The files of one run, as reports and exports read them."""

import re
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cmtkd_jax.models import STUDENT, bit_table
from cmtkd_jax.runs import json_file, metric_log, run_files, run_summary


class Run(NamedTuple):
  """The files of one run.

  directory: the work directory.
  config: its `ConfigDict`.
  rows: of metrics.jsonl, [] before the first.
  summary: of summary.json, {} where the run is not finished.
  bits: `bit_table.LayerCost`s of every layer.
  classes: names of the classes in the order of the labels.
  """

  directory: epath.Path
  config: Any
  rows: list
  summary: dict
  bits: list
  classes: list

  @property
  def name(self):
    """Name of the directory."""
    return self.directory.name or str(self.directory)

  @property
  def steps_per_epoch(self):
    """Steps of an epoch, by the newest row: another batch size changes it. None before the first row of training."""
    return next((row['step'] / row['train/epoch'] for row in self.rows[::-1] if row.get('train/epoch')), None)

  @property
  def names(self):
    """Names of all metrics, each once, in the order in which they were first logged."""
    return list(dict.fromkeys(name for row in self.rows for name in row))

  @property
  def networks(self):
    """Names of the evaluated networks, the one that the run is for first."""
    found = [name.split('/')[1] for name in self.names if name.startswith('test/') and name.endswith('/top1')]
    return sorted(found, key=lambda name: name != STUDENT)

  def series(self, name):
    """Returns (epochs, values) of one metric, float arrays."""
    points = [(row['step'] / self.steps_per_epoch, row[name]) for row in self.rows if name in row]
    return np.array(points, float).reshape(-1, 2).T


def read(workdir):
  """Returns the `Run` in `workdir`.

  Raises:
    UserError: there is no run, or a file of it is damaged.
  """
  directory = epath.Path(workdir)
  config = run_files.read_config(directory)
  rows = metric_log.read(directory) if (directory / metric_log.FILE).exists() else []
  bits = directory / run_files.BITS
  table = json_file.read(bits, list, valid=_are_layers, fix=run_files.WRITE_AGAIN) if bits.exists() else []
  return Run(
    directory,
    config,
    rows,
    run_summary.read(directory) or {},
    [bit_table.LayerCost(**row) for row in table],
    run_files.read_classes(directory),
  )


def _are_layers(rows):
  kinds = {name: int for name in bit_table.LayerCost._fields} | {'layer': str}
  return all(
    row.keys() == kinds.keys() and all(type(row[name]) is kind for name, kind in kinds.items()) for row in rows
  )


def results(run):
  """Returns `run_summary.results`, of an unfinished run those of its rows so far; {} before any evaluation."""
  if run.summary:
    return run.summary['results']
  return run_summary.results(run.rows, run.steps_per_epoch) if run.steps_per_epoch else {}


def display_name(name):
  """Returns the name of a network or term for people: 'teacher1_4bit' as 'teacher 1 (4 bit)'."""
  name = re.sub(r'^([a-z]+)(\d+)_(\d+)bit$', r'\1 \2 (\3 bit)', name)
  name = re.sub(r'^([a-z]+)(\d+)_(w\d+a\d+)$', r'\1 \2 (\3)', name)
  return re.sub(r'\btap(\d)', r'tap \1', name.replace('_', ' '))
