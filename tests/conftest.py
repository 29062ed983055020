"""Every test sees eight virtual CPU devices, with implicit rank promotion refused.

Runs are on one of them, which compiles faster, unless a test asks for `eight_devices` or makes a mesh of its own.
Programs are compiled quickly, see `compiling`, and operations do not carry the lines of source they come from; tests of
bits have `compiling.jit`. Processes that tests start compile as training does, unless they get `compiling.QUICK`.
"""

import gc
import os
import pathlib
import shutil
import signal
import tempfile

# The processes that tests start share what they compile; nothing is left for another session.
CACHE = tempfile.mkdtemp(prefix='cmtkd_jax_tests_')
os.environ |= {
  'JAX_COMPILATION_CACHE_DIR': CACHE,
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  'JAX_TRACEBACK_IN_LOCATIONS_LIMIT': '0',
}
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest

from tests import compiling

flags = (os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', compiling.QUICK_FLAGS)
os.environ['XLA_FLAGS'] = ' '.join(flags)  # read with the first operation
jax.config.update('jax_enable_compilation_cache', False)  # in one process it saves no time
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_disable_most_optimizations', True)
compiling.draw_quickly()
if compiling.OLD:
  compiling.reuse_contexts()
gc.set_threshold(200_000, 50, 100)  # tracing makes many objects that live, and collections walk over all of JAX's

HERE = pathlib.Path(__file__).parent
# What kind of test a room has, unless a file or a test says otherwise.
KINDS = {
  'e2e': ('cli',),
  'integration': ('experiments', 'export', 'methods', 'report', 'training'),
  'unit': ('quantizers', 'losses', 'models', 'data', 'config', 'runs', 'runtime', '.'),
}
KIND = {room: kind for kind, rooms in KINDS.items() for room in rooms}


def pytest_configure(config):
  config.option.loadscopereorder = False  # --dist loadfile takes the files in the order below


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  rooms, kinds = list(KIND), list(KINDS)
  room = lambda item: str(item.path.parent.relative_to(HERE))
  rank = {}  # of a file: that of its longest kind
  for item in items:
    if not any(item.get_closest_marker(kind) for kind in kinds):
      item.add_marker(KIND[room(item)])
    own = next(i for i, kind in enumerate(kinds) if item.get_closest_marker(kind))
    rank[item.path] = min(own, rank.get(item.path, own))
  # The longest files first, so that no worker has one left when the others are done.
  items.sort(key=lambda item: (rank[item.path], rooms.index(room(item))))


def pytest_unconfigure():
  shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope='session', autouse=True)
def silencers():
  """As the command has them; here, since pytest installs a hook of its own before."""
  from cmtkd_jax.runtime import silencers

  silencers.install()


@pytest.fixture(scope='session', autouse=True)
def one_device():
  """The mesh of a run, where a test does not say otherwise."""
  from cmtkd_jax.training import build

  make_mesh = build.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'make_mesh', lambda devices=None: make_mesh(devices or jax.devices()[:1]))
    yield make_mesh


@pytest.fixture
def eight_devices(one_device, monkeypatch):
  """The mesh of a run is that of training: all devices."""
  from cmtkd_jax.training import build

  monkeypatch.setattr(build, 'make_mesh', one_device)


@pytest.fixture
def strict_dtypes():
  """Refuses implicit dtype promotion: for quantizers and losses (optax and Flax do not live under it)."""
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture(scope='module')
def own_cache(tmp_path_factory):
  """Processes of a module keep compiled programs to themselves: one that is killed may leave half a file."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture
def in_time():
  """Fails what takes a minute, such as opening a pipe: it would wait forever."""

  def give_up(*unused):
    raise AssertionError('it waits')

  before = signal.signal(signal.SIGALRM, give_up)
  signal.alarm(60)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)
