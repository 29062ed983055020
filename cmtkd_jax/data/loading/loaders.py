"""Loaders: which records make up which batch. How a batch is made is for `on_device` or `streaming`."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax
import numpy as np

from cmtkd_jax.data import sampling

Batch = dict[str, jax.Array]


class Reader(Protocol):
  """Makes batches of given records; `on_device.Reader` and `streaming.Reader`."""

  broken: Mapping[int, str]
  shape: tuple[int, int, int]  # (h, w, C) of an image in a batch
  sharding: jax.sharding.NamedSharding  # of a batch

  def stream(self, rows: Callable[[int], np.ndarray], start: int, stop: int | None) -> Iterator[Batch]:
    """Yields {'image': uint8[B, h, w, C], 'label': int32[B]} of the records rows(start), rows(start + 1), ...

    Record -1 stands for padding: its image and label are arbitrary.
    """

  def share_broken(self):
    """Adds what other processes have met to `broken`; all processes call it together.

    Raises:
      UserError: these are more images than the configuration allows.
    """


def batch_spec(batch_size: int, shape, sharding) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the specification of a batch: 'image' uint8 [batch_size, *shape], 'label' int32 [batch_size]."""
  spec = lambda shape, dtype: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
  return {'image': spec(shape, np.uint8), 'label': spec((), np.int32)}


class TrainLoader:
  """Endless shuffled batches; the position in the stream is one integer, the global step.

  Step s is batch s % steps_per_epoch of epoch s // steps_per_epoch. What a partial batch would hold is
  left out of its epoch (another epoch leaves out other records).

  Attributes:
    num_examples: records in the training split, less the held-out ones.
    steps_per_epoch: num_examples // batch_size.
  """

  def __init__(self, reader: Reader, records: np.ndarray, batch_size: int, seed: int):
    self.num_examples = len(records)
    self.steps_per_epoch = len(records) // batch_size
    self._reader, self._records, self._batch_size = reader, records, batch_size
    # Two, since reader threads straddle the border of two epochs.
    self._order = functools.lru_cache(maxsize=2)(functools.partial(sampling.epoch_permutation, len(records), seed))

  def broken(self) -> Mapping[int, str]:
    """Returns the images that could not be decoded and were replaced: record -> its name; all processes call it.

    Raises:
      UserError: these are more images than the configuration allows.
    """
    self._reader.share_broken()
    return self._reader.broken

  @property
  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of what `batches` yields; reads no image."""
    return batch_spec(self._batch_size, self._reader.shape, self._reader.sharding)

  def indices(self, step: int) -> np.ndarray:
    """Returns the record numbers of one batch, int64[batch_size], as in the training split before minival."""
    epoch, position = divmod(step, self.steps_per_epoch)
    rows = slice(position * self._batch_size, (position + 1) * self._batch_size)
    return self._records[self._order(epoch)[rows]]

  def batches(self, start: int = 0) -> Iterator[Batch]:
    """Yields the batches of steps start, start + 1, ... without end, sharded over mesh axis 'data'.

    Each is {'image': uint8[B, h, w, C], 'label': int32[B]}. Nothing before `start` is read. Closing the
    iterator (or dropping it) ends its threads.
    """
    return self._reader.stream(self.indices, start, None)


class EvalLoader:
  """Every record of a split exactly once, in order.

  Attributes:
    num_examples: number of records.
    batch_size: rows of each batch, a multiple of the device count.
    num_batches: number of batches in one pass.
  """

  def __init__(self, reader: Reader, records: np.ndarray, batch_size: int, sharding: jax.sharding.NamedSharding):
    self.num_examples = len(records)
    self.batch_size = batch_size
    self.num_batches = -(-len(records) // batch_size)
    self._reader, self._records, self._sharding = reader, records, sharding

  def _rows(self, step: int) -> np.ndarray:
    rows = self._records[step * self.batch_size : (step + 1) * self.batch_size]
    return np.pad(rows, (0, self.batch_size - len(rows)), constant_values=-1)

  def batches(self) -> Iterator[Batch]:
    """Yields {'image': uint8[B, h, w, C], 'label': int32[B], 'mask': bool[B]}; mask is False on padding."""
    batches = self._reader.stream(self._rows, 0, self.num_batches)
    for step, batch in enumerate(batches):
      yield batch | {'mask': to_global(self._rows(step) >= 0, self._sharding)}


@functools.lru_cache(maxsize=16)
def own_rows(batch_size: int, sharding: jax.sharding.NamedSharding) -> slice:
  """Returns the contiguous block of a batch's rows that lies on this process's devices.

  Raises:
    ValueError: they are no block, because the mesh does not have the devices of a process side by side.
  """
  blocks = sorted(
    {
      index[0].indices(batch_size)[:2]
      for index in sharding.addressable_devices_indices_map((batch_size,)).values()
      if index is not None
    }
  )
  if any(before[1] != after[0] for before, after in itertools.pairwise(blocks)):
    raise ValueError(f'the rows of this process are in several blocks, {blocks}; order the mesh by process')
  return slice(blocks[0][0], blocks[-1][1])


def to_global(rows: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
  """Shards a host array that every process holds in full: each process copies only its own rows."""
  own = own_rows(len(rows), sharding)
  return jax.make_array_from_process_local_data(sharding, rows[own], rows.shape)
