"""What accelerators can do, and TPUs that are not there, whose compiler is."""

import math
import os
import re
from typing import NamedTuple

import jax

from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import silencers

GIB = 2**30


class Chip(NamedTuple):
  """The peak of one accelerator, as its maker states it.

  memory: bytes.
  flops: floating-point operations a second, of products in bfloat16 or, on a TPU, of any.
  bandwidth: bytes a second between chip and memory.
  links: bytes a second to and from other chips, both directions together.
  """

  memory: int
  flops: float
  bandwidth: float
  links: float


# {kind of a device, as JAX names it: Chip}.
# Sources: cloud.google.com/tpu/docs, pages v5e, v5p, v6e; NVIDIA's data sheets of A100, H100 and H200 (SXM, dense).
CHIPS = {
  'TPU v5 lite': Chip(16 * GIB, 197e12, 819e9, 400e9),
  'TPU v5': Chip(95 * GIB, 459e12, 2765e9, 1200e9),
  'TPU v6 lite': Chip(32 * GIB, 918e12, 1640e9, 800e9),
  'NVIDIA A100-SXM4-40GB': Chip(40 * GIB, 312e12, 1555e9, 600e9),
  'NVIDIA A100-SXM4-80GB': Chip(80 * GIB, 312e12, 2039e9, 600e9),
  'NVIDIA H100 80GB HBM3': Chip(80 * GIB, 989e12, 3350e9, 900e9),
  'NVIDIA H200': Chip(141 * 10**9, 989e12, 4800e9, 900e9),
}


def memory(device):
  """Returns the bytes of memory that `device`, which may not be there, has for itself; None where nobody says."""
  if device.device_kind in CHIPS:
    return CHIPS[device.device_kind].memory
  if device.platform == 'cpu':
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()
  return (device.memory_stats() or {}).get('bytes_limit')


def tpu_slice(name):
  """Returns the devices of the TPU slice `name`, such as 'v5e:2x2', to compile for; none of them need be there.

  This process then has no other accelerator.

  Raises:
    UserError: there is no such slice, or no compiler for it.
  """
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  jax.config.update('jax_platforms', 'cpu')
  from jax.experimental import topologies

  match = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', name)
  if not match:
    raise UserError(f'--topology={name!r} is not a slice of TPUs; give kind and shape, such as v5e:2x2 or v5p:2x2x1')
  shape = [int(side) for side in match[2].split('x')]
  few = {'chips_per_host_bounds': (*shape, *(1,) * (3 - len(shape)))} if math.prod(shape) < 4 else {}  # of one host
  try:
    with silencers.silent_stderr():  # libtpu warns that there is no TPU
      return topologies.get_topology_desc(platform='tpu', topology_name=name, **few).devices
  except RuntimeError as e:
    if 'not installed' in str(e):
      raise UserError(
        f"--topology={name}: the compiler for TPUs is missing; pip install 'jax[tpu]=={jax.__version__}', "
        'which works on machines without a TPU'
      ) from e
    reason = str(e).rpartition(': ')[2]
    raise UserError(f'--topology={name} is not a slice that the compiler for TPUs knows ({reason})') from e
