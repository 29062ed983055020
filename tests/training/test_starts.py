"""Starting, starting again, and what must not be lost or mixed up on the way."""

import errno
import shutil

import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint, checksums, lock, metric_log, run_files
from cmtkd_jax.training import evaluate, loop, plan, restore, teachers
from tests import networks
from tests.small_run import make_config

small_network = networks.named(networks.two_convolutions, 'resnet8')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run on arrays, {'workdir', 'data'}; to be copied and changed."""
  root = tmp_path_factory.mktemp('finished')
  data = write_arrays(root / 'data')
  loop.train_and_evaluate(make_config(**{'data.name': f'npy:{data}'}), root / 'run')
  return root


def write_arrays(folder, names=('ant', 'bee'), train_images=32):
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for split, count in (('train', train_images), ('test', 8)):
    np.save(folder / f'{split}_images.npy', rng.integers(0, 256, (count, 8, 8, 1), np.uint8))
    np.save(folder / f'{split}_labels.npy', np.arange(count) % 2)
  np.save(folder / 'class_names.npy', np.array(names))
  return folder


def copy(finished, tmp_path):
  """(configuration, work directory) of a copy of the finished run with a copy of its data, and one step more to do."""
  workdir = shutil.copytree(finished / 'run', tmp_path / 'run')
  shutil.copytree(finished / 'data', tmp_path / 'data')
  config = make_config(**{'data.name': f'npy:{tmp_path}/data', 'duration': '3 steps'})
  (workdir / run_files.CONFIG).write_text(config_lib.to_json(config))
  return config, workdir


def digest(workdir):
  """Contents of the files that describe a run."""
  return {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file() and path.name != lock.FILE}


# --- One run at a time.


def test_a_refused_second_run_changes_nothing(finished, tmp_path):
  config, workdir = copy(finished, tmp_path)
  before = digest(workdir)
  config.optimizer.learning_rate = 0.5
  with lock.Lock(workdir), pytest.raises(UserError, match='is in use by process'):
    loop.train_and_evaluate(config, workdir)
  assert digest(workdir) == before


def test_the_lock_follows_no_link(tmp_path):
  victim = tmp_path / 'victim'
  victim.write_text('keep me')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / lock.FILE).symlink_to(victim)
  with pytest.raises(UserError, match='run/lock cannot be written .*; remove it'), lock.Lock(tmp_path / 'run'):
    pass
  assert victim.read_text() == 'keep me'


def test_what_keeps_the_lock_from_being_written(tmp_path, monkeypatch):
  (tmp_path / 'link').symlink_to('nowhere')
  with pytest.raises(UserError, match='link cannot be written .it is a link to nothing.; choose another one$'):
    lock.Lock(tmp_path / 'link').__enter__()

  def read_only(*unused):
    raise OSError(errno.EROFS, 'Read-only file system')

  (tmp_path / lock.FILE).touch()
  monkeypatch.setattr(lock.os, 'open', read_only)
  with pytest.raises(UserError, match='lock cannot be written .Read-only file system.; make it writable, or choose'):
    lock.Lock(tmp_path).__enter__()


def test_the_lock_needs_no_room_on_the_disk(tmp_path):
  """Who holds it is a courtesy; on a full disk the run must still report the disk, in one line."""
  import resource

  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
  try:
    with lock.Lock(tmp_path):
      pass
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
  with lock.Lock(tmp_path), pytest.raises(UserError, match='in use by process'), lock.Lock(tmp_path):
    pass


# --- The same run again.


def test_a_start_that_failed_may_be_repeated_with_another_configuration(tmp_path):
  """The fix that an error names must not be refused because of what the failed start left behind."""
  with pytest.raises(UserError, match='lower config.optimizer.learning_rate'):
    loop.train_and_evaluate(
      make_config(**{'optimizer.learning_rate': 1e9, 'checkpoint_every': '', 'eval_every': '', 'duration': '9 steps'}),
      tmp_path,
    )
  assert (tmp_path / run_files.CONFIG).exists() and not run_files.has_checkpoint(tmp_path)
  assert loop.train_and_evaluate(make_config(), tmp_path)['steps'] == 2
  assert [row['step'] for row in metric_log.read(tmp_path) if 'train/loss' in row] == [1, 2]
  with pytest.raises(UserError, match='holds a run of another configuration'):  # now there is something to lose
    loop.train_and_evaluate(make_config(seed=5), tmp_path)


def test_teachers_of_a_failed_start_are_forgotten(finished, tmp_path):
  teachers.save(tmp_path, [teachers.Teacher('/gone', make_config())])
  named = str(finished / 'run')
  opened = teachers.open_all(make_config(teacher_workdirs=(named,)), tmp_path)
  assert [teacher.directory for teacher in opened] == [named]


def test_a_resumed_run_reads_no_batch_twice(finished, tmp_path, monkeypatch):
  """Batch 0 shapes the state of a new run; a resumed run knows the shapes without it."""
  started = []
  original = plan.build.data.TrainLoader.batches
  monkeypatch.setattr(
    plan.build.data.TrainLoader, 'batches', lambda self, start=0: started.append(start) or original(self, start)
  )
  config, workdir = copy(finished, tmp_path)
  loop.train_and_evaluate(config, workdir)
  assert started == [2]


def test_processes_that_evaluate_are_compared_as_those_that_train(finished, monkeypatch):
  facts = []
  monkeypatch.setattr(restore.distributed, 'check_agreement', facts.append)
  config = make_config(**{'data.name': f'npy:{finished}/data', 'data.pad': 2})
  restore.open_run(finished / 'run', config)
  assert facts[0]['config.data.pad'] == '2' and facts[0]['classes'] == "['ant', 'bee']"


def test_renamed_classes_are_refused(finished, tmp_path):
  config, workdir = copy(finished, tmp_path)
  np.save(tmp_path / 'data' / 'class_names.npy', np.array(['cow', 'bee']))
  for start in (lambda: loop.train_and_evaluate(config, workdir), lambda: evaluate.evaluate_run(workdir, config)):
    with pytest.raises(UserError, match=r"\['cow', 'bee'\] now, \['ant', 'bee'\] in its classes.json"):
      start()


def test_images_that_have_moved(finished, tmp_path):
  config, workdir = copy(finished, tmp_path)
  (tmp_path / 'data').rename(tmp_path / 'moved')
  with pytest.raises(UserError, match='does not exist; .*moved, add --config=FILE with their new place'):
    evaluate.evaluate_run(workdir)
  config.data.name = f'npy:{tmp_path}/moved'
  assert evaluate.evaluate_run(workdir, config)['step'] == 2


def test_another_number_of_images_is_refused(finished, tmp_path):
  config, workdir = copy(finished, tmp_path)
  write_arrays(tmp_path / 'data', train_images=48)
  for start in (lambda: loop.train_and_evaluate(config, workdir), lambda: evaluate.evaluate_run(workdir)):
    with pytest.raises(UserError, match=r"'train': 48.* now, .*'train': 32.* in its records.json"):
      start()
  config.allow_config_changes = True
  assert loop.train_and_evaluate(config, workdir)['steps'] == 3


# --- Checkpoints that cannot be read.


def test_a_transient_error_costs_no_checkpoint(finished, tmp_path, monkeypatch):
  """Nothing proves damage: the newest checkpoint stays, and the run does not continue from an older one."""
  config, workdir = copy(finished, tmp_path)
  original = checkpoint._read_item

  def read(path, target):
    if '/2/' in f'{path}/':
      raise ConnectionResetError('503 from the object store')
    return original(path, target)

  monkeypatch.setattr(checkpoint, '_read_item', read)
  with pytest.raises(UserError, match=r'checkpoints/2 cannot be read \(ConnectionResetError: 503.*is kept'):
    loop.train_and_evaluate(config, workdir)
  assert checkpoint.steps(workdir / 'checkpoints') == [1, 2]
  monkeypatch.setattr(checkpoint, '_read_item', lambda path, target: (_ for _ in ()).throw(ValueError('our bug')))
  with pytest.raises(ValueError, match='our bug'):
    checkpoint.load_variables(workdir / 'checkpoints')


def test_object_stores_are_asked_again(finished, monkeypatch):
  """Some seconds later; errors that stay are raised, and what proves damage is not asked for twice."""
  waited, answers = [], [OSError('503'), ValueError('UNAVAILABLE'), 'content']

  def read():
    answer = answers.pop(0)
    if isinstance(answer, Exception):
      raise answer
    return answer

  monkeypatch.setattr(checkpoint.time, 'sleep', waited.append)
  assert checkpoint._retried(read, 'gs://bucket/run/2') == 'content' and waited == [1, 4]
  answers[:] = [OSError('503')] * 4
  with pytest.raises(UserError, match=r'gs://bucket/run/2 cannot be read \(OSError: 503\)'):
    checkpoint._retried(read, 'gs://bucket/run/2')
  assert not answers
  answers[:] = [checksums.ChecksumError('x is missing')]
  with pytest.raises(checksums.ChecksumError):
    checkpoint._retried(read, 'gs://bucket/run/2')


@pytest.mark.parametrize(
  'number, is_full', [(28, True), (122, True), (5, True), (13, True), (17, False), (21, False), (20, False), (1, False)]
)
def test_only_disk_errors_are_reported_as_a_disk(tmp_path, number, is_full):
  """ENOSPC, EDQUOT, EIO, EACCES; not EEXIST, EISDIR, ENOTDIR, EPERM, which may be our own fault."""
  error = OSError(number, 'words')
  with pytest.raises(UserError if is_full else OSError) as raised, run_files.disk_errors_as_user_errors(tmp_path):
    raise error
  assert isinstance(raised.value, UserError) == is_full
  checkpoints = object.__new__(checkpoint.Checkpoints)
  checkpoints.directory, checkpoints._manager = tmp_path, None
  with pytest.raises(UserError if is_full else OSError) as raised, checkpoints._write_errors_as_user_errors():
    raise error
  assert isinstance(raised.value, UserError) == is_full
