"""Chains of runs: what `config.prerequisites` names is trained first, each run in a directory of its own."""

import contextlib
import json
import os
import re

import ml_collections

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import init_from
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import pytorch_weights
from cmtkd_jax.runs import compatibility, run_files, run_summary
from cmtkd_jax.runtime import local_file
from cmtkd_jax.training import build, loop, plan, teachers

_REFERENCE = re.compile(r'\{([^{}]+)\}')
_ALONE = {'init_from': '', 'teacher_workdirs': ()}  # what comes first does not start from what comes after it


def train_chain(config, workdir, directories=(), report=lambda text: None):
  """Trains the runs of `config.prerequisites`, each in `workdir/<name>` after those it refers to, then `config`.

  Each is `config` with the changes given there; '{name}' in its `init_from` and `teacher_workdirs` stands for the
  directory of an earlier one. A run that is finished is not run again, one that was stopped resumes.

  Args:
    config: a `ConfigDict`.
    workdir: of the last run.
    directories: `{name: directory}` of further runs that may be referred to.
    report: function that shows a text to the user: which run begins, and how each ended.

  Returns:
    the summary of the last run, a JSON-able dict.

  Raises:
    UserError: a reference has no run, or a run cannot be trained.
  """
  workdir = local_file.expanded(workdir)
  last = config_lib.derive(config, {})  # checks that it is a whole configuration
  directories, runs = dict(directories), {}
  root = _common([workdir, *directories.values()])
  for name in in_order(config.prerequisites, config.prerequisites):
    runs[name] = resolve(prerequisite(config, name), directories)
    directories[name] = f'{workdir}/{name}'
  last = resolve(last, directories)  # a reference without a run is found before any training
  if runs:
    _check([*((name, directories[name], run) for name, run in runs.items()), ('', workdir, last)])
  for name, run in runs.items():
    report(f'\n== {name} -> {directories[name]}')
    with _naming(name):
      _train(run, directories[name], root, report)
  if runs:
    report(f'\n== {config.method.name} -> {workdir}')
  return _train(last, workdir, root, report)


def _common(directories):
  """The directory that all `directories` lie in, or that they are."""
  # Whole components, as each ends with a slash; commonpath does not know object stores.
  return os.path.commonprefix([f'{directory}/' for directory in directories]).rpartition('/')[0]  # noqa: RUF071


@contextlib.contextmanager
def _naming(name):
  """Says of an error that it is of the run `name` of `config.prerequisites`; '' is the last run."""
  try:
    yield
  except UserError as e:
    if not name or type(e) is not UserError:  # such as of standard output
      raise
    raise UserError(
      f'{e} (in the run {name!r}, which is trained first; --config.prerequisites.{name}.FIELD=VALUE sets a field of it '
      'alone)'
    ) from e


def _check(runs):
  """Raises `UserError` before any training for what a run would be refused for when its turn comes.

  runs: [(name, directory, configuration)]. One that learns from runs elsewhere is checked when it begins.
  """
  configs, outlines = {directory: config for _, directory, config in runs}, {}
  for name, directory, config in runs:
    if run_files.has_checkpoint(directory):
      continue
    for field, source in init_from.trained_runs(config):
      is_there = pytorch_weights.is_weight_file(source) or run_files.has_checkpoint(source)
      if not is_there and source.removeprefix('./') not in configs:  # see `resolve`
        raise UserError(f'config.{field}: there is no checkpoint in {source}; name the directory of a trained run')
    if not all(teacher in configs for teacher in config.teacher_workdirs):
      continue
    data = build.outline_data(config, outlines)
    given = tuple(teachers.Teacher(teacher, configs[teacher]) for teacher in config.teacher_workdirs)
    with _naming(name):
      plan.of_data(config, given, data.num_classes, data.input_shape, data.steps_per_epoch)


def prerequisite(config, name):
  """Returns the configuration of the run `name` of `config.prerequisites`, whose references are not resolved."""
  return config_lib.derive(config, _ALONE | config.prerequisites[name].to_dict())


def in_order(runs, wanted):
  """Returns the names `wanted` and what they refer to among `runs`, `{name: changes}`, each after what it refers to.

  Raises:
    UserError: runs refer to each other in a circle.
  """
  config_lib.check_runs(runs)
  order = []

  def visit(name, above):
    if name in above:
      raise UserError(
        f'config.prerequisites: {" -> ".join([*above, name])} refer to each other in a circle; take one reference '
        'out of init_from or teacher_workdirs'
      )
    if name not in order:
      for reference in _REFERENCE.findall(json.dumps(runs[name].to_dict(), ensure_ascii=False)):
        if reference in runs and reference not in runs[name].get('prerequisites', {}):  # its own come first
          visit(reference, (*above, name))
      order.append(name)

  for name in wanted:
    visit(name, ())
  return order


def resolve(config, directories):
  """Returns `config` with every '{name}' in `init_from` and `teacher_workdirs` replaced by that run's directory.

  Raises:
    UserError: there is no run of that name before this one.
  """

  def replace(text, field):
    if os.path.exists(text):  # a directory with braces in its name
      return text
    for name in _REFERENCE.findall(text):
      if name not in directories:
        raise UserError(
          f'config.{field}: there is no run {name!r} before this one; there are {", ".join(directories) or "none"}'
        )
    directory_of = lambda match: as_directory(directories[match[1]])
    replaced = _REFERENCE.sub(directory_of, text)
    if field == 'init_from' and text:
      wanted = {name: _REFERENCE.sub(directory_of, directory) for name, directory in init_from.parse(text).items()}
      if init_from.parse(replaced) != wanted:
        raise UserError(
          f'config.init_from={replaced!r}: a work directory with a comma before NAME= would be read as two networks; '
          'choose another workdir'
        )
    return replaced

  def as_directory(path):  # 'lr=0.1/full' would name a network
    return path if '' in init_from.parse(path) else f'./{path}'

  config = ml_collections.ConfigDict(config.to_dict())
  config.init_from = replace(config.init_from, 'init_from')
  config.teacher_workdirs = tuple(replace(teacher, 'teacher_workdirs') for teacher in config.teacher_workdirs)
  return config


def _finished(config, workdir, root):
  """The summary of the finished run of `config` in `workdir`, or None."""
  summary = run_summary.read(workdir, ('config', 'results', 'importance'))
  if summary is None:
    return None
  there = config_lib.from_json(json.dumps(summary['config']))
  return None if config_lib.difference(there, config, exclude=compatibility.MUTABLE_FIELDS, root=root) else summary


def _train(config, workdir, root, report):
  summary = _finished(config, workdir, root)
  if summary is None:
    summary = loop.train_and_evaluate(config, workdir, root)
  else:
    report(f'{workdir} is finished; its data were not looked at again')
    for directory, change in teachers.trained_again(config, workdir, root):
      report(f'note: it learned from an earlier {directory} ({change}); delete {workdir} to train it again')
  report(run_summary.closing_table(summary))
  return summary
