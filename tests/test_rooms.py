"""The rooms of the package: what lies at its top, and imports that point down only."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / 'cmtkd_jax'
# From the top down; rooms of one floor do not import each other.
FLOORS = (
  ('main',),
  ('cli',),
  ('experiments',),
  ('report', 'export'),
  ('training',),
  ('runs',),
  ('config',),
  ('methods',),
  ('models',),
  ('quantizers', 'losses', 'data'),
  ('runtime',),
  ('options',),
  ('errors',),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported(path):
  """Rooms that a file imports, each as (line, room); '' is the package itself."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}:{node.lineno}: imports name the whole path'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for name in names:
      package, *rooms = name.split('.')
      if package == 'cmtkd_jax' and rooms:
        yield node.lineno, rooms[0]


def test_the_top_holds_rooms_and_four_files():
  assert {path.name for path in PACKAGE.glob('*.py')} == {'__init__.py', 'main.py', 'errors.py', 'options.py'}
  rooms = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
  assert rooms == FLOOR.keys() - {'main', 'errors', 'options'}


@pytest.mark.parametrize('room', sorted(FLOOR))
def test_imports_point_down(room):
  files = list((PACKAGE / room).rglob('*.py')) or [PACKAGE / f'{room}.py']
  upward = [
    f'{path.relative_to(PACKAGE)}:{line} imports {other}'
    for path in files
    for line, other in imported(path)
    if other != room and FLOOR[other] <= FLOOR[room]
  ]
  assert not upward


def test_imports_within_data_point_down():
  """loading > sources > transforms."""
  for folder, higher in (('transforms', ('sources', 'loading')), ('sources', ('loading',))):
    for path in (PACKAGE / 'data' / folder).glob('*.py'):
      assert not [name for name in higher if f'cmtkd_jax.data.{name}' in path.read_text()], path


def test_formulas_know_no_flax():
  for room in ('quantizers', 'losses'):
    for path in (PACKAGE / room).glob('*.py'):
      assert 'flax' not in path.read_text().replace('know no Flax', ''), path


@pytest.mark.e2e
def test_importing_changes_nothing():
  """Flags, filters and hooks are those of the command; another program may import every room."""
  code = """
import importlib, logging, pkgutil, signal, sys, warnings
import flax, grain, jax, matplotlib.pyplot, optax, orbax.checkpoint  # what these change is not ours
from absl import flags
def state():
  return (sorted(flags.FLAGS), sys.unraisablehook, sys.excepthook, len(warnings.filters),
          [logging.getLogger(name).filters[:] for name in ('absl', 'asyncio')], signal.getsignal(signal.SIGINT),
          signal.getsignal(signal.SIGTERM))
before, rooms = state(), 0
import cmtkd_jax
for module in pkgutil.walk_packages(cmtkd_jax.__path__, 'cmtkd_jax.'):
  if module.name.split('.')[1] not in ('cli', 'main'):
    importlib.import_module(module.name)
    rooms += 1
assert rooms > 100
for old, new in zip(before, state(), strict=True):
  assert old == new, (old, new)
"""
  run = subprocess.run([sys.executable, '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr
