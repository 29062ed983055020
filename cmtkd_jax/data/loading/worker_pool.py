"""Worker processes that read and decode, if one process is too slow because its threads share Python's lock.

A worker is fed through its standard input and answers on its standard output. It ends when its input ends, so none
outlives the process that started it, however that one ends. It sees no accelerator and never runs the user's main
script. Requests and answers are pickles between processes of one user; images follow their answer as they are.
"""

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
import weakref

import numpy as np

import cmtkd_jax
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import silencers

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(cmtkd_jax.__file__)))
_SERVE = 'from cmtkd_jax.data.loading import worker_pool; worker_pool.serve()'
_OK, _USER_ERROR, _BUG = range(3)


class Workers:
  """At most `count` worker processes, each started when it is first needed; thread-safe.

  They end with this object, at the latest with this process.
  """

  def __init__(self, count: int):
    self._idle, self._processes = queue.LifoQueue(), []
    for _ in range(count):
      self._idle.put(None)
    weakref.finalize(self, _end, self._processes)

  def read(self, reader, records: np.ndarray, position: int):
    """Returns `reader.read(records, position)`, computed by a worker; waits until one is idle."""
    worker = self._idle.get()
    try:
      if worker is None:
        worker = _Worker()
        self._processes.append(worker.process)
      return worker.read(reader, records, position)
    finally:
      self._idle.put(worker)


class _Worker:
  """One worker process and the readers that it holds."""

  def __init__(self):
    paths = filter(None, (_PACKAGE_ROOT, os.environ.get('PYTHONPATH')))
    environment = os.environ | {
      'PYTHONPATH': os.pathsep.join(paths),
      'JAX_PLATFORMS': 'cpu',
      'CUDA_VISIBLE_DEVICES': '',
      'TF_CPP_MIN_LOG_LEVEL': '3',
    }
    # In a session of its own: Ctrl-C is for the parent, which then ends its workers.
    self.process = subprocess.Popen(
      [sys.executable, '-c', _SERVE],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      start_new_session=True,
    )
    self._known, self._numbers = weakref.WeakKeyDictionary(), itertools.count()  # readers that it holds

  def read(self, reader, records, position):
    try:
      number, payload = self._known.get(reader), None
      if number is None:
        number, payload = next(self._numbers), reader
      pickle.dump((number, payload, records, position), self.process.stdin, pickle.HIGHEST_PROTOCOL)
      self.process.stdin.flush()
      self._known[reader] = number
      status, answer = pickle.load(self.process.stdout)
      if status == _OK:
        images = np.empty((len(records), *reader.shape), np.uint8)
        if self.process.stdout.readinto(images.reshape(-1)) < images.size:
          raise EOFError
        return images, *answer
    except (OSError, EOFError, pickle.UnpicklingError) as e:
      _end([self.process])  # it may be alive, and wait for its next request
      raise UserError(
        f'a worker process that decodes images ended (exit status {self.process.returncode}), perhaps for '
        "want of memory; lower config.data.num_workers, or set config.data.workers='threads'"
      ) from e
    if status == _USER_ERROR:
      raise UserError(answer)
    raise RuntimeError(f'in a worker process: {answer}')


def _end(processes):
  for process in processes:
    with contextlib.suppress(OSError):  # it has died before it read what is to be flushed
      process.stdin.close()
  for process in processes:
    process.stdout.close()
    try:
      process.wait(5)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def serve():
  """What a worker process runs: answers requests until its standard input ends."""
  for number in (signal.SIGINT, signal.SIGTERM):  # meant for the parent
    signal.signal(number, signal.SIG_IGN)
  requests, answers = os.fdopen(os.dup(0), 'rb'), os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # What a library prints may not get between the answers.
  os.close(0)
  silencers.install()
  readers = {}
  while True:
    try:
      number, payload, records, position = pickle.load(requests)
    except EOFError:
      return
    try:
      if payload is not None:
        readers[number] = payload
      images, *rest = readers[number].read(records, position)
      answer = _OK, tuple(rest)
    except UserError as e:
      images, answer = None, (_USER_ERROR, str(e))
    except Exception:  # ours: the parent shows it
      images, answer = None, (_BUG, traceback.format_exc())
    try:
      pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
      if images is not None:
        answers.write(np.ascontiguousarray(images))
      answers.flush()
    except BrokenPipeError:
      os._exit(0)
