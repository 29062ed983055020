"""Checkpoints: bits, device counts, what is kept, what is told when they do not fit."""

import errno
import logging
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checksums
from cmtkd_jax.runs.checkpoint import Checkpoints, load_variables, steps


def sharding(devices, *axes):
  return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ('batch',)), PartitionSpec(*axes))


def make_state(devices=8, offset=0):
  """Every kind of leaf that training has; the kernel is cut over the devices, the rest is on all."""
  variables = {
    'params': {'conv': {'kernel': np.random.default_rng(offset).normal(size=(16, 4)).astype(np.float32)}},
    'batch_stats': {'mean': np.array([0.1, -0.0, np.inf, np.nan], jnp.bfloat16)},
    'quantizer': {},
  }
  transform = optax.partition(
    {'a': optax.chain(optax.clip(1.0), optax.adam(1e-3)), 'b': optax.set_to_zero()}, {'conv': 'a', 'rest': 'b'}
  )
  optimizer = transform.init({'conv': jnp.full((3,), 0.5 + offset), 'rest': jnp.ones(())})
  optimizer = jax.tree.map(lambda leaf: np.asarray(leaf) + offset, optimizer)
  state = {'variables': freeze(variables), 'optimizer': optimizer, 'step': np.int32(7 + offset)}
  state = jax.device_put(state, sharding(devices))
  kernel = jax.device_put(variables['params']['conv']['kernel'], sharding(devices, 'batch'))
  cut = state['variables'].unfreeze()
  cut['params']['conv']['kernel'] = kernel
  return dict(state, variables=freeze(cut), epochs=3)


def abstract(state):
  return jax.tree.map(
    lambda leaf: (
      leaf if isinstance(leaf, int) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    ),
    state,
  )


def assert_same(got, wanted, shardings=True):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
    assert type(ours) is type(theirs)
    assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    if shardings and isinstance(theirs, jax.Array):
      assert ours.sharding == theirs.sharding


def truncate(step_directory):
  files = [path for path in step_directory.glob('**/d/*') if path.is_file()]
  assert files
  for path in files:
    path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize('saved_on, restored_on', [(8, 8), (8, 1), (1, 8)])
def test_round_trip_is_bit_equal_on_any_number_of_devices(tmp_path, saved_on, restored_on):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, make_state(saved_on), {'epoch': 2, 'names': ['teacher', 'student']})
  wanted = make_state(restored_on)
  with Checkpoints(tmp_path) as checkpoints:
    state, meta = checkpoints.restore(abstract(wanted))
  assert_same(state, wanted)
  assert meta == {'epoch': 2, 'names': ['teacher', 'student']}


@pytest.mark.parametrize('devices', [1, 8])
def test_restored_arrays_can_be_donated(tmp_path, devices):
  state = make_state(devices)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    restored, _ = checkpoints.restore(abstract(state))
    again, _ = checkpoints.restore(abstract(state))
  add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
  arrays = dict(restored, epochs=jnp.zeros(()))
  for _ in range(3):
    arrays = add(arrays)
  assert restored['step'].is_deleted()
  assert_same(again, state)  # Neither the second copy nor the source shared a buffer with the first.
  for shard in arrays['variables']['params']['conv']['kernel'].addressable_shards:
    kernel = np.asarray(state['variables']['params']['conv']['kernel'])
    np.testing.assert_array_equal(np.asarray(shard.data), kernel[shard.index] + 1 + 1 + 1)
  for shard in arrays['step'].addressable_shards:
    assert int(shard.data) == 10


def test_saving_asks_for_no_preemption(tmp_path, monkeypatch):
  """JAX would take the step for one of the numbers that processes agree on, see `runtime.preemption`."""
  asked = []
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda step: asked.append(step) or False)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(7, make_state(1), {})
  assert steps(tmp_path) == [7] and not asked


