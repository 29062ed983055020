"""What exported files may hold: one schema, which is checked before a file is used and before it is written.

`ABOUT` describes what a file says of its network, `NODE` an operation in JSON, `OPERATIONS` the attributes, arrays and
inputs of each operation. Three functions use them: `parse` and `dump` for JSON, `check_about`, and `check_graph`, which
also follows the shape and the kind of every result through the graph. All of them raise `Invalid`; the reader or writer
adds the name of the file.
"""

import dataclasses
import json
import math
import reprlib
from typing import Any

import numpy as np

from cmtkd_jax.data.sources import base
from cmtkd_jax.export.graph import IMAGES
from cmtkd_jax.models.bit_policy import FULL_PRECISION

LONGEST_SIDE = 2**14  # of a feature map, and of images before they are cropped
MOST_VALUES = 2**28  # of one feature map of one image
_MOST_NODES = 2**14
_MOST_LEVELS = 256
_LARGEST_POOL = 32  # a pool is written out: a maximum of window^2 views
_LARGEST_SUM = 2**31 - 1


class Invalid(ValueError):
  """A value is not what the schema asks for. The message is one line that names the place and the value."""


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


def display_name(value):
  """`value` in short, in printable characters."""
  text = _brief.repr(value).encode('ascii', 'backslashreplace').decode()
  return text if len(text) <= 100 else f'{text[:97]}...'


# Values in JSON.


@dataclasses.dataclass(frozen=True)
class Integer:
  """An integer from `low` to `high`, or one of `also`; true and false are not integers."""

  low: int
  high: int
  also: tuple[int, ...] = ()

  def check(self, value, where):
    if type(value) is not int or not (self.low <= value <= self.high or value in self.also):
      allowed = ' or '.join([f'{self.low}..{self.high}', *map(str, self.also)])
      raise Invalid(f'{where} is {display_name(value)}, not an integer in {allowed}')


