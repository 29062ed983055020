"""Low bit-width training by collaborative distillation, in JAX.

What a notebook needs, imported where it is first used; python.md shows it:

config, data, export, losses, methods, models, quantizers: the packages.
load_config: the configuration of a config file.
create_method: (config, num_classes) -> the networks that train together, `cmtkd_jax.training.build`.
train_and_evaluate: (config, workdir) -> the summary of a run, `cmtkd_jax.training.loop`.
open_network: path -> (function of images, about) of an exported network, `cmtkd_jax.export`.
"""

from typing import TYPE_CHECKING

__version__ = '0.1.0'

__all__ = [
  'config',
  'create_method',
  'data',
  'export',
  'load_config',
  'losses',
  'methods',
  'models',
  'open_network',
  'quantizers',
  'train_and_evaluate',
]

# {function: the module that has it}
_FUNCTIONS = {
  'create_method': 'cmtkd_jax.training.build',
  'open_network': 'cmtkd_jax.export',
  'train_and_evaluate': 'cmtkd_jax.training.loop',
}


def load_config(path, argument=''):
  """Returns the `ConfigDict` of a config file, as --config=PATH:ARGUMENT does.

  Args:
    path: of the file, such as 'configs/digits_resnet8.py'.
    argument: names of its variants, joined by commas, such as 'smoke'.

  Raises:
    UserError: there is no such file, or no such variant.
  """
  import pathlib

  from cmtkd_jax import config
  from cmtkd_jax.errors import UserError

  file = pathlib.Path(path)
  if file.suffix != '.py' or not file.exists():
    raise UserError(
      f"there is no config file {path}; variants are the second argument: load_config('FILE.py', 'VARIANT')"
    )
  return config.load_config(file, file.stem, argument)


if TYPE_CHECKING:
  from cmtkd_jax import config, data, export, losses, methods, models, quantizers
  from cmtkd_jax.export import open_network
  from cmtkd_jax.training.build import create_method
  from cmtkd_jax.training.loop import train_and_evaluate
else:  # hidden from type checkers, to which every name would exist

  def __getattr__(name):
    import importlib

    if name in _FUNCTIONS:
      value = getattr(importlib.import_module(_FUNCTIONS[name]), name)
    elif name in __all__:
      value = importlib.import_module(f'{__name__}.{name}')
    else:
      raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = value
    return value


def __dir__():
  return sorted(globals().keys() | set(__all__))
