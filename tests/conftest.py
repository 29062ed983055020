"""Every test runs on eight virtual CPU devices, with implicit rank promotion refused."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def strict_dtypes():
  """Refuses implicit dtype promotion: for quantizers and losses (optax and Flax do not live under it)."""
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture
def quick_compile():
  """Compiles without optimisation: for tests that run a whole program once, and do not look at its speed."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
