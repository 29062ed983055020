"""The package as Python uses it: its names, the page that shows them, and the installed command."""

import doctest
import importlib
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

import pytest

import cmtkd_jax
from cmtkd_jax import main
from cmtkd_jax.errors import UserError
from cmtkd_jax.training import build, loop

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'cmtkd_jax'
PAGE = PACKAGE / 'python.md'
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


@pytest.mark.integration
def test_the_page(tmp_path, monkeypatch):
  """Its blocks are one session."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  blocks = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
  session = doctest.DocTestParser().get_doctest('\n'.join(blocks), {}, PAGE.name, str(PAGE), None)
  runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
  report = []
  runner.run(session, out=report.append)
  assert not report, ''.join(report)
  assert runner.tries > 40
  assert next(tmp_path.rglob('staircase.png')).stat().st_size > 1000


def test_the_page_is_installed():
  patterns = PROJECT['tool']['setuptools']['package-data']['cmtkd_jax']
  assert PAGE in {path for pattern in patterns for path in PACKAGE.glob(pattern)}


@pytest.mark.e2e
def test_the_import_is_cheap_and_complete():
  code = """
import sys
import cmtkd_jax
def imported():
  return {'jax', 'flax', 'optax', 'numpy', 'absl'} & sys.modules.keys()
assert cmtkd_jax.__version__ and not imported(), imported()
assert set(dir(cmtkd_jax)) > {'__version__', 'config', 'quantizers', 'create_method', 'train_and_evaluate'}
assert not hasattr(cmtkd_jax, 'absent') and not imported(), imported()
assert set(dir(cmtkd_jax)) >= set(cmtkd_jax.__all__)
cmtkd_jax.quantizers.hwgq.Activation(bits=2)
assert 'jax' in imported() and 'flax' not in imported(), imported()
from cmtkd_jax import *
open_network, train_and_evaluate, create_method, losses.LOGIT_LOSSES, methods.METHODS, models.MODELS, data.load
"""
  ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert ended.returncode == 0, ended.stderr


def test_names():
  assert cmtkd_jax.__all__ == sorted(cmtkd_jax.__all__)
  for name in cmtkd_jax.__all__:
    room = f'cmtkd_jax.{name}'
    value = getattr(cmtkd_jax, name)
    assert value is importlib.import_module(room) if (PACKAGE / name).is_dir() else callable(value), name
  assert cmtkd_jax.train_and_evaluate is loop.train_and_evaluate
  assert cmtkd_jax.create_method is build.create_method
  assert cmtkd_jax.open_network is cmtkd_jax.export.open_network
  with pytest.raises(AttributeError, match="module 'cmtkd_jax' has no attribute 'absent'"):
    cmtkd_jax.absent  # noqa: B018
  with pytest.raises(ImportError, match="cannot import name 'absent'"):
    from cmtkd_jax import absent  # noqa: F401


def test_a_wrong_configuration_is_named():
  config = cmtkd_jax.config.default()
  config.method.name = 'kdd'
  with pytest.raises(UserError, match="config.method.name='kdd'"):
    cmtkd_jax.create_method(config, num_classes=10)


def test_config_files():
  path = ROOT / 'configs' / 'digits_resnet8.py'
  assert cmtkd_jax.load_config(path).duration == '80 epochs'
  assert cmtkd_jax.load_config(str(path), 'smoke').duration == '3 steps'
  for absent in ('absent.py', path.with_suffix(''), f'{path}:smoke'):
    with pytest.raises(UserError, match=r"there is no config file .*load_config\('FILE.py', 'VARIANT'\)"):
      cmtkd_jax.load_config(absent)
  with pytest.raises(UserError, match="'absent' is not one of smoke"):
    cmtkd_jax.load_config(path, 'absent')


def test_the_command_is_that_of_main(monkeypatch):
  assert PROJECT['project']['scripts'] == {'cmtkd-jax': 'cmtkd_jax.main:run'}
  calls = []
  monkeypatch.setattr(main.allocator, 'keep_memory', lambda: calls.append('memory'))
  monkeypatch.setattr(main.interrupts, 'watch', lambda: calls.append('watch'))
  monkeypatch.setattr(main, 'main', lambda argv: calls.append(argv) or 75)
  monkeypatch.setattr(sys, 'argv', ['cmtkd-jax', '--mode=config'])
  module, function = PROJECT['project']['scripts']['cmtkd-jax'].split(':')
  with pytest.raises(SystemExit) as ended:
    getattr(importlib.import_module(module), function)()
  assert ended.value.code == 75
  assert calls == ['memory', 'watch', ['cmtkd-jax', '--mode=config']]
