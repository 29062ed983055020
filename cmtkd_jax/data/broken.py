"""Images that cannot be decoded: named in one line, or replaced by others and counted."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from cmtkd_jax.data.sources.base import Source
from cmtkd_jax.errors import UserError, one_line

_AT_FIRST = 100  # records to try; if none can be read, the whole data set is an error
_STAND_INS = 100  # that are tried for one broken image


class CorruptImageError(UserError):
  """One image cannot be decoded; others can.

  record: which one, and why, in words.
  """

  record = ''


class WrongSizeError(ValueError):
  """An image has another size than the network, and nothing is resized; the text is '8x9, not 8x8'."""


@contextlib.contextmanager
def naming_record(source: Source, record: int):
  """Names the record whose decoding failed: in a `CorruptImageError`, or in a `UserError` if only its size is wrong."""
  try:
    yield
  except UserError:
    raise
  except WrongSizeError as e:
    raise UserError(
      f'config.data.resize=0, but {source.describe(record)} is {e} (config.data.image_size); set config.data.resize'
    ) from e
  except (OSError, ValueError) as e:
    name, reason = source.describe(record), one_line(getattr(e, 'strerror', '') or e, 200)
    error = CorruptImageError(f'config.data.name: {name} cannot be decoded ({reason}); repair or remove it')
    error.record = f'{name} ({reason})'
    raise error from e


def first_shape(shape_of: Callable[[int], tuple[int, int, int]], count: int) -> tuple[int, int, int]:
  """Returns the shape of the first of `count` records whose header can be read; gives up after some."""
  errors = []
  for record in range(min(count, _AT_FIRST)):
    try:
      return shape_of(record)
    except CorruptImageError as e:
      errors.append(e)
  raise errors[0]


def same_shape(shape_of: Callable[[int], tuple[int, int, int]], count: int) -> tuple[int, int, int] | None:
  """Returns the shape that all of `count` records have whose header can be read, None where they differ."""
  wanted = first_shape(shape_of, count)
  for record in range(count):
    try:
      if shape_of(record) != wanted:
        return None
    except CorruptImageError:  # replaced, or an error, when it is read
      pass
  return wanted


def stand_ins(records: np.ndarray, record: int) -> Iterator[int]:
  """Yields the records that may stand in for a broken one, the next one first; after the last comes the first.

  The rule depends on record numbers alone, so neither on where a run started nor on who reads.

  Args:
    records: sorted numbers of the records to train on.
    record: number of the broken one.
  """
  after = np.searchsorted(records, record, 'right')
  for i in range(min(_STAND_INS, len(records))):
    yield int(records[(after + i) % len(records)])


def check_count(broken: Mapping[int, str], at_most: float):
  """Raises `UserError` where more than `at_most` training images are broken."""
  if len(broken) > at_most:
    images = f'{len(broken)} training image' + 's' * (len(broken) > 1)
    raise UserError(
      f'config.data.max_corrupt_fraction: {images} cannot be decoded, more than the {int(at_most)} that it '
      f'allows; repair or remove them, or raise it; the first: {next(iter(broken.values()))}'
    )
