"""Two ways of compiling: quickly, as most tests do, and as training does, for tests of bits.

Most programs of tests run once, and compiling them is most of the time. So XLA's passes are those of training, but its
older and quicker code generator is used, LLVM does not optimize, and random numbers take fewer operations.
"""

import importlib.metadata
import threading

import jax
import jax.numpy as jnp
from jax._src.interpreters import mlir
from jax._src.random import threefry2x32

QUICK_FLAGS = '--xla_cpu_parallel_codegen_split_count=1'
AS_IN_TRAINING = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
OLD = importlib.metadata.version('jaxlib').startswith('0.10.')
if OLD:  # XLA stops at flags that it does not know
  QUICK_FLAGS += ' --xla_cpu_use_fusion_emitters=false'
  AS_IN_TRAINING['xla_cpu_use_fusion_emitters'] = True
# For processes that compile quickly, too.
QUICK = {'XLA_FLAGS': QUICK_FLAGS, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}


def jit(function):
  return jax.jit(function, compiler_options=AS_IN_TRAINING)


def reuse_contexts(times=10):
  """Lets a thread lower several programs in one MLIR context, as newer JAX does: a context costs 3 ms of some 15."""
  make, kept = mlir.make_ir_context, threading.local()

  def make_or_reuse():
    context, left = getattr(kept, 'context', (None, 0))
    if not left:
      context, left = make(), times
    kept.context = context, left - 1
    return context

  mlir.make_ir_context = make_or_reuse


def draw_quickly():
  """Replaces the 20 rounds of Threefry by a hash: of a network's start, they are most of the program.

  Shapes and dtypes of keys stay. Processes that tests start draw as training does.
  """

  def hashed(x):
    # lowbias32 of Chris Wellons' hash-prospector, which has 0 for 0.
    x = x + jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

  def lowered(*words):
    key1, key2, count1, count2 = jnp.broadcast_arrays(*words)
    first = hashed(hashed(count2 ^ key2) + (count1 ^ key1))
    return first, hashed(first + count2 + key1)

  mlir.register_lowering(threefry2x32.threefry2x32_p, mlir.lower_fun(lowered, multiple_results=True), platform='cpu')
