"""Trained teachers: networks of finished runs, `config.teacher_workdirs`, that another run learns from."""

import json
import os
from typing import NamedTuple

import ml_collections
from etils import epath
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import checkpoint, compatibility, json_file, run_files, run_summary

FILE = 'teachers.json'
# What a teacher's training and this one must share: its logits are for the same classes, its images the same numbers.
SHARED = ('data.image_size', 'data.mean', 'data.std')


class Teacher(NamedTuple):
  """The main network of a finished run.

  directory: work directory of that run.
  config: its configuration.
  """

  directory: str
  config: ml_collections.ConfigDict


def open_all(config, workdir):
  """Returns the teachers that `config` names; of a run in `workdir` that has a checkpoint, those it started with.

  Raises:
    UserError: a directory holds no run.
  """
  if _knows_its_teachers(workdir):
    entries = json_file.read(
      epath.Path(workdir) / FILE,
      list,
      valid=lambda entries: all(
        isinstance(entry['directory'], str) and isinstance(entry['config'], dict) for entry in entries
      ),
    )
    return tuple(Teacher(entry['directory'], config_lib.from_json(json.dumps(entry['config']))) for entry in entries)
  workdirs = map(os.path.expanduser, config.teacher_workdirs)
  return tuple(Teacher(workdir, run_files.read_config(workdir, 'config.teacher_workdirs')) for workdir in workdirs)


def _knows_its_teachers(workdir):
  return (epath.Path(workdir) / FILE).exists() and run_files.has_checkpoint(workdir)


def trained_again(config, workdir, root=''):
  """Yields (directory, what is different) of the teachers of a finished run that have been trained again since.

  root: as in `config.difference`. Teachers that are not there any more, or that the run does not know, are left out.
  """
  if not _knows_its_teachers(workdir):
    return
  for teacher, directory in zip(open_all(config, workdir), config.teacher_workdirs):
    if (epath.Path(os.path.expanduser(directory)) / run_files.CONFIG).exists():
      now = run_files.read_config(os.path.expanduser(directory), 'config.teacher_workdirs')
      if changed := config_lib.difference(teacher.config, now, compatibility.MUTABLE_FIELDS, root):
        yield directory, changed[0]


def check_compatible(teachers, config, class_names):
  """Raises `UserError` where a teacher sees other images, or knows other classes, than this run has."""
  here = config_lib.flat(config)
  for teacher in teachers:
    there = config_lib.flat(teacher.config)
    for field in SHARED:
      if here[field] != there[field]:
        raise UserError(
          f'config.teacher_workdirs: {teacher.directory} was trained with config.{field}={there[field]!r}, this '
          f'run has {here[field]!r}; make them equal or name another teacher'
        )
    path = epath.Path(teacher.directory) / run_files.CLASSES
    if path.exists() and run_files.read_classes(teacher.directory) != list(class_names):
      raise UserError(
        f'config.teacher_workdirs: {teacher.directory} was trained for other classes than those of '
        f'config.data.name={config.data.name!r}; name a teacher for the same data'
      )


def load(teachers, names, abstract):
  """Reads the trained networks.

  Args:
    teachers: `Teacher`s.
    names: what each is called in this run.
    abstract: abstract variables of this run, {'params': {network: ...}, ...}.

  Returns:
    (variables, report): {'params': {name: ...}, ...} of all of them, and lines of text.

  Raises:
    UserError: a checkpoint is missing or does not hold what the configuration next to it describes.
  """
  loaded, report = {}, []
  for teacher, name in zip(teachers, names, strict=True):
    try:
      variables, _, step = checkpoint.load_variables(f'{teacher.directory}/{run_files.CHECKPOINTS}')
    except UserError as e:
      raise UserError(f'config.teacher_workdirs: {e}') from None
    for collection, networks in abstract.items():
      if name in networks:
        found = variables.get(collection, {}).get(STUDENT, {})
        checkpoint.check_same_structure(networks[name], found, f'config.teacher_workdirs: {teacher.directory}')
        loaded.setdefault(collection, {})[name] = found
    bits = teacher.config.student
    report.append(
      f'{name}: {teacher.config.model.name} of {bits.weight_bits}/{bits.activation_bits} bit from '
      f'{teacher.directory} (step {step}){_accuracy(teacher.directory)}'
    )
  return loaded, report


def check_loaded(frozen, abstract, variables):
  """Raises `UserError` unless `variables` has all of the networks that stay as they are."""
  wanted, found = (traverse_util.flatten_dict(tree) for tree in (abstract, variables))
  for path in wanted:
    if path[1] in frozen and path not in found:
      raise UserError(
        f'config.init_from: network {path[1]!r} stays as it is, but {"/".join(path)} is in none of the '
        'directories that were loaded; name the directory of a run that has it'
      )


def save(workdir, teachers):
  """Writes what `open_all` reads, so that the run can be evaluated when its teachers' directories are gone."""
  json_file.write(
    epath.Path(workdir) / FILE,
    json.dumps(
      [{'directory': teacher.directory, 'config': teacher.config.to_dict()} for teacher in teachers], indent=1
    ),
  )


def _accuracy(directory):
  summary = run_summary.read(directory)
  if summary is None:
    return ', whose training is not finished'
  result = summary['results'].get(f'test/{STUDENT}')
  return f', {result["last"]["top1"]:.2f} % on its test split' if result else ''
