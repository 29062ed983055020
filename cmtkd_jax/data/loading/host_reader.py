"""Records read, decoded and cropped on the host, in a reader thread or in a worker process."""

import numpy as np

from cmtkd_jax.data import broken as broken_lib
from cmtkd_jax.data.sources import base
from cmtkd_jax.data.transforms import decode_pil
from cmtkd_jax.errors import UserError


class HostReader:
  """Reads rows of batches. Picklable.

  Args:
    source: where the records come from.
    shape: (H, W, C) after `transform`.
    transform: makes uint8[H, W, C] of an image.
    substitutes: sorted record numbers; for an image that cannot be decoded the next of them stands in. None: such an
      image is an error.
    cache: whether images are kept in memory once they are decoded, with the shorter side that `transform` resizes to.
  """

  def __init__(
    self,
    source: base.Source,
    shape: tuple[int, int, int],
    transform: decode_pil.Transform,
    substitutes: np.ndarray | None,
    cache: bool = False,
  ):
    self.shape = shape
    self._kept: dict[int, np.ndarray] | None = {} if cache else None
    self._source, self._transform, self._substitutes = source, transform, substitutes

  def read(self, records: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Reads n records, -1 for none.

    Args:
      records: int[n].
      position: rows of the stream from step 0 to the first of these.

    Returns:
      uint8[n, H, W, C], int32[n], and the broken records: number -> `CorruptImageError.record`.

    Raises:
      UserError: a record cannot be read, or has no label; an image cannot be decoded and has no substitute.
    """
    images = np.zeros((len(records), *self.shape), np.uint8)
    labels = np.zeros(len(records), np.int32)
    broken = {}
    real = np.flatnonzero(records >= 0)
    if real.size:
      opened, labels[real] = self._source.read(records[real])
      base.check_labels(labels[real], self._source, records[real])
      for row, item in zip(real, range(len(real))):
        record = int(records[row])
        try:
          images[row] = self._decode(opened, item, position + int(row), record)
        except broken_lib.CorruptImageError as e:
          if self._substitutes is None:
            raise
          images[row], labels[row] = self._substitute(e, position + int(row), record, broken)
    return images, labels, broken

  def _decode(self, opened, item, position, record):
    with broken_lib.naming_record(self._source, record):
      return self._transform(self._image(opened, item, record), position, record)

  def _image(self, opened, item, record):
    """The image as it is read, or as it is kept; threads that meet one at the same time both decode it."""
    if self._kept is None:
      return opened[item]
    if record not in self._kept:
      self._kept[record] = self._transform.shrink(opened[item])
    return self._kept[record]

  def _substitute(self, error, position, record, broken):
    """(image, label) of the next record that can be decoded; `broken` takes those that cannot."""
    broken[record] = error.record
    for other in broken_lib.stand_ins(self._substitutes, record):
      opened, labels = self._source.read(np.array([other]))
      base.check_labels(labels, self._source, np.array([other]))
      try:
        return self._decode(opened, 0, position, other), labels[0]
      except broken_lib.CorruptImageError as e:
        broken[other] = e.record
    raise UserError(f'{error}; nor can {len(broken) - 1} other images') from error
