"""Whether the process keeps what it frees, by the page faults of an array that takes the place of another."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = """
import resource, sys
import numpy as np
from cmtkd_jax.runtime import allocator
kept = allocator.keep_memory() if sys.argv[1] == 'keep' else None
np.ones(2**25)  # 256 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**25)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(argument, platforms='cpu'):
  environment = os.environ | {'JAX_PLATFORMS': platforms}
  command = [sys.executable, '-c', PROGRAM, argument]
  return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='it is for glibc')
def test_freed_memory_is_used_again():
  kept, faults = run('keep')
  assert kept == 'True' and int(faults) < 64
  assert int(run('as it is')[1]) >= 128  # one a page, of 2 MiB at most


def test_processes_that_compute_elsewhere_are_left_alone():
  assert run('keep', 'cuda,cpu')[0] == 'False'
