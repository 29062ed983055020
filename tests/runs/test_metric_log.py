"""The metric log and the progress line."""

import io
import json
import math
import struct
import subprocess
import sys
import time
import unittest.mock

import jax
import pytest

from cmtkd_jax.data.sources import tfrecord
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import event_files, metric_log
from cmtkd_jax.runs.metric_log import MetricLog
from cmtkd_jax.runtime import progress as progress_line
from cmtkd_jax.runtime import tensorflow_host
from cmtkd_jax.runtime.progress import Progress, format_duration


def write_steps(workdir, steps, **options):
  with MetricLog(workdir, tensorboard=False, **options) as log:
    for step in steps:
      log.write(step, {'train/loss': 1.0 / step})


def steps_of(workdir):
  return [row['step'] for row in metric_log.read(workdir)]


def strict(text):
  """One JSON object, as a reader that knows no NaN reads it."""
  return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def test_rows_are_on_disk_at_once_and_strict_json(tmp_path):
  with MetricLog(tmp_path / 'new' / 'run', tensorboard=False) as log:
    before = time.time()
    loss = jax.numpy.float32(0.5)
    log.write(jax.numpy.int32(12), {'train/loss': loss, 'b': math.nan, 'a': math.inf, 'c': -math.inf})
    text = (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text()
    log.write(13, {'train/loss': 2})
  assert text.endswith('\n')
  row = strict(text)
  assert list(row) == ['step', 'time', 'train/loss', 'b', 'a', 'c']
  assert abs(row.pop('time') - before) < 5
  assert row == {'step': 12, 'train/loss': 0.5, 'b': 'nan', 'a': 'inf', 'c': '-inf'}
  first, second = metric_log.read(tmp_path / 'new' / 'run')
  assert math.isnan(first['b']) and first['a'] == math.inf and first['c'] == -math.inf
  assert second['step'] == 13 and second['train/loss'] == 2.0


def test_time_is_in_milliseconds(tmp_path, monkeypatch):
  monkeypatch.setattr(metric_log.time, 'time', lambda: 1234.56789)
  write_steps(tmp_path, [1])
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1, "time": 1234.568, "train/loss": 1.0}\n'


def test_names_of_the_log_itself_are_refused(tmp_path):
  with MetricLog(tmp_path, tensorboard=False) as log, pytest.raises(ValueError, match='step and time'):
    log.write(1, {'time': 3.0})
  assert metric_log.read(tmp_path) == []


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
  write_steps(tmp_path, range(1, 6))
  before = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
  write_steps(tmp_path, [4, 5], resume_step=3)
  assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
  assert (tmp_path / 'metrics.jsonl').read_bytes().startswith(b''.join(before[:3]))  # Times are kept.
  write_steps(tmp_path, [6])
  assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
  write_steps(tmp_path, [1], resume_step=0)
  assert steps_of(tmp_path) == [1]
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


@pytest.mark.parametrize('torn', ['{"step": 3, "time": 1.5', '{"step": 3}', '{"step": 3, "ti\n', '\0\0\n'])
@pytest.mark.parametrize('resume_step', [None, 2, 3])
def test_a_torn_last_line_is_dropped(tmp_path, torn, resume_step):
  write_steps(tmp_path, [1, 2])
  whole = (tmp_path / 'metrics.jsonl').read_text()
  (tmp_path / 'metrics.jsonl').write_text(whole + torn)
  assert steps_of(tmp_path) == [1, 2]
  assert (tmp_path / 'metrics.jsonl').read_text() == whole + torn  # Reading changes nothing.
  write_steps(tmp_path, [3], resume_step=resume_step)
  assert steps_of(tmp_path) == [1, 2, 3]
  assert (tmp_path / 'metrics.jsonl').read_text().startswith(whole)


def test_damage_elsewhere_is_told(tmp_path):
  with pytest.raises(UserError, match=f'no metrics.jsonl in {tmp_path}'):
    metric_log.read(tmp_path)
  write_steps(tmp_path, [1])
  whole = (tmp_path / 'metrics.jsonl').read_text()
  (tmp_path / 'metrics.jsonl').write_text(whole + '{"step": 2, "ti\n' + whole)
  with pytest.raises(UserError, match=f'line 2 of {tmp_path}/metrics.jsonl'):
    metric_log.read(tmp_path)
  with pytest.raises(UserError, match='line 2'):
    MetricLog(tmp_path, tensorboard=False)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(metric_log.distributed, 'is_first', lambda: False)
  with MetricLog(tmp_path / 'run') as log:
    log.write(1, {'train/loss': 1.0})
    log.write_text(1, 'bits', 'table')
    assert not log.tensorboard
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('fails', ['write_scalars', 'write_texts', 'close'])
def test_a_writer_that_fails_is_left_and_the_rows_go_on(tmp_path, monkeypatch, caplog, fails):
  """As on a full disk, where clu raises what its thread has met before."""
  writer = unittest.mock.Mock()
  getattr(writer, fails).side_effect = RuntimeError('No space left\non device')
  monkeypatch.setattr(metric_log, '_clu_writer', lambda workdir: writer)
  with MetricLog(tmp_path) as log:
    log.write_text(0, 'bits', 'x')
    for step in (1, 2):
      log.write(step, {'a': step})
  assert steps_of(tmp_path) == [1, 2]
  assert [record.getMessage() for record in caplog.records] == [
    'TensorBoard files cannot be written any more (No space left on device); metrics.jsonl has all metrics'
  ]
  assert getattr(writer, fails).call_count == 1 and not log.tensorboard


