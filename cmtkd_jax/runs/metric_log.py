"""Metrics of a run: one JSON object a line in `metrics.jsonl`, and TensorBoard where clu is installed."""

import contextlib
import json
import logging
import math
import os
import time
import warnings

from etils import epath

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runs import event_files
from cmtkd_jax.runtime import distributed, local_file, silencers, tensorflow_host

FILE = 'metrics.jsonl'
_NON_FINITE = ('nan', 'inf', '-inf')


class MetricLog:
  """Appends rows to `metrics.jsonl` of a work directory; silent in every process but the first.

  Args:
    workdir: directory of the run; made when missing.
    resume_step: drop the rows and events after this step first, because they will be logged again; None drops none.
    tensorboard: also write TensorBoard event files, when clu and TensorFlow are installed.

  Raises:
    UserError: `metrics.jsonl` has a damaged line other than the last.
  """

  def __init__(self, workdir, resume_step=None, tensorboard=True):
    self._file = None
    self._clu = None
    if distributed.is_first():
      workdir = epath.Path(workdir)
      workdir.mkdir(parents=True, exist_ok=True)
      _clean(workdir / FILE, resume_step)
      if resume_step is not None:
        event_files.drop_after(workdir, resume_step)
      self._file = (workdir / FILE).open('a')
      self._clu = _clu_writer(workdir) if tensorboard else None

  @property
  def tensorboard(self):
    """Whether event files are being written."""
    return self._clu is not None

  def write(self, step, scalars):
    """Logs one row, on disk when this returns.

    Args:
      step: training step of the row.
      scalars: dict from name to number; 'step' and 'time' are taken.

    Raises:
      ValueError: a name is taken.
    """
    if not scalars.keys().isdisjoint(('step', 'time')):
      raise ValueError(f'step and time are set by the log itself: {sorted(scalars)}')
    if self._file is None:
      return
    scalars = {name: float(value) for name, value in scalars.items()}
    row = {'step': int(step), 'time': round(time.time(), 3)}
    row.update((name, value if math.isfinite(value) else str(value)) for name, value in scalars.items())
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    with contextlib.suppress(OSError):  # some file systems have no such call
      os.fsync(self._file.fileno())
    self._to_tensorboard(lambda writer: writer.write_scalars(int(step), scalars))

  def write_text(self, step, key, text):
    """Shows a text, such as a table of bits, in TensorBoard; it does not enter `metrics.jsonl`."""
    self._to_tensorboard(lambda writer: writer.write_texts(int(step), {key: text}))

  def close(self):
    """Writes what is pending and closes the files."""
    self._to_tensorboard(lambda writer: writer.close())
    self._clu = None
    if self._file is not None:
      self._file.close()
    self._file = None

  def _to_tensorboard(self, write):
    """Calls `write(writer)`, if there is a writer; one that fails is used no more, with a warning."""
    if self._clu is None:
      return
    try:
      write(self._clu)
    except Exception as error:  # clu raises what its thread has met, and TensorFlow has types of its own
      self._clu = None
      logging.getLogger(__name__).warning(
        'TensorBoard files cannot be written any more (%s); %s has all metrics', one_line(error, 150), FILE
      )

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()


def read(workdir):
  """The rows of a run as dicts, in the order of the file; a last line torn by a kill is left out.

  Args:
    workdir: directory of the run.

  Returns:
    list of {'step': int, 'time': seconds, name: float, ...}; nan and inf are floats again.

  Raises:
    UserError: there is no `metrics.jsonl`, or a line other than the last is damaged.
  """
  path = epath.Path(workdir) / FILE
  if not path.exists():
    raise UserError(f'no {FILE} in {workdir}; name the directory of a run that has started')
  return [row for _, row in _rows(path)]


def _rows(path):
  """[(line, row)] of the whole lines."""
  try:
    *lines, _ = local_file.read_bytes(path).split(b'\n')  # What follows the last newline is empty or torn.
  except OSError as e:
    raise UserError(f'{path} cannot be read ({e.strerror or e}); restore it, or train in another workdir') from None
  rows = []
  for number, line in enumerate(lines, 1):
    row = _parse(line)
    if row is not None:
      rows.append((line, row))
    elif number < len(lines):
      raise UserError(f'line {number} of {path} is not a row of metrics: {line[:60]!r}; delete that line')
  return rows


def _parse(line):
  """The row, or None when the line is none."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
    return None
  if not isinstance(row, dict) or type(row.get('step')) is not int or not 0 <= row['step'] < 2**31:
    return None
  row = {name: float(value) if value in _NON_FINITE else value for name, value in row.items()}
  return row if all(isinstance(value, (int, float)) for value in row.values()) else None


def _clean(path, resume_step):
  """Drops the torn last line and the rows after `resume_step`, in one rename."""
  if not path.exists():
    return
  kept = [line for line, row in _rows(path) if resume_step is None or row['step'] <= resume_step]
  data = b''.join(line + b'\n' for line in kept)
  if data != local_file.read_bytes(path):
    local_file.write_whole(path, data)


def _clu_writer(workdir):
  """clu's TensorBoard writer in a thread of its own, or None when clu or TensorFlow is missing.

  This is `create_default_writer` less its LoggingWriter, which would print every row to the terminal.
  """
  with silencers.silent_stderr(), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      from clu import metric_writers

      tensorflow_host.load()
    except (ImportError, AttributeError, TypeError, RuntimeError):  # absent, or does not fit what else is installed
      return None
    return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(os.fspath(workdir))])
