"""Packages that only a part of the program needs, and that may be missing where it runs."""

import importlib

from cmtkd_jax.errors import UserError


def load(name, purpose):
  """Returns the module `name`, without which `purpose`, such as 'a .safetensors file', does not work.

  Raises:
    UserError: its package is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as e:
    package = name.partition('.')[0]
    raise UserError(f'{purpose} needs the package {package} ({e}); pip install {package}') from None
