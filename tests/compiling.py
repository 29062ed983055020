"""Programs compiled as training compiles them, for tests of bits; conftest.py has all others compiled quickly."""

import importlib.metadata

import jax

AS_IN_TRAINING = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  AS_IN_TRAINING['xla_cpu_use_fusion_emitters'] = True


def jit(function):
  return jax.jit(function, compiler_options=AS_IN_TRAINING)