def test_state_may_be_donated_while_it_is_being_saved(tmp_path):
  for name, target in {'cut': sharding(8, 'batch'), 'replicated': sharding(8)}.items():
    wanted = np.random.default_rng(0).integers(0, 100, (8, 2**19)).astype(np.float32)
    array = jax.device_put(wanted, target)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: -1 - leaf, tree), donate_argnums=0)
    with Checkpoints(tmp_path / name) as checkpoints:
      checkpoints.save(1, {'variables': {'w': array}, 'step': 1}, {})
      jax.block_until_ready(overwrite(overwrite(array)))
    np.testing.assert_array_equal(load_variables(tmp_path / name)[0]['w'], wanted)


def test_newest_and_best_are_kept(tmp_path):
  accuracies = [0.1, 0.9, float('nan'), None, 0.9, 0.3, 0.2]
  with Checkpoints(tmp_path, keep=2, best_metric='accuracy') as checkpoints:
    assert checkpoints.latest() is None
    for step, accuracy in enumerate(accuracies, 1):
      metrics = None if accuracy is None else {'accuracy': accuracy, 'other': 1.0}
      checkpoints.save(step, make_state(1, offset=step), {'step': step}, metrics)
      assert checkpoints.latest() == step
      checkpoints.wait()
      best = [1, 2, 2, 2, 5, 5, 5][step - 1]  # the newest of equals
      assert set(steps(tmp_path)) == {best, step, max(1, step - 1)}
  with Checkpoints(tmp_path, best_metric='accuracy') as checkpoints:
    assert checkpoints.latest() == 7
    assert load_variables(tmp_path, step=5)[1] == {'step': 5}
    checkpoints.save(8, make_state(1), {}, {'accuracy': 0.3})
  assert set(steps(tmp_path)) == {5, 7, 8}


def test_there_is_no_best_until_it_is_measured(tmp_path):
  with Checkpoints(tmp_path, keep=0, best_metric='accuracy') as checkpoints:
    for step, metrics, kept in (1, None, {1}), (2, {'accuracy': 0.5}, {2}), (3, None, {2, 3}):
      checkpoints.save(step, make_state(1), {}, metrics)
      checkpoints.wait()
      assert set(steps(tmp_path)) == kept


def test_a_step_is_saved_once(tmp_path):
  meta = {'first': True}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(4, make_state(1), meta)
    meta['first'] = False  # The writing thread has a copy.
    checkpoints.save(4, make_state(1, offset=1), {'first': False})
    state, saved = checkpoints.restore(abstract(make_state(1)))
  assert saved == {'first': True}
  assert int(state['step']) == 7


def test_meta_that_json_cannot_hold_is_refused_at_once(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(TypeError, match='JSON'):
      checkpoints.save(1, make_state(1), {'rng': object()})
    assert checkpoints.latest() is None
  assert not list(tmp_path.iterdir())


def test_load_variables_on_other_devices_and_without_the_optimizer(tmp_path):
  wanted = make_state(8)['variables'].unfreeze()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, make_state(8, offset=1), {'epoch': 1})
    checkpoints.save(3, make_state(8), {'epoch': 2})
  truncate(tmp_path / '3' / 'state')  # It is not read.
  variables, meta, step = load_variables(tmp_path)
  assert_same(variables, jax.tree.map(np.asarray, wanted))
  assert (meta, step) == ({'epoch': 2}, 3)
  other, meta, step = load_variables(tmp_path, step=2)
  assert (meta, step) == ({'epoch': 1}, 2)
  assert not np.array_equal(other['params']['conv']['kernel'], variables['params']['conv']['kernel'])