@dataclasses.dataclass(frozen=True)
class Text:
  """Up to `longest` characters that can be shown: no control characters, line breaks or lone surrogates."""

  longest: int = base.LONGEST_NAME

  def check(self, value, where):
    if not isinstance(value, str) or not 0 < len(value) <= self.longest:
      raise Invalid(f'{where} is {display_name(value)}, not a text of 1..{self.longest} characters')
    if character := base.unprintable(value):
      raise Invalid(f'{where} is {display_name(value)}, which has the control character {ascii(character)}')


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of some texts."""

  values: tuple[str, ...]

  def check(self, value, where):
    if not isinstance(value, str) or value not in self.values:
      raise Invalid(f'{where} is {display_name(value)}, not one of {", ".join(self.values)}')


@dataclasses.dataclass(frozen=True)
class Items:
  """A list of `fewest` to `most` values of one kind."""

  kind: Any
  fewest: int
  most: int

  def check(self, value, where):
    if not isinstance(value, list) or not self.fewest <= len(value) <= self.most:
      raise Invalid(f'{where} is {display_name(value)}, not a list of {self.fewest}..{self.most} values')
    for i, item in enumerate(value):
      self.kind.check(item, f'{where}[{i}]')


@dataclasses.dataclass(frozen=True)
class Record:
  """An object with all of the fields `required`, some of `optional`, and no others."""

  required: dict[str, Any]
  optional: dict[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, value, where):
    if not isinstance(value, dict):
      raise Invalid(f'{where} is {display_name(value)}, not an object')
    kinds = self.required | self.optional
    for name in value:
      if name not in kinds:
        raise Invalid(f'{where} has the unknown field {display_name(name)}')
    for name in self.required:
      if name not in value:
        raise Invalid(f'{where} has no field {name}')
    for name, item in value.items():
      kinds[name].check(item, f'{where}.{name}')


@dataclasses.dataclass(frozen=True)
class Mapping:
  """An object with any names; its values are of `kind`, or anything that `parse` lets through."""

  kind: Any = None

  def check(self, value, where):
    if not isinstance(value, dict):
      raise Invalid(f'{where} is {display_name(value)}, not an object')
    if self.kind is not None:
      for name, item in value.items():
        Text().check(name, f'a name in {where}')
        self.kind.check(item, f'{where}.{name}')


class Anything:
  """What no program reads: anything that `parse` lets through."""

  def check(self, value, where):
    pass


@dataclasses.dataclass(frozen=True)
class Digest:
  """A SHA-256 as 64 hexadecimal digits."""

  def check(self, value, where):
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set('0123456789abcdef'):
      raise Invalid(f'{where} is {display_name(value)}, not a SHA-256')


IMAGE_SHAPE = Items(Integer(1, LONGEST_SIDE), 3, 3)
CLASSES = Items(Text(), 1, 2**20)
ABOUT = Record(
  {'classes': CLASSES, 'image_shape': IMAGE_SHAPE, 'resize': Integer(0, LONGEST_SIDE)},
  {
    'network': Text(),
    'step': Integer(0, 2**53),
    'bits': Items(Mapping(), 0, 2**14),
    'metrics': Mapping(),
    'config': Mapping(),
    'versions': Mapping(),
  },
)


def parse(data):
  """Returns the value of the JSON text `data`, str or bytes.

  Numbers must be finite and names in an object unique, which Python's `json` does not ask for.

  Raises:
    Invalid: it is not JSON in this sense, or nested too deeply.
  """
  try:
    return json.loads(data, object_pairs_hook=_unique, parse_constant=_not_a_number, parse_float=_finite)
  except RecursionError:
    raise Invalid('its JSON is nested too deeply') from None
  except Invalid:
    raise
  except ValueError as e:  # no JSON, no UTF-8, an integer of thousands of digits
    raise Invalid(f'its JSON cannot be read: {" ".join(str(e).split())}') from None


def dump(value, indent=None):
  """Returns the JSON text of `value`.

  Raises:
    Invalid: JSON cannot hold it, or `parse` would refuse it.
  """
  try:
    text = json.dumps(value, indent=indent, allow_nan=False)
  except (TypeError, ValueError, RecursionError) as e:
    raise Invalid(f'JSON cannot hold it: {" ".join(str(e).split())}') from None
  parse(text)
  return text


def _unique(pairs):
  found = {}
  for name, value in pairs:
    if name in found:
      raise Invalid(f'its JSON has the name {display_name(name)} twice in one object')
    found[name] = value
  return found


def _not_a_number(text):
  raise Invalid(f'its JSON has the number {text}, which is not finite')


def _finite(text):
  value = float(text)
  if not math.isfinite(value):
    raise Invalid(f'its JSON has the number {display_name(text)}, which is not finite')
  return value


def check_about(about, image_shape=None, logits=None):
  """Raises `Invalid` unless `about`, as JSON has it, says what readers need, and fits the network.

  Args:
    about: dict, see `ABOUT`.
    image_shape: (H, W, C) that the network takes; None where it is not known.
    logits: how many it returns; None where it is not known.
  """
  ABOUT.check(about, 'about')
  if math.prod(about['image_shape']) > MOST_VALUES:
    raise Invalid(f'about.image_shape is {about["image_shape"]}, more than {MOST_VALUES} values')
  if image_shape is not None and tuple(about['image_shape']) != tuple(image_shape):
    raise Invalid(f'about.image_shape is {about["image_shape"]}, but the network takes {list(image_shape)}')
  if logits is not None and len(about['classes']) != logits:
    raise Invalid(f'about.classes has {len(about["classes"])} names, but the network returns {logits} logits')


# Arrays.


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
      raise Invalid(f'{where} is {getattr(array, "dtype", display_name(array))}, not float32')
    if not np.isfinite(array).all():
      raise Invalid(f'{where} has values that are not finite')
    if self.positive and not (array > 0).all():
      raise Invalid(f'{where} has values that are not above 0')
    if self.ascending and not (np.diff(array.reshape(-1)) >= 0).all():
      raise Invalid(f'{where} does not ascend')


@dataclasses.dataclass(frozen=True)
class Operation:
  """What an operation may be.

  inputs: for each input the kinds that it may be of, see `Graph.kinds`; 'images' are what goes in.
  rank: number of axes of its inputs without the batch; None: any.
  attributes: kinds by name. arrays, optional_arrays: `Array`s by name.
  has_weights: whether it also has the attributes and arrays of one row of `WEIGHTS`.
  """

  inputs: tuple[tuple[str, ...], ...]
  rank: int | None = None
  attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
  arrays: dict[str, Array] = dataclasses.field(default_factory=dict)
  optional_arrays: dict[str, Array] = dataclasses.field(default_factory=dict)
  has_weights: bool = False


_SIDE, _PADDING = Integer(1, LONGEST_SIDE), Integer(0, LONGEST_SIDE)
OPERATIONS = {
  'image': Operation(
    (('images',),), 3, arrays={'mean': Array(('channels',)), 'std': Array(('channels',), positive=True)}
  ),
  'pixels': Operation((('images',),), 3),
  'convolution': Operation((('codes', 'real'),), 3, {'stride': _SIDE, 'padding': _PADDING}, has_weights=True),
  'dense': Operation((('codes', 'real'),), has_weights=True),
  'affine': Operation(
    (('codes', 'sums', 'real'),),
    arrays={'bias': Array(('scalar', 'channels', 'map')), 'scale': Array(('scalar', 'channels'))},
  ),
  'quantize': Operation(
    (('real',),),
    None,
    {'levels': Integer(2, _MOST_LEVELS)},
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
_SMALLEST_WEIGHT, _LARGEST_WEIGHT = -256, 255  # integers that int8 sums take in two parts
_LARGEST_WHOLE = 2**22  # of a kernel that is summed byte by byte

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
NODES = Items(NODE, 1, _MOST_NODES)
CODES_SHAPE = Items(Integer(1, MOST_VALUES), 2, 4)


def check_graph(graph):
  """Returns how many logits `graph` gives.

  The shape and the kind of every result are followed from the images to the logits, so that a graph which passes can
  be evaluated.

  Raises:
    Invalid: an operation does not fit the schema or its inputs.
  """
  IMAGE_SHAPE.check(list(graph.image_shape), 'image_shape')
  if not 0 < len(graph.nodes) <= _MOST_NODES:
    raise Invalid(f'it has {len(graph.nodes)} operations, not 1..{_MOST_NODES}')
  results = {IMAGES: _Result('images', _bounded(tuple(graph.image_shape), 'image_shape'))}
  for node in graph.nodes:
    OneOf(tuple(OPERATIONS)).check(node.op, f'operation {display_name(node.output)}')
    Text().check(node.output, f'the name of an operation {node.op}')
    if node.output in results:
      raise Invalid(f'the name {node.output} stands for two results')
    results[node.output] = _Checker(node, results).result()
  last = results[graph.nodes[-1].output]
  if last.kind != 'real' or len(last.shape) != 1:
    raise Invalid(f'it ends in {last.kind} of shape {list(last.shape)}, not in logits')
  return last.shape[0]


@dataclasses.dataclass(frozen=True)
class _Result:
  """kind: as `Graph.kinds`, or 'images'. shape: of one image. levels: number of codes."""

  kind: str
  shape: tuple[int, ...]
  levels: int = 0


class _Checker:
  """Checks one operation and says what its result is."""

  def __init__(self, node, results):
    self.node, self.where, self.operation = node, node.output, OPERATIONS[node.op]
    if len(node.inputs) != len(self.operation.inputs) or not all(name in results for name in node.inputs):
      raise Invalid(f'{self.where} has the inputs {display_name(tuple(node.inputs))}')
    inputs = [results[name] for name in node.inputs]
    for found, kinds in zip(inputs, self.operation.inputs, strict=True):
      if found.kind not in kinds or self.operation.rank not in (None, len(found.shape)):
        raise Invalid(f'{self.where}: {node.op} does not take {found.kind} of shape {list(found.shape)}')
      if found.shape != inputs[0].shape:
        raise Invalid(f'{self.where} has inputs of the shapes {list(inputs[0].shape)} and {list(found.shape)}')
    self.input = inputs[0]

  def result(self):
    """Returns the `_Result`."""
    node, operation = self.node, self.operation
    attributes, names = operation.attributes, tuple(sorted(node.arrays))
    if operation.has_weights:
      if names not in WEIGHTS:
        raise Invalid(f'{self.where} has the arrays {display_name(names)}, which are not weights')
      attributes = attributes | WEIGHTS[names]
    Record(attributes).check(dict(node.attributes), self.where)
    if not operation.has_weights:
      known = operation.arrays | operation.optional_arrays
      if not set(operation.arrays) <= set(names) <= set(known):
        raise Invalid(f'{self.where} has the arrays {display_name(names)}; those of {node.op} are {", ".join(known)}')
      for name in names:
        self._array(known[name], name)
    return getattr(self, f'_{node.op}')(self.input)

  def _array(self, kind, name):
    array, x = self.node.arrays[name], self.input
    kind.check(array, f'{self.where}/{name}')
    allowed = {
      'scalar': (),
      'channels': x.shape[-1:],
      'map': x.shape,
      'thresholds': (self.node.attributes.get('levels', 0) - 1,),
      'levels': array.shape[:1],
    }
    if array.shape not in [allowed[shape] for shape in kind.shapes]:
      raise Invalid(f'{self.where}/{name} has the shape {list(array.shape)}, and the input {list(x.shape)}')

  # One method per operation: the result for an input.

  def _image(self, x):
    return _Result('real', x.shape)

  _affine = _add = _relu = _image

  def _pixels(self, x):
    return _Result('codes', _bounded((*x.shape[:2], x.shape[2] + 1), self.where), 256)

  def _quantize(self, x):
    return _Result('codes', x.shape, self.node.attributes['levels'])

  def _lookup(self, x):
    count = len(self.node.arrays['values'])
    if not x.levels <= count <= _MOST_LEVELS:
      raise Invalid(f'{self.where} has {count} values for {x.levels} codes')
    return _Result('real', x.shape)

  def _max_pool(self, x):
    return _Result(x.kind, self._slid(2 * (self.node.attributes['window'],), x.shape[2]), x.levels)

  def _sum(self, x):
    if x.kind == 'codes':
      self._check_sum(math.prod(x.shape[:2]) * (x.levels - 1))
    return _Result('real' if x.kind == 'real' else 'sums', x.shape[2:])

  def _convolution(self, x):
    *window, inputs, outputs = self._weights(4)
    if inputs != x.shape[2]:
      raise Invalid(f'{self.where} has weights for {inputs} channels, but its input has {x.shape[2]}')
    return _Result(self._sum_kind(), self._slid(window, outputs))

  def _dense(self, x):
    inputs, outputs = self._weights(2)
    if inputs != math.prod(x.shape):
      raise Invalid(f'{self.where} has weights for {inputs} values, but its input has {math.prod(x.shape)}')
    return _Result(self._sum_kind(), _bounded((outputs,), self.where))

  def _sum_kind(self):
    return 'sums' if self.input.kind == 'codes' and 'codes' in self.node.arrays else 'real'

  def _weights(self, rank):
    """Checks the weights, [..., O] with `rank` axes, and returns their shape."""
    arrays = self.node.arrays
    weights = arrays['codes' if 'codes' in arrays else 'kernel']
    if np.ndim(weights) != rank or not np.size(weights):
      raise Invalid(f'{self.where} has weights of the shape {list(np.shape(weights))}')
    if 'kernel' in arrays:
      self._kernel(weights)
    elif weights.dtype != np.uint8 or int(weights.max()) >> self.node.attributes['bits']:
      raise Invalid(
        f'{self.where}/codes has {weights.dtype} values up to {weights.max()}, but its bits are '
        f'{self.node.attributes["bits"]}'
      )
    elif 'values' in arrays:
      self._table(arrays['values'], weights)
    else:
      self._integers(self.node.weights)
    return weights.shape

  def _kernel(self, kernel):
    Array().check(kernel, f'{self.where}/kernel')
    if self.input.kind == 'codes':
      if (kernel != np.round(kernel)).any() or np.abs(kernel).max() > _LARGEST_WHOLE:
        raise Invalid(f'{self.where}/kernel has values that are not integers up to 2^22, but its input is codes')
      self._check_sum(kernel[..., 0].size * 128 * (self.input.levels - 1))  # of one byte

  def _table(self, values, codes):
    Array().check(values, f'{self.where}/values')
    if (
      values.ndim not in (1, 2)
      or values.ndim == 2
      and len(values) != codes.shape[-1]
      or not (codes.max() < values.shape[-1] <= _MOST_LEVELS)
    ):
      raise Invalid(
        f'{self.where}/values has the shape {list(values.shape)}, but there are codes up to {codes.max()} '
        f'and {codes.shape[-1]} channels'
      )
    if self.input.kind == 'codes':
      raise Invalid(f'{self.where} has a table of values, but its input is codes')

  def _integers(self, weights):
    if weights.min() < _SMALLEST_WEIGHT or weights.max() > _LARGEST_WEIGHT:
      raise Invalid(
        f'{self.where} has the integer weights {weights.min():g}..{weights.max():g}, beyond '
        f'{_SMALLEST_WEIGHT}..{_LARGEST_WEIGHT}'
      )
    if self.input.kind == 'codes':
      largest = np.abs(weights).reshape(-1, weights.shape[-1]).sum(0, dtype=np.float64).max()
      self._check_sum(largest * (self.input.levels - 1))

  def _slid(self, window, channels):
    """Shape of what a window makes of the input, with the node's stride and padding."""
    stride, padding = self.node.attributes['stride'], self.node.attributes['padding']
    sides = [(side + 2 * padding - size) // stride + 1 for side, size in zip(self.input.shape, window)]
    if padding >= min(window) or min(sides) < 1:
      raise Invalid(
        f'{self.where}: a window of {window[0]}x{window[1]} with padding {padding} does not fit '
        f'{self.input.shape[0]}x{self.input.shape[1]}'
      )
    return _bounded((*sides, channels), self.where)

  def _check_sum(self, largest):
    if largest > _LARGEST_SUM:
      raise Invalid(f'{self.where}: sums up to {largest:.3g} do not fit 32 bits')


def _bounded(shape, where):
  if max(shape[:2]) > LONGEST_SIDE and len(shape) == 3 or math.prod(shape) > MOST_VALUES:
    raise Invalid(f'{where}: a feature map of shape {list(shape)} is too large')
  return shape
