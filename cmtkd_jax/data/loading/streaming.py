"""Images read and decoded batch by batch in threads (Grain) or processes, for sets that do not fit on the device."""

import collections
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmtkd_jax.data import broken as broken_lib
from cmtkd_jax.data.loading import loaders
from cmtkd_jax.data.loading.host_reader import HostReader
from cmtkd_jax.data.loading.worker_pool import Workers
from cmtkd_jax.runtime import distributed

_BATCHES_IN_FLIGHT = 2
# Rows that one thread reads at a time: enough to amortize a task's cost, few enough to share out a batch.
_CHUNK = 32


class _Chunks:
  """Random access to pieces of this process's rows, in the order of the stream; what Grain's threads read."""

  def __init__(self, reader: 'Reader', rows: Callable[[int], np.ndarray], start: int, stop: int | None):
    self._reader, self._rows, self._start = reader, rows, start
    self._batch_size = len(rows(start))
    self._own = loaders.own_rows(self._batch_size, reader.sharding)
    count = self._own.stop - self._own.start
    self._size = max(d for d in range(1, min(count, _CHUNK) + 1) if count % d == 0)
    self.per_batch = count // self._size
    self._len = sys.maxsize if stop is None else (stop - start) * self.per_batch

  def __len__(self):
    return self._len

  def __getitem__(self, index):
    step, chunk = divmod(index, self.per_batch)
    step += self._start
    first = self._own.start + chunk * self._size
    records = self._rows(step)[first : first + self._size]
    return self._reader.read(records, step * self._batch_size + first)


class Reader:
  """Streams batches; each process of a run reads only its own block of rows.

  Args:
    host: what reads and decodes.
    num_workers: reader threads; 0 reads in the caller's thread.
    workers: processes that do the threads' work; None: the threads do it.
    max_broken: how many images may be broken before the run stops.
    mesh: devices with an axis 'data'.

  Attributes:
    broken: the images that cannot be decoded: record -> its name and the reason. Those that this process has met, and
      at the last `share_broken` other processes.
  """

  def __init__(
    self, host: HostReader, num_workers: int, workers: Workers | None, max_broken: float, mesh: jax.sharding.Mesh
  ):
    self.sharding, self.shape = NamedSharding(mesh, P('data')), host.shape
    self.read = functools.partial(workers.read, host) if workers else host.read
    self.broken: Mapping[int, str] = {}
    self._shared: Mapping[int, str] = {}  # what all processes know
    self._num_workers, self._max_broken = num_workers, max_broken

  def stream(self, rows: Callable[[int], np.ndarray], start: int, stop: int | None) -> Iterator[loaders.Batch]:
    """See `loaders.Reader`; keeps two batches on their way to the device and two more being decoded."""
    chunks = _Chunks(self, rows, start, stop)
    options = grain.ReadOptions(
      num_threads=self._num_workers, prefetch_buffer_size=_BATCHES_IN_FLIGHT * chunks.per_batch + self._num_workers
    )
    iterator = iter(grain.MapDataset.source(chunks).to_iter_dataset(options))
    try:
      ready = collections.deque()
      while pieces := [piece for _, piece in zip(range(chunks.per_batch), iterator)]:
        *parts, broken = zip(*pieces)
        self._count(broken)
        images, labels = map(np.concatenate, parts)
        put = lambda x: jax.make_array_from_process_local_data(self.sharding, x)
        ready.append({'image': put(images), 'label': put(labels)})
        if len(ready) == _BATCHES_IN_FLIGHT:
          yield ready.popleft()
      yield from ready
    finally:
      iterator.close()

  def share_broken(self):
    """See `loaders.Reader`."""
    own = [(int(record), name) for record, name in self.broken.items() if record not in self._shared]
    found = itertools.chain.from_iterable(map(json.loads, distributed.texts_of_all(json.dumps(own))))
    self._shared = {**self._shared, **dict(found)}
    self.broken = self._shared
    broken_lib.check_count(self.broken, self._max_broken)

  def _count(self, broken):
    self.broken = functools.reduce(dict.__or__, broken, self.broken)
    broken_lib.check_count(self.broken, self._max_broken)
