"""Memory that a step on a CPU frees stays with the process, so that the next step need not ask for it again.

XLA allocates the temporary buffer of a program anew at every call. glibc gives blocks of that size back to the kernel
at once, which then maps and clears them page by page.
"""

import ctypes
import importlib.util
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc
_PLATFORMS = ('libtpu', 'jax_plugins')  # the packages through which JAX finds TPUs, and all other accelerators


def keep_memory():
  """Makes glibc keep what is freed, where JAX computes on a CPU under Linux; returns whether it did.

  It takes effect before JAX starts its threads, which is why this does not ask JAX for its backend.
  """
  if platform.system() != 'Linux' or platform.libc_ver()[0] != 'glibc' or not _on_cpu():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # One arena; no block of its own mapping, whatever its size; and nothing of the arena's end is given back.
  return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])


def _on_cpu():
  """Whether JAX will take the CPU: it is told so, or has no other platform's plugin."""
  if chosen := os.environ.get('JAX_PLATFORMS'):
    return chosen.split(',')[0] == 'cpu'
  return not any(importlib.util.find_spec(name) for name in _PLATFORMS)
