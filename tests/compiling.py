"""Two ways of compiling: quickly, as most tests do, and as training does, for tests of bits.

Most programs of tests run once, and compiling them is most of the time. So XLA's passes are those of training, but its
older and quicker code generator is used, and LLVM does not optimize.
"""

import importlib.metadata
import threading

import jax
from jax._src.interpreters import mlir

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
