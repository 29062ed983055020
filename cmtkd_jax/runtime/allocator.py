"""Keeps memory that a step on a CPU frees in the process, so that the next step need not ask for it again.

XLA allocates the temporary buffer of a program anew at every call. glibc gives blocks of that size back to the kernel
at once, which then maps and clears them page by page.
"""

import ctypes
import platform

from cmtkd_jax.runtime import chips

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_memory():
  """Makes glibc keep what is freed, where JAX computes on a CPU under Linux; returns whether it did.

  It takes effect before JAX starts its threads, which is why this does not ask JAX for its backend.
  """
  if platform.system() != 'Linux' or platform.libc_ver()[0] != 'glibc' or chips.expects_accelerator():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # One arena; no block of its own mapping, whatever its size; and nothing of the arena's end is given back.
  return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
