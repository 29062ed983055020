"""The text of `config.init_from`."""

import os
import re

from cmtkd_jax.errors import UserError

_NETWORK = r'\s*\w+\s*='


def sources(text: str) -> tuple[str, ...]:
  """Returns the directories and files that `config.init_from` names; raises as `parse`."""
  return tuple(parse(text).values()) if text else ()


def trained_runs(config) -> list[tuple[str, str]]:
  """Returns (field, directory or file) of every trained network that `config` starts from or learns from."""
  starts = [('init_from', source) for source in sources(config.init_from)]
  return starts + [('teacher_workdirs', os.path.expanduser(workdir)) for workdir in config.teacher_workdirs]


def parse(text: str) -> dict[str, str]:
  """Returns `{network: work directory}` of 'student=DIR,teacher1_4bit=DIR', or `{'': DIR}` for one directory.

  Raises:
    UserError: a network has no directory, or two.
  """
  if not re.match(_NETWORK, text):  # a path may hold a '=' further on
    return {'': os.path.expanduser(text)}
  pairs = [part.partition('=') for part in re.split(f',(?={_NETWORK})', text)]
  for _, _, directory in pairs:
    if not directory.strip():
      raise UserError(f"config.init_from: {text!r} is neither a work directory nor 'network=DIR,network=DIR'")
  names = [name.strip() for name, _, _ in pairs]
  if twice := next((name for name in names if names.count(name) > 1), ''):
    raise UserError(f'config.init_from: {text!r} names {twice!r} twice; give each network one directory')
  return {name: os.path.expanduser(directory.strip()) for name, (_, _, directory) in zip(names, pairs)}
