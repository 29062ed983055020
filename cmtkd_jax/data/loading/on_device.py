"""All images on the device: a batch is one compiled gather, and the host sends nothing but record numbers."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmtkd_jax.data import broken as broken_lib
from cmtkd_jax.data.loading import loaders
from cmtkd_jax.data.sources import base
from cmtkd_jax.data.transforms import image_file
from cmtkd_jax.errors import UserError


def read_all(
  source: base.Source, num_workers: int, substitutes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
  """Decodes a whole source of equally sized images.

  Args:
    source: where the images come from.
    num_workers: threads that decode; 0 is one.
    substitutes: sorted record numbers, as for `host_reader.HostReader`: one of these that cannot be decoded is replaced
      by the next of them that can, also its label.

  Returns:
    (uint8[N, h, w, C], int32[N], the broken records: number -> `CorruptImageError.record`).

  Raises:
    UserError: an image that is not one of `substitutes` cannot be decoded, or has no substitute.
  """
  shape = (len(source), *(source.shape or ()))
  try:
    images = np.empty(shape, np.uint8)
  except MemoryError:
    raise UserError(
      f"config.data.on_device: the images take {math.prod(shape) / 2**30:,.0f} GiB of memory; set on_device='no'"
    ) from None
  labels = np.empty(len(source), np.int32)
  errors = {}

  def fill(records):
    opened, labels[records] = source.read(records)
    base.check_labels(labels[records], source, records)
    if isinstance(opened, np.ndarray):
      images[records] = opened
      return
    for row, record in enumerate(records):
      try:
        images[record] = _decoded(opened, row, source, record)
      except broken_lib.CorruptImageError as e:
        errors[int(record)] = e

  chunks = np.array_split(np.arange(len(source)), -(-len(source) // 256))
  with futures.ThreadPoolExecutor(max(1, num_workers)) as pool:
    for _ in pool.map(fill, chunks):
      pass
  for record in sorted(errors):
    other = _substitute(record, errors, substitutes)
    images[record], labels[record] = images[other], labels[other]
  return images, labels, {record: errors[record].record for record in sorted(errors)}


def _decoded(opened, row, source, record):
  """The image in `row` of `opened`, which is number `record` of `source`."""
  with broken_lib.naming_record(source, record):
    image = image_file.to_array(opened[row], source.shape[-1])
    if image.shape != source.shape:
      (height, width), (wanted_height, wanted_width) = image.shape[:2], source.shape[:2]
      raise UserError(
        f'config.data.name: {source.describe(record)} is {height}x{width}, but the data set says '
        f"{wanted_height}x{wanted_width}; set config.data.on_device='no'"
      )
    return image


def _substitute(record, errors, substitutes):
  """The number of the image that takes the place of `record`, which cannot be decoded."""
  if substitutes is None or record not in substitutes:
    raise errors[record]
  other = next((other for other in broken_lib.stand_ins(substitutes, record) if other not in errors), None)
  if other is None:
    raise UserError(f'{errors[record]}; nor can the {len(errors) - 1} images that could stand in')
  return other


class Reader:
  """Holds uint8[N, h, w, C] and int32[N] on every device, and gathers sharded batches from them.

  Attributes:
    broken: the images that were replaced when they were read: record -> its name and the reason.
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray, broken: Mapping[int, str], mesh: jax.sharding.Mesh):
    self.broken = broken
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

  def share_broken(self):
    """See `loaders.Reader`; every process has read all images."""

  def stream(self, rows: Callable[[int], np.ndarray], start: int, stop: int | None) -> Iterator[loaders.Batch]:
    """See `loaders.Reader`."""
    for step in itertools.count(start) if stop is None else range(start, stop):
      yield self._gather(*self._arrays, loaders.to_global(rows(step).astype(np.int32), self.sharding))