def run_python(code):
  run = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, timeout=100, check=False)
  assert run.returncode == 0, run.stderr
  return run


@pytest.mark.e2e
def test_tensorboard_gets_the_rows_in_silence(tmp_path):
  pytest.importorskip('clu')
  pytest.importorskip('tensorboard')
  # Another interpreter: TensorFlow writes to file descriptor 2, and must not be loaded into the other tests.
  run = run_python(f"""
import logging, sys
import absl.logging
absl.logging.set_verbosity(absl.logging.INFO)
from cmtkd_jax.runs.metric_log import MetricLog
assert 'tensorflow' not in sys.modules
log = MetricLog({str(tmp_path)!r})
import tensorflow as tf
assert tf.config.get_visible_devices('GPU') == []
log.write(3, {{'train/loss': 0.25, 'bad': float('nan')}})
log.write_text(3, 'bits', 'a table')
print(log.tensorboard)
log.close()
found = {{}}
for path in tf.io.gfile.glob({str(tmp_path)!r} + '/events*'):
  for record in tf.data.TFRecordDataset(path):
    event = tf.compat.v1.Event.FromString(record.numpy())
    for value in event.summary.value:
      found[value.tag] = event.step, tf.make_ndarray(value.tensor)
assert found['train/loss'] == (3, 0.25), found
assert found['bits'][1].reshape(-1)[0] == b'a table'
""")
  assert (run.stdout, run.stderr) == ('True\n', '')
  assert steps_of(tmp_path) == [3]


@pytest.mark.parametrize('missing', ['tensorflow', 'clu'])
def test_the_log_works_without_tensorflow_or_clu(tmp_path, monkeypatch, missing):
  monkeypatch.setitem(sys.modules, missing, None)  # As if it were not installed.
  tensorflow_host.load.cache_clear()  # Other tests may have loaded it.
  with MetricLog(tmp_path) as log:
    assert not log.tensorboard
    log.write(1, {'train/loss': 1.0})
    log.write_text(1, 'bits', 'table')
  assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0, '0.0 s'),
    (12.34, '12.3 s'),
    (59.96, '1 min 0 s'),
    (80, '1 min 20 s'),
    (119.6, '2 min 0 s'),
    (3599.7, '1 h 0 min'),
    (3 * 3600 + 5 * 60 + 29, '3 h 5 min'),
    (86399, '1 d 0 h'),
    (52 * 3600, '2 d 4 h'),
    (math.nan, '?'),
    (math.inf, '?'),
    (-1, '?'),
  ],
)
def test_durations(seconds, text):
  assert format_duration(seconds) == text


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


def test_the_line_and_its_eta(clock):
  stream = io.StringIO()
  progress = Progress(2400, 1000, stream, steps_per_epoch=375, clock=clock, images_per_step=123.44)
  clock.now += 60  # the first step, and what only it does
  progress.update(1001, 2.0)
  assert progress.eta() is None
  clock.now += 20
  progress.update(1201, 1234.4, loss=1.23449, student='97.2 %')
  assert progress.eta() == pytest.approx(119.9)  # 200 steps took 20 s; 1199 are left.
  assert stream.getvalue() == (
    'step 1001/2400  41 %  epoch 2.7/6.4  2 img/s  61.7 s/step\n'
    'step 1201/2400  50 %  epoch 3.2/6.4  1234 img/s  100 ms/step  loss 1.234  student 97.2 %  ETA 2 min 0 s\n'
  )


@pytest.mark.parametrize(
  'step, total, shown', [(2, 3, '0.5/0.75'), (3, 3, '0.75/0.75'), (4, 4, '1/1'), (239, 240, '59.8/60')]
)
def test_epochs_end_at_their_number(clock, step, total, shown):
  stream = io.StringIO()
  Progress(total, 0, stream, steps_per_epoch=4, clock=clock).update(step, 10.0)
  assert f'  epoch {shown}' in stream.getvalue()


def test_a_log_gets_a_line_at_most_every_ten_seconds_and_the_last(clock):
  stream = io.StringIO()
  progress = Progress(100, 0, stream, clock=clock)
  for step in range(1, 101):
    clock.now += 0.9
    progress.update(step, 5.0)
  shown = [int(line.split('/')[0].split()[1]) for line in stream.getvalue().splitlines()]
  assert shown == [1, 13, 25, 37, 49, 61, 73, 85, 97, 100]
  assert '\r' not in stream.getvalue()


