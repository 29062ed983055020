"""Packages that only a part of the program needs, and that may be missing where it runs."""

import importlib

from cmtkd_jax.errors import UserError


def load(name, purpose, also=''):
  """Returns the module `name`, without which `purpose`, such as 'StableHLO', does not work.

  Args:
    name: of the module.
    purpose: a file or a format, for the message.
    also: packages that are used together with that of `name`, and are worth installing with it.

  Raises:
    UserError: its package is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as e:
    package = name.partition('.')[0]
    raise UserError(f'{purpose} needs the package {package} ({e}); pip install {also or package}') from None
