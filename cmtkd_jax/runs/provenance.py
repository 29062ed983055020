"""What a run was made with: versions of packages, commit of this code, configuration."""

import functools
import importlib.metadata
import subprocess

from etils import epath

import cmtkd_jax


def meta(config, step, rows, statistics_measured=True):
  """Returns what a checkpoint says about itself.

  statistics_measured: whether `config.bn_reestimation`, where it is set, was done for it.
  """
  return {
    'step': step,
    'data_position': step,
    'statistics_measured': statistics_measured or not config.bn_reestimation,
    'config': config.to_dict(),
    'versions': versions(),
    'commit': commit(),
    'bits': [row._asdict() for row in rows],
  }


def versions():
  """Returns `{package: version}` of what a run depends on."""
  return {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')}


@functools.cache
def commit():
  """Returns the commit of the checkout this package runs from, '' elsewhere."""
  package = epath.Path(cmtkd_jax.__file__).parent
  git = lambda *words: subprocess.run(['git', '-C', str(package), *words], capture_output=True, text=True, check=False)
  try:
    # Another repository does not track a package that is installed in one of its folders.
    if git('ls-files', '--error-unmatch', '__init__.py').returncode:
      return ''
    described = git('describe', '--always', '--dirty', '--exclude=*')
    added = git('status', '--porcelain', '--', '.').stdout  # such as a quantizer of one's own
  except OSError:  # no git here
    return ''
  if described.returncode:
    return ''
  name = described.stdout.strip()
  return f'{name}-dirty' if added and not name.endswith('-dirty') else name
