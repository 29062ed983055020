"""Images read and decoded batch by batch in threads (Grain), for data sets that do not fit on the device."""

import collections
import sys
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from cmtkd_jax.data import decode, loaders, sources

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
    records = self._rows(step)[first:first + self._size]
    return self._reader.read(records, step * self._batch_size + first)


class Reader:
  """Streams batches of a source; each process reads only its own block of rows.

  Args:
    source: where the records come from.
    shape: (H, W, C) after `transform`.
    transform: (image, position, record) -> uint8[H, W, C], as from `decode.build`.
    num_workers: reader threads; 0 reads in the caller's thread.
    mesh: devices with an axis 'data'.
  """

  def __init__(self, source: sources.Source, shape: tuple[int, int, int], transform: Callable,
               num_workers: int, mesh: jax.sharding.Mesh):
    self.sharding = NamedSharding(mesh, P('data'))
    self._source, self._shape, self._transform, self._num_workers = source, shape, transform, num_workers

  def read(self, records: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint8[n, H, W, C], int32[n]) of n records; `position` counts the stream's rows from step 0."""
    images = np.zeros((len(records), *self._shape), np.uint8)
    labels = np.zeros(len(records), np.int32)
    real = np.flatnonzero(records >= 0)
    if real.size:
      opened, labels[real] = self._source.read(records[real])
      sources.check_labels(labels[real], self._source, records[real])
      for row, image in zip(real, opened):
        with decode.blame(self._source, records[row]):
          images[row] = self._transform(image, position + int(row), int(records[row]))
    return images, labels

  def stream(self, rows: Callable[[int], np.ndarray], start: int,
             stop: int | None) -> Iterator[loaders.Batch]:
    """See `loaders.Reader`; keeps two batches on their way to the device and two more being decoded."""
    chunks = _Chunks(self, rows, start, stop)
    options = grain.ReadOptions(
        num_threads=self._num_workers,
        prefetch_buffer_size=_BATCHES_IN_FLIGHT * chunks.per_batch + self._num_workers)
    iterator = iter(grain.MapDataset.source(chunks).to_iter_dataset(options))
    try:
      ready = collections.deque()
      while pieces := [piece for _, piece in zip(range(chunks.per_batch), iterator)]:
        images, labels = (np.concatenate(parts) for parts in zip(*pieces))
        put = lambda x: jax.make_array_from_process_local_data(self.sharding, x)
        ready.append({'image': put(images), 'label': put(labels)})
        if len(ready) == _BATCHES_IN_FLIGHT:
          yield ready.popleft()
      yield from ready
    finally:
      iterator.close()