def test_other_work_than_steps_is_shown_meanwhile(clock, monkeypatch):
  """An evaluation of 40 s: in a log every ten seconds, and the last step is not repeated at the end."""
  stream = io.StringIO()
  progress = Progress(5, 0, stream, clock=clock)
  progress.update(5, 5.0)
  for done in range(40):
    clock.now += 1
    progress.meanwhile(f'evaluating test: image {done}/40')
  progress.close()
  assert stream.getvalue().splitlines() == [
    'step 5/5  100 %  5 img/s',
    *(f'evaluating test: image {done}/40' for done in (9, 19, 29, 39)),
  ]
  monkeypatch.setenv('TERM', 'xterm')
  stream = Terminal()
  progress = Progress(5, 0, stream, clock=clock)
  progress.update(1, 5.0)
  clock.now += 1
  progress.meanwhile('evaluating')
  progress.note('step 1: 50 %')
  clock.now += 1
  progress.update(2, 5.0)
  clear = '\r\x1b[K'
  assert stream.getvalue().split(clear)[1:] == [
    'step 1/5  20 %  5 img/s',
    'evaluating',
    'step 1: 50 %\nevaluating',
    'step 2/5  40 %  5 img/s  ETA 6.0 s',
  ]
  stream = Terminal()
  with Progress(1, 0, stream, clock=clock) as progress:
    progress.meanwhile('evaluating')
  assert stream.getvalue() == f'{clear}evaluating{clear}'


def test_close_shows_an_early_end(clock):
  stream = io.StringIO()
  progress = Progress(100, 0, stream, clock=clock)
  for step in (1, 2, 3):
    progress.update(step, 5.0)
  progress.close()
  progress.close()
  assert [line[:10] for line in stream.getvalue().splitlines()] == ['step 1/100', 'step 3/100']


def test_a_terminal_has_one_line_and_notes_above_it(clock, monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '23')
  stream = Terminal()
  progress = Progress(100, 0, stream, clock=clock)
  progress.update(1, 5.0)
  progress.update(2, 5.0)  # Too soon.
  clock.now += 0.2
  progress.update(3, 5.0)
  progress.note('saved step 3')
  progress.close()
  assert stream.getvalue() == (
    '\r\x1b[Kstep 1/100  1 %\r\x1b[Kstep 3/100  ETA 9.7 s\r\x1b[Ksaved step 3\nstep 3/100  ETA 9.7 s'
    '\r\x1b[Kstep 3/100  3 %\n'  # no more steps come
  )


@pytest.mark.parametrize(
  'columns, text',
  [
    (27, 'step 1/100  1 %  ETA 9.7 s'),
    (26, 'step 1/100  ETA 9.7 s'),
    (22, 'step 1/100  ETA 9.7 s'),
    (21, '  ETA 9.7 s'),
    (6, '  ETA'),
    (60, 'step 1/100  1 %  5 img/s  ETA 9.7 s'),
  ],
)
def test_a_narrow_terminal_shows_whole_parts(monkeypatch, columns, text):
  monkeypatch.setenv('COLUMNS', str(columns))
  assert progress_line._cut('step 1/100  1 %  5 img/s  ETA 9.7 s') == text


def test_other_processes_are_silent(clock):
  stream = io.StringIO()
  progress = Progress(2, 0, stream, enabled=False, clock=clock)
  progress.update(2, 5.0)
  progress.note('text')
  progress.close()
  assert stream.getvalue() == ''


# --- Event files.


def record(data):
  """A TFRecord, with its CRCs."""
  length = struct.pack('<Q', len(data))
  crc = lambda part: struct.pack('<I', tfrecord.mask(tfrecord.crc32c(part)))
  return length + crc(length) + data + crc(data)


def event(step):
  """Event {double wall_time = 1; int64 step = 2}, by hand: tags 0x09 and 0x10."""
  return record(b'\x09' + struct.pack('<d', 1.5) + (b'\x10' + bytes([step]) if step else b''))


def test_events_after_the_resume_step_are_dropped(tmp_path):
  """The version (without a step) and the steps before stay byte for byte; a record torn by a kill goes."""
  path = tmp_path / 'events.out.tfevents.1.host'
  path.write_bytes(event(0) + event(3) + event(6) + event(9) + event(6)[:-3])
  (tmp_path / 'other').write_bytes(event(9))
  event_files.drop_after(tmp_path, 6)
  assert path.read_bytes() == event(0) + event(3) + event(6)
  assert (tmp_path / 'other').read_bytes() == event(9)
  event_files.drop_after(tmp_path, 0)  # everything is logged again
  assert not path.exists()


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
  """Read back by TensorBoard itself."""
  pytest.importorskip('tensorboard')
  for start in (None, 4):
    with MetricLog(tmp_path, resume_step=start) as log:
      if not log.tensorboard:
        pytest.skip('clu or TensorFlow is not installed')
      for step in range((start or 0) + 1, 7):
        log.write(step, {'train/loss': step})
  from tensorboard.backend.event_processing import event_file_loader

  steps = [
    found.step
    for path in sorted(tmp_path.glob('events*'))
    for found in event_file_loader.EventFileLoader(str(path)).Load()
    if found.summary.value
  ]
  assert steps == [1, 2, 3, 4, 5, 6]
