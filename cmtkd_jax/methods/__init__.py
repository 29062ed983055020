"""Methods: what trains together and on which loss, one file per method.

METHODS: `{name: module}` with `Settings` and `create`.
"""

import importlib
import pkgutil

from cmtkd_jax.methods.base import Method, Outputs

_FILES = [importlib.import_module(f'{__name__}.{file.name}') for file in pkgutil.iter_modules(__path__)]

# Every file of this folder that has `Settings` is a method under its name: the options of `config.method.NAME`, and
# `create(config, settings, num_classes, teachers) -> Method`.
METHODS = {file.__name__.rpartition('.')[2]: file for file in _FILES if hasattr(file, 'Settings')}
for _name, _file in METHODS.items():
  if not hasattr(_file, 'create'):
    raise TypeError(f'cmtkd_jax.methods.{_name} has Settings, but no function create, which makes the method of them')

__all__ = ['METHODS', 'Method', 'Outputs']
