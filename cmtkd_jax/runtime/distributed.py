"""Several processes, one run: who the others are, found from the environment or from flags.

The same command runs in every process. Each holds its own devices and reads its own rows of every batch; the first
writes logs and prints.
"""

import hashlib
import json
import os
import re
import sys
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runtime import peers


def in_cluster(environment):
  """Whether `environment`, a dict, is that of one process of several, which JAX can ask for the others."""
  count = lambda name: _number(environment, name, '1')
  return (
    count('SLURM_STEP_NUM_TASKS') > 1  # inside srun; an allocation alone is one process
    or count('OMPI_COMM_WORLD_SIZE') > 1
    or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')  # a slice of several hosts
    or count('MEGASCALE_NUM_SLICES') > 1
    or 'JAX_COORDINATOR_ADDRESS' in environment  # as launch/k8s_jobset.yaml sets it
  )


class Cluster(NamedTuple):
  """The processes of a run, as the flags of the same names give them; None where the environment does.

  coordinator: HOST:PORT of process 0.
  processes: their number.
  process: the number of this one, from 0.
  init_timeout: how long to wait for the others.
  """

  coordinator: str | None = None
  processes: int | None = None
  process: int | None = None
  init_timeout: int = 300


FROM_ENVIRONMENT = Cluster()  # what the scheduler says there; without one, the process is alone


def initialize(cluster=FROM_ENVIRONMENT):
  """Joins the other processes of this run, if there are any; to be called before any device is touched.

  Raises:
    UserError: the flags do not fit, or the others do not answer.
  """
  given = cluster[:3]
  if any(value is not None for value in given):
    if None in given:
      raise UserError('--coordinator_address, --num_processes and --process_id belong together; give all three or none')
    arguments = _arguments(*given, ('--coordinator_address', '--num_processes', '--process_id'))
  elif in_cluster(os.environ):
    names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
    arguments = {}
    if 'JAX_COORDINATOR_ADDRESS' in os.environ and 'JAX_NUM_PROCESSES' in os.environ:
      if not os.environ.get(names[2]):
        raise UserError(f'{names[0]} and {names[1]} are set, {names[2]} is not; set it to the number of this process')
      numbers = (_number(os.environ, name, '') for name in names[1:])
      arguments = _arguments(os.environ[names[0]], *numbers, names)
  else:
    return
  peers.install()
  try:
    jax.distributed.initialize(**arguments, initialization_timeout=cluster.init_timeout)
  except (RuntimeError, ValueError) as e:
    raise UserError(
      f'the processes of this run did not find each other ({one_line(e, 200)}); start the '
      'same command in all of them, and check --coordinator_address or the variables of the scheduler'
    ) from None
  peers.joined()
  if not is_first():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115  as long as the process lasts


def _arguments(address, processes, process, names):
  """Arguments of `jax.distributed.initialize`; `names` are those of the flags or variables that gave them."""
  if not 0 <= process < processes:
    raise UserError(f'{names[2]}={process} must lie below {names[1]}={processes}, from 0 on')
  if not re.fullmatch(r'\S+:\d+', address):
    raise UserError(f'{names[0]}={address!r} is not HOST:PORT; give the address of process 0')
  return dict(coordinator_address=address, num_processes=processes, process_id=process)


def _number(environment, name, default):
  text = environment.get(name) or default
  if not text.isdecimal():
    raise UserError(f'{name}={text!r} in the environment is not a whole number; set it to one, or unset it')
  return int(text)


def is_first():
  """Whether this process writes and prints."""
  return jax.process_index() == 0


def wait_for_all(what):
  """Returns when every process has come to the same place, which `what` names; alone at once."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def check_agreement(facts):
  """Raises the same `UserError` in every process unless all processes have the same `facts`, `{name: text}`.

  Processes that differ would train one network on different configurations or labels without any other sign.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps(facts, sort_keys=True)
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  other = next((i for i, found in enumerate(digests) if (found != digests[0]).any()), None)
  if other is None:
    return
  first, differing = (json.loads(_broadcast(text, source)) for source in (0, other))
  lines = [
    f'{name}: {first.get(name, "absent")} in process 0, {differing.get(name, "absent")} in process {other}'
    for name in sorted(first.keys() | differing.keys())
    if first.get(name) != differing.get(name)
  ]
  raise UserError(
    f'process {other} of this run does not agree with process 0: {_cut("; ".join(lines[:4]))}'
    f'{"; ..." if lines[4:] else ""}; start the same command with the same data in every process'
  )


def texts_of_all(text):
  """Returns the `text` of every process, in their order; all call it together."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  rows = multihost_utils.process_allgather(np.pad(data, (0, max(sizes) - len(data))))
  return [bytes(row[:size]).decode() for row, size in zip(rows, sizes)]


def _broadcast(text, source):
  """The text of process `source`, in every process."""
  data = np.frombuffer(text.encode(), np.uint8)
  is_source = jax.process_index() == source
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data)), is_source))
  return bytes(
    multihost_utils.broadcast_one_to_all(data if is_source else np.zeros(length, np.uint8), is_source)
  ).decode()


def _cut(text, most=600):
  return text if len(text) <= most else f'{text[:most]} ...'
