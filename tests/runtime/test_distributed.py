"""Two processes of two devices against one process of four; a killed process; restoring on one."""

import importlib.util
import json
import os
import pathlib
import signal
import time
import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, metric_log
from cmtkd_jax.runtime import distributed
from cmtkd_jax.training import build
from tests import compiling

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location('local_processes', ROOT / 'launch' / 'local_processes.py')
local_processes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(local_processes)


@pytest.fixture(scope='module')
def environment(own_cache):
  """Compiled programs are kept, so that a process that starts again does not compile again."""
  return os.environ | compiling.QUICK


def probe(directory, processes, devices, environment):
  directory.mkdir()
  started = local_processes.start(
    [str(directory)], processes, devices, module='tests.distributed_probe', environment=environment
  )
  assert local_processes.wait(started) == 0
  return [json.loads((directory / f'process{k}.json').read_text()) for k in range(processes)]


@pytest.fixture(scope='module')
def probes(tmp_path_factory, environment):
  directory = tmp_path_factory.mktemp('probes')
  return directory, probe(directory / 'one', 1, 4, environment), probe(directory / 'two', 2, 2, environment)


@pytest.mark.e2e
def test_two_processes_read_the_batches_of_one(probes):
  """Row by row, over the border of an epoch, from memory and streamed; each process holds its own half."""
  _, (one,), two = probes
  assert [p['processes'] for p in two] == [2, 2] and one['devices'] == two[0]['devices'] == 4
  assert one['texts'] == [''] and [p['texts'] for p in two] == [['', 'é']] * 2
  for on_device in ('yes', 'no'):
    for batch in range(2):
      rows = [dict(map(tuple_of, p['labels'][on_device][batch])) for p in two]
      assert not rows[0].keys() & rows[1].keys() and max(rows[0]) < min(rows[1])
      assert rows[0] | rows[1] == dict(map(tuple_of, one['labels'][on_device][batch]))
  assert one['labels']['yes'] == one['labels']['no']


def tuple_of(pair):
  return pair[0], tuple(pair[1])


@pytest.mark.e2e
def test_one_step_and_an_evaluation_agree(probes):
  """From the same seed: metrics, state and accuracies of two processes are those of one, up to rounding."""
  directory, (one,), two = probes
  assert two[0]['metrics'] == two[1]['metrics'] and two[0]['results'] == two[1]['results']
  for kind in ('metrics', 'results'):
    assert one[kind].keys() == two[0][kind].keys()
    for name, value in one[kind].items():
      np.testing.assert_allclose(two[0][kind][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
  states = [np.load(directory / name / 'state.npz') for name in ('one', 'two')]
  for name in states[0].files:
    np.testing.assert_allclose(states[1][name], states[0][name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.e2e
@pytest.mark.parametrize('name', ['one', 'two'])
def test_one_host_restores_every_array_bit_for_bit(probes, name):
  directory = probes[0] / name
  variables, _, step = checkpoint.load_variables(directory / 'checkpoints')
  found, saved = traverse_util.flatten_dict(variables, sep='/'), np.load(directory / 'state.npz')
  assert step == 1 and found.keys() == set(saved.files)
  for path, array in found.items():
    assert array.dtype == saved[path].dtype
    np.testing.assert_array_equal(array, saved[path])


def train(workdir, environment):
  return local_processes.start(
    [
      '--config=configs/digits_resnet8.py:smoke',
      f'--workdir={workdir}',
      '--config.method.name=single',  # the probe has CMT-KD
      '--config.model.width=0.0625',
      '--config.duration=12 steps',
      '--config.eval_every=100 steps',
      '--config.checkpoint_every=3 steps',
    ],
    2,
    1,
    module='tests.tiny_main',
    environment=environment,
  )


@pytest.mark.e2e
def test_a_process_that_is_killed_ends_the_run_and_both_resume(tmp_path, environment):
  """The launcher stops the survivor; started again, the run ends with the bits of one that was left alone."""
  assert local_processes.wait(train(tmp_path / 'alone', environment)) == 0
  started = train(tmp_path / 'killed', environment)
  log = tmp_path / 'killed' / metric_log.FILE
  while not log.exists() or max((row['step'] for row in metric_log.read(log.parent)), default=0) < 5:
    assert started[0][0].poll() is None
    time.sleep(0.01)
  started[1][0].send_signal(signal.SIGKILL)
  assert local_processes.wait(started) == -signal.SIGKILL
  assert all(process.poll() is not None for process, _ in started)
  assert local_processes.wait(train(tmp_path / 'killed', environment)) == 0
  expected, _, last = checkpoint.load_variables(tmp_path / 'alone' / 'checkpoints')
  found, _, last_again = checkpoint.load_variables(tmp_path / 'killed' / 'checkpoints')
  assert last == last_again == 12
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  steps = [row['step'] for row in metric_log.read(tmp_path / 'killed') if 'train/loss' in row]
  assert steps == list(range(1, 13))


@pytest.mark.parametrize(
  'raised, reason',
  [
    (AssertionError(), 'no such device, or its plugin'),
    (RuntimeError("Unable to initialize backend 'x'"), "backend 'x'"),
  ],
)
def test_a_missing_device_is_one_line(monkeypatch, raised, reason):
  def fail():
    raise raised

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'x')
  with pytest.raises(UserError, match=f"JAX finds no device with JAX_PLATFORMS='x' .*{reason}.*; unset it"):
    build._all_devices()


def test_modes_of_jax_that_are_refused():
  with jax.enable_x64(True), pytest.raises(UserError, match='JAX_ENABLE_X64 is set.*; unset it'):
    build.make_mesh()
  with jax.disable_jit(), pytest.raises(UserError, match='JAX_DISABLE_JIT is set.*; unset it'):
    build.make_mesh()


def test_a_mesh_has_the_devices_of_a_process_side_by_side(monkeypatch):
  """`jax.devices()` of TPUs follow their network, which winds through the hosts; a process reads one block of rows."""
  monkeypatch.setattr(build, 'Mesh', lambda devices, axes, axis_types: [(d.process_index, d.id) for d in devices])
  devices = [types.SimpleNamespace(process_index=i % 2, id=i) for i in range(6)]
  assert build.make_mesh(devices) == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (1, 5)]


@pytest.mark.parametrize(
  'environment, several',
  [
    ({}, False),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, False),  # an allocation, outside of srun
    ({'SLURM_STEP_NUM_TASKS': '4'}, True),
    ({'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 't0,t1'}, True),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, True),
  ],
)
def test_clusters_are_told_from_single_processes(environment, several):
  assert distributed.in_cluster(environment) == several
