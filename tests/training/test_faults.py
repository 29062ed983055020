"""What happens to a run when things break: two runs in one place, a full disk, too little memory, a changed field."""

import fcntl
import json
import shutil

import jax
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, lock, metric_log
from cmtkd_jax.training import loop, memory
from tests import networks

small_network = networks.named(networks.two_convolutions, 'resnet8')


def make_config(**changes):
  config = config_lib.default()
  config_lib.smoke(config, 8, channels=1)
  config.method.name, config.model.width = 'single', 4 / 64
  config.duration, config.checkpoint_every, config.eval_every = '4 steps', '1 steps', '4 steps'
  config.update_from_flattened_dict(changes)
  return config


def test_second_run_in_a_directory_is_refused(tmp_path):
  in_use = pytest.raises(UserError, match=rf'{tmp_path} is in use by process \d+ on \S+; wait')
  with lock.Lock(tmp_path), in_use, lock.Lock(tmp_path):
    pass
  with lock.Lock(tmp_path):  # the first has ended
    pass


def test_training_holds_the_lock(tmp_path, monkeypatch):
  """While it trains, nobody else can have the file; afterwards anybody can."""
  seen = []

  def write(self, step, scalars):
    with open(tmp_path / lock.FILE) as file, pytest.raises(BlockingIOError):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    seen.append(step)
    original(self, step, scalars)

  original = metric_log.MetricLog.write
  monkeypatch.setattr(metric_log.MetricLog, 'write', write)
  loop.train_and_evaluate(make_config(), tmp_path)
  assert seen
  with open(tmp_path / lock.FILE) as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_full_disk_is_told_before_training(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1000))
  with pytest.raises(UserError, match=rf'{tmp_path} has 0 MiB left, and a checkpoint takes \d+ MiB'):
    loop.train_and_evaluate(make_config(), tmp_path)
  assert not list((tmp_path / 'checkpoints').iterdir())


def test_disk_that_fills_up_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
  """And the same command goes on from it when there is room again."""
  original = checkpoint.ocp.CheckpointManager.save

  def save(self, step, *arguments, **keywords):
    if step == 3:
      raise OSError(28, 'No space left on device')
    return original(self, step, *arguments, **keywords)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp.CheckpointManager, 'save', save)
    with pytest.raises(UserError, match=r'could not be written \(.*No space left.*that of step 2 is kept'):
      loop.train_and_evaluate(make_config(), tmp_path)
  assert loop.train_and_evaluate(make_config(), tmp_path)['steps'] == 4
  assert [row['step'] for row in metric_log.read(tmp_path) if 'train/loss' in row] == [1, 2, 3, 4]


def test_other_errors_of_saving_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    monkeypatch.setattr(checkpoints._manager, 'save', lambda *a, **k: (_ for _ in ()).throw(KeyError('a bug')))
    with pytest.raises(KeyError, match='a bug'):
      checkpoints.save(1, {'variables': {'a': 1}, 'b': 2}, {})


def test_too_little_memory_names_the_fields_to_change():
  error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes')
  with (
    pytest.raises(
      UserError, match=r"config.batch_size=16 does not fit.*config.grad_accum_steps=1.*config.remat='\.\*'"
    ),
    memory.errors_as_advice(make_config()),
  ):
    raise error
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.errors_as_advice(make_config()):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


def test_changed_configuration_is_refused_unless_told_otherwise(tmp_path, caplog):
  loop.train_and_evaluate(make_config(), tmp_path)
  changed = {'optimizer.learning_rate': 0.005, 'duration': '5 steps'}
  with pytest.raises(UserError, match=r'duration: .4 steps. -> .5 steps.; optimizer.learning_rate: 0.01 -> 0.005'):
    loop.train_and_evaluate(make_config(**changed), tmp_path)
  assert loop.train_and_evaluate(make_config(**changed, allow_config_changes=True), tmp_path)['steps'] == 5
  assert 'continues with another configuration: duration: ' in caplog.text
  assert json.loads((tmp_path / 'config.json').read_text())['optimizer']['learning_rate'] == 0.005


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'grad_accum_steps': 3}, 'config.grad_accum_steps=3 does not divide config.batch_size=16'),
    ({'grad_accum_steps': 0}, 'config.grad_accum_steps=0 must be at least 1'),
    ({'model.bn_groups': 5}, 'config.model.bn_groups=5 does not divide the 16 images'),
    ({'model.bn_groups': 16, 'grad_accum_steps': 2}, 'config.model.bn_groups=16 does not divide the 8 images'),
    ({'remat': '('}, r"config.remat='\(' is not a regular expression"),
  ],
)
def test_memory_fields_are_checked(changes, words):
  with pytest.raises(UserError, match=words):
    config_lib.check(make_config(**changes))