@pytest.mark.e2e
def test_saved_on_eight_devices_and_read_where_there_is_one(tmp_path):
  wanted = np.random.default_rng(3).normal(size=(16, 4)).astype(np.float32)
  with Checkpoints(tmp_path) as checkpoints:
    array = jax.device_put(wanted, sharding(8, 'batch'))
    checkpoints.save(1, {'variables': {'w': array}, 'step': jax.device_put(np.int32(4), sharding(8))}, {})
  code = f"""
import jax, numpy as np
from cmtkd_jax.runs import checksums
from cmtkd_jax.runs.checkpoint import Checkpoints, load_variables
assert len(jax.devices()) == 1
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
wanted = {{'variables': {{'w': jax.ShapeDtypeStruct((16, 4), np.float32, sharding=place)}},
          'step': jax.ShapeDtypeStruct((), np.int32, sharding=place)}}
with Checkpoints({str(tmp_path)!r}) as checkpoints:
  state, _ = checkpoints.restore(wanted)
variables, _, step = load_variables({str(tmp_path)!r})
assert variables['w'].tobytes() == np.asarray(state['variables']['w']).tobytes()
print(variables['w'].tobytes().hex(), int(state['step']), step)
"""
  run = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    env=dict(os.environ, XLA_FLAGS=''),
    text=True,
    capture_output=True,
    timeout=60,
    check=False,
  )
  assert run.stdout.split() == [wanted.tobytes().hex(), '4', '1'], run.stderr
  assert run.stderr == ''


def test_what_does_not_fit_is_named(tmp_path):
  state = make_state(1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(6, state, {})
    other = dict(abstract(state), epochs=jax.ShapeDtypeStruct((), jnp.int32))
    other['variables'] = {
      'params': {'conv': {'kernel': jax.ShapeDtypeStruct((16, 8), jnp.float32)}},
      'batch_stats': {'mean': jax.ShapeDtypeStruct((4,), jnp.float32)},
      'head': {name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in 'abc'},
    }
    with pytest.raises(UserError) as error:
      checkpoints.restore(other)
    with pytest.raises(UserError, match=r'fit: state/epochs is a number there, int32\[\] here; use'):
      checkpoints.restore(dict(other, variables=abstract(state)['variables']))
  message = str(error.value)
  assert '\n' not in message
  assert f'{tmp_path}/6' in message
  assert 'variables/batch_stats/mean is bfloat16[4] there, float32[4] here' in message
  assert 'variables/head/b is absent there, float32[2] here; ...; use' in message
  assert (tmp_path / '6').is_dir()  # A misfit is not damage.


def test_missing_checkpoints_are_told(tmp_path):
  with pytest.raises(UserError, match=f'no checkpoint in {tmp_path}/none; train first'):
    load_variables(tmp_path / 'none')
  assert not (tmp_path / 'none').exists()
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(UserError, match=f'no checkpoint in {tmp_path}; train first'):
      checkpoints.restore(abstract(make_state(1)))
    checkpoints.save(3, make_state(1), {})
    checkpoints.wait()
    with pytest.raises(UserError, match='no checkpoint of step 4 in .*, which has 3; set step to one of these'):
      load_variables(tmp_path, step=4)


@pytest.mark.parametrize('unreadable', ['2', '2/variables', '.'])
def test_what_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, caplog, unreadable):
  """No older checkpoint is taken in its place, and nothing is moved aside. (The superuser reads everything.)"""
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(1, offset=step), {})
  shut = str(tmp_path / unreadable)
  assert os.path.exists(shut)

  def refusing(name):
    function = getattr(os, name)

    def refuse(path, *rest, **more):
      if not isinstance(path, int):
        inside = os.fspath(path).startswith(f'{shut}/') or (os.fspath(path) == shut and name != 'stat')
        if inside:
          raise PermissionError(errno.EACCES, 'Permission denied', str(path))
      return function(path, *rest, **more)

    return refuse

  for name in ('stat', 'listdir', 'scandir'):
    monkeypatch.setattr(os, name, refusing(name))
  with pytest.raises(UserError, match='cannot be read .*Permission denied'):
    load_variables(tmp_path)
  monkeypatch.undo()
  assert not caplog.records and load_variables(tmp_path)[2] == 2


