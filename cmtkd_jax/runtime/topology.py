"""TPUs that are not there: their compiler needs none."""

import math
import os
import re

import jax

from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import silencers


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
    raise UserError(f'topology={name!r} is not a slice of TPUs; give kind and shape, such as v5e:2x2 or v5p:2x2x1')
  shape = [int(side) for side in match[2].split('x')]
  few = {'chips_per_host_bounds': (*shape, *(1,) * (3 - len(shape)))} if math.prod(shape) < 4 else {}  # of one host
  try:
    with silencers.silent_stderr():  # libtpu warns that there is no TPU
      return topologies.get_topology_desc(platform='tpu', topology_name=name, **few).devices
  except RuntimeError as e:
    if 'not installed' in str(e):
      raise UserError(
        f"topology={name}: the compiler for TPUs is missing; pip install 'jax[tpu]=={jax.__version__}', "
        'which works on machines without a TPU'
      ) from e
    reason = str(e).rpartition(': ')[2]
    raise UserError(
      f'topology={name} is not a slice that the compiler for TPUs knows ({reason}); name another one, such as v5e:2x2'
    ) from e
