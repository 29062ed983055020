"""Every test runs on eight virtual CPU devices, with implicit rank promotion refused."""

import os
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session', autouse=True)
def silencers():
  """As the command has them; here, since pytest installs a hook of its own before."""
  from cmtkd_jax.runtime import silencers

  silencers.install()


@pytest.fixture
def strict_dtypes():
  """Refuses implicit dtype promotion: for quantizers and losses (optax and Flax do not live under it)."""
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture
def quick_compile():
  """Compiles without optimization: for tests that run a whole program once, and do not look at its speed."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def in_time():
  """Fails what takes 20 seconds, such as opening a pipe."""

  def give_up(*unused):
    raise AssertionError('it waits')

  before = signal.signal(signal.SIGALRM, give_up)
  signal.alarm(20)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)