# Orbax leaves unfinished tasks behind when a read fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, caplog):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(1, offset=step), {'step': step})
  truncate(tmp_path / '2')
  with caplog.at_level(logging.WARNING, 'cmtkd_jax'):
    assert load_variables(tmp_path)[2] == 1
    assert [row.getMessage() for row in caplog.records if f'{tmp_path}/2 is damaged' in row.getMessage()]
    with pytest.raises(UserError, match='no readable checkpoint'):
      load_variables(tmp_path, step=2)
    with Checkpoints(tmp_path) as checkpoints:
      state, meta = checkpoints.restore(abstract(make_state(1)))
      assert_same(state, make_state(1, offset=1))
      assert meta == {'step': 1} and checkpoints.latest() == 1
      checkpoints.save(2, make_state(1, offset=2), {'again': True})  # Step 2 can be made anew.
  assert load_variables(tmp_path)[1] == {'again': True}


def test_half_written_checkpoints_are_invisible(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), {})
  (tmp_path / '1').rename(tmp_path / '2.orbax-checkpoint-tmp')
  with pytest.raises(UserError, match='no checkpoint'):
    load_variables(tmp_path)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(3, make_state(1), {})
  assert [path.name for path in tmp_path.iterdir()] == ['3']


def test_orbax_is_quiet(tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    with Checkpoints(tmp_path, best_metric='accuracy') as checkpoints:
      checkpoints.save(1, make_state(8), {})
      checkpoints.restore(abstract(make_state(8)))
    load_variables(tmp_path)
  assert not [row.getMessage() for row in caplog.records]


def test_every_flipped_bit_is_damage(tmp_path, caplog):
  """The format itself reads some of them as other numbers."""
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(1, offset=step), {'step': step})
  files = [
    path
    for item in ('variables', 'state', 'meta')
    for path in (tmp_path / '2' / item).rglob('*')
    if path.is_file() and path.stat().st_size
  ]
  assert len(files) > 10
  for path in files:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(checksums.ChecksumError, match=f'{path.name} is not what was written'):
      checksums.check(tmp_path / '2', ['variables', 'state', 'meta'])
    path.write_bytes(data)
  checksums.check(tmp_path / '2', ['variables', 'state', 'meta'])
  path = next(path for path in files if path.is_relative_to(tmp_path / '2' / 'variables'))
  path.write_bytes(path.read_bytes() + b'\0')
  assert load_variables(tmp_path)[2] == 1
  assert f'{tmp_path}/2 is damaged: variables/' in caplog.text
  (tmp_path / '2' / checksums.FILE).write_text('{')
  assert load_variables(tmp_path)[2] == 1


def test_damaged_twice_at_one_step(tmp_path):
  with Checkpoints(tmp_path, keep=3) as checkpoints:
    checkpoints.save(1, make_state(1), {})
    for _ in range(2):
      checkpoints.save(2, make_state(1), {})
      checkpoints.wait()
      truncate(tmp_path / '2')
      checkpoints.restore(abstract(make_state(1)))
      assert checkpoints.latest() == 1
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', 'broken_2']


def test_what_was_moved_aside_is_no_checkpoint(tmp_path, caplog):
  """Also for a start after one that was killed before it came to that step again."""
  with Checkpoints(tmp_path, best_metric='accuracy') as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(step), {}, {'accuracy': 0.5})
  truncate(tmp_path / '2')
  shutil.copytree(tmp_path / '2', tmp_path / 'copy_7')
  for _ in range(2):
    with Checkpoints(tmp_path, best_metric='accuracy') as checkpoints:
      checkpoints.restore(abstract(make_state(1)))
      assert checkpoints.latest() == 1 and steps(tmp_path) == [1]
  caplog.clear()
  assert load_variables(tmp_path)[2] == 1 and not caplog.records


@pytest.mark.parametrize('damage', ['{', '', None])
def test_damaged_accuracies_do_not_stop_a_run(tmp_path, damage):
  with Checkpoints(tmp_path, best_metric='accuracy') as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(1), {}, {'accuracy': 0.5})
  path = tmp_path / '2' / 'metrics' / 'metrics'
  path.unlink() if damage is None else path.write_text(damage)
  with Checkpoints(tmp_path, best_metric='accuracy') as checkpoints:
    checkpoints.restore(abstract(make_state(1)))
    checkpoints.save(3, make_state(1), {}, {'accuracy': 0.7})
  assert set(steps(tmp_path)) == {2, 3}  # the newest two; the best is the newest
