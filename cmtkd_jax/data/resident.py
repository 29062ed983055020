"""All images on the device: a batch is one compiled gather, and the host sends nothing but record numbers."""

import itertools
import types
from collections.abc import Callable, Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from cmtkd_jax.data import decode, loaders, sources


def read_all(source: sources.Source, num_workers: int) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a whole source of equally sized images.

  Returns:
    (uint8[N, h, w, C], int32[N]).

  Raises:
    UserError: an image cannot be decoded.
  """
  images = np.empty((len(source), *source.shape), np.uint8)
  labels = np.empty(len(source), np.int32)

  def fill(records):
    opened, labels[records] = source.read(records)
    sources.check_labels(labels[records], source, records)
    if isinstance(opened, np.ndarray):
      images[records] = opened
      return
    for row, record in enumerate(records):
      with decode.blame(source, record):
        images[record] = decode.to_array(opened[row], source.shape[-1])

  chunks = np.array_split(np.arange(len(source)), -(-len(source) // 256))
  with futures.ThreadPoolExecutor(max(1, num_workers)) as pool:
    for _ in pool.map(fill, chunks):
      pass
  return images, labels


class Reader:
  """Holds uint8[N, h, w, C] and int32[N] on every device, and gathers sharded batches from them."""
  broken = types.MappingProxyType({})  # `read_all` takes none

  def __init__(self, images: np.ndarray, labels: np.ndarray, mesh: jax.sharding.Mesh):
    replicated = NamedSharding(mesh, P())
    self.sharding = NamedSharding(mesh, P('data'))
    self.shape = shape = images.shape[1:]
    put = lambda x: jax.make_array_from_callback(x.shape, replicated, lambda index: x[index])
    # Flat rows: a trailing axis of 3 channels would be padded to a whole vector register on TPU.
    self._arrays = put(images.reshape(len(images), -1)), put(labels)

    def gather(images, labels, records):
      take = lambda x: jnp.take(x, records, axis=0, mode='clip')
      return {'image': take(images).reshape(-1, *shape), 'label': take(labels)}

    self._gather = jax.jit(gather, out_shardings=self.sharding)

  def stream(self, rows: Callable[[int], np.ndarray], start: int,
             stop: int | None) -> Iterator[loaders.Batch]:
    """See `loaders.Reader`."""
    for step in itertools.count(start) if stop is None else range(start, stop):
      yield self._gather(*self._arrays, loaders.to_global(rows(step).astype(np.int32), self.sharding))
