"""What an operation of an exported network may be: its inputs, attributes and arrays, and its form in JSON."""

import dataclasses
from typing import Any

import numpy as np

from cmtkd_jax.export.schema import (
  LONGEST_SIDE,
  MOST_VALUES,
  Integer,
  InvalidError,
  Items,
  Mapping,
  OneOf,
  Record,
  Text,
  display_name,
)
from cmtkd_jax.models.bit_policy import FULL_PRECISION

MOST_NODES = 2**14
MOST_LEVELS = 256
_LARGEST_POOL = 32  # a pool is written out: a maximum of window^2 views


@dataclasses.dataclass(frozen=True)
class Array:
  """A float32 array of finite values.

  shapes: what its shape may be: 'scalar', 'channels' [C], 'map' [H, W, C], 'thresholds' [levels - 1], 'levels' [n].
  positive, ascending: whether all values are above 0; whether none is less than the one before it.
  """

  shapes: tuple[str, ...] = ()
  positive: bool = False
  ascending: bool = False

  def check(self, array, where):
    if not isinstance(array, (np.ndarray, np.generic)) or array.dtype != np.float32:
      raise InvalidError(f'{where} is {getattr(array, "dtype", display_name(array))}, not float32')
    if not np.isfinite(array).all():
      raise InvalidError(f'{where} has values that are not finite')
    if self.positive and not (array > 0).all():
      raise InvalidError(f'{where} has values that are not above 0')
    if self.ascending and not (np.diff(array.reshape(-1)) >= 0).all():
      raise InvalidError(f'{where} does not ascend')


@dataclasses.dataclass(frozen=True)
class Operation:
  """What an operation may be.

  inputs: for each input the kinds that it may be of, see `Graph.kinds`; 'images' are what goes in.
  rank: number of axes of its inputs without the batch; None: any.
  attributes, optional_attributes: kinds by name. arrays, optional_arrays: `Array`s by name.
  has_weights: whether it also has the attributes and arrays of one row of `WEIGHTS`.
  """

  inputs: tuple[tuple[str, ...], ...]
  rank: int | None = None
  attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
  optional_attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
  arrays: dict[str, Array] = dataclasses.field(default_factory=dict)
  optional_arrays: dict[str, Array] = dataclasses.field(default_factory=dict)
  has_weights: bool = False


_SIDE, _PADDING = Integer(1, LONGEST_SIDE), Integer(0, LONGEST_SIDE)
OPERATIONS = {
  'image': Operation(
    (('images',),), 3, arrays={'mean': Array(('channels',)), 'std': Array(('channels',), positive=True)}
  ),
  'pixels': Operation((('images',),), 3),
  'convolution': Operation(
    (('codes', 'real'),),
    3,
    {'stride': _SIDE, 'padding': _PADDING},
    {'groups': Integer(2, MOST_VALUES)},
    has_weights=True,
  ),
  'dense': Operation((('codes', 'real'),), has_weights=True),
  'affine': Operation(
    (('codes', 'sums', 'real'),),
    arrays={'bias': Array(('scalar', 'channels', 'map')), 'scale': Array(('scalar', 'channels'))},
  ),
  'quantize': Operation(
    (('real',),),
    None,
    {'levels': Integer(2, MOST_LEVELS)},
    optional_arrays={'thresholds': Array(('thresholds',), ascending=True)},
  ),
  'lookup': Operation((('codes',),), arrays={'values': Array(('levels',))}),
  'add': Operation((('real',), ('real',))),
  'relu': Operation((('real',),)),
  'max_pool': Operation(
    (('codes', 'real'),), 3, {'window': Integer(1, _LARGEST_POOL), 'stride': _SIDE, 'padding': _PADDING}
  ),
  'sum': Operation((('codes', 'real'),), 3),
}
# Arrays and attributes of weights: integers, codes with a table of values, or a kernel in full precision.
WEIGHTS = {
  ('codes',): {'bits': Integer(1, 8), 'factor': Integer(1, 2), 'shift': Integer(-512, 512)},
  ('codes', 'values'): {'bits': Integer(1, 8)},
  ('kernel',): {'bits': Integer(FULL_PRECISION, FULL_PRECISION)},
}

# An operation in the JSON of the packed archive, and the shape of its codes there.
NODE = Record(
  {
    'op': OneOf(tuple(OPERATIONS)),
    'inputs': Items(Text(), 1, 2),
    'output': Text(),
    'attributes': Mapping(),
    'arrays': Items(Text(), 0, 3),
  }
)
NODES = Items(NODE, 1, MOST_NODES)
CODES_SHAPE = Items(Integer(1, MOST_VALUES), 2, 4)
