"""The check of a whole network: the shape and the kind of every result are followed through its operations."""

import dataclasses
import math

import numpy as np

from cmtkd_jax.export.graph import IMAGES
from cmtkd_jax.export.operations import MOST_LEVELS, MOST_NODES, OPERATIONS, WEIGHTS, Array
from cmtkd_jax.export.schema import (
  IMAGE_SHAPE,
  LONGEST_SIDE,
  MOST_VALUES,
  InvalidError,
  OneOf,
  Record,
  Text,
  display_name,
)

_SMALLEST_WEIGHT, _LARGEST_WEIGHT = -256, 255  # integers that int8 sums take in two parts
_LARGEST_WHOLE = 2**22  # of a kernel that is summed byte by byte
_LARGEST_SUM = 2**31 - 1


def check(graph):
  """Returns how many logits `graph` gives.

  The shape and the kind of every result are followed from the images to the logits, so that a graph which passes can
  be evaluated.

  Raises:
    InvalidError: an operation does not fit the schema or its inputs.
  """
  IMAGE_SHAPE.check(list(graph.image_shape), 'image_shape')
  if not 0 < len(graph.nodes) <= MOST_NODES:
    raise InvalidError(f'it has {len(graph.nodes)} operations, not 1..{MOST_NODES}')
  results = {IMAGES: _Result('images', _bounded(tuple(graph.image_shape), 'image_shape'))}
  for node in graph.nodes:
    OneOf(tuple(OPERATIONS)).check(node.op, f'operation {display_name(node.output)}')
    Text().check(node.output, f'the name of an operation {node.op}')
    if node.output in results:
      raise InvalidError(f'the name {node.output} stands for two results')
    results[node.output] = _Checker(node, results).result()
  last = results[graph.nodes[-1].output]
  if last.kind != 'real' or len(last.shape) != 1:
    raise InvalidError(f'it ends in {last.kind} of shape {list(last.shape)}, not in logits')
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
      raise InvalidError(f'{self.where} has the inputs {display_name(tuple(node.inputs))}')
    inputs = [results[name] for name in node.inputs]
    for found, kinds in zip(inputs, self.operation.inputs, strict=True):
      if found.kind not in kinds or self.operation.rank not in (None, len(found.shape)):
        raise InvalidError(f'{self.where}: {node.op} does not take {found.kind} of shape {list(found.shape)}')
      if found.shape != inputs[0].shape:
        raise InvalidError(f'{self.where} has inputs of the shapes {list(inputs[0].shape)} and {list(found.shape)}')
    self.input = inputs[0]

  def result(self):
    """Returns the `_Result`."""
    node, operation = self.node, self.operation
    attributes, names = operation.attributes, tuple(sorted(node.arrays))
    if operation.has_weights:
      if names not in WEIGHTS:
        raise InvalidError(f'{self.where} has the arrays {display_name(names)}, which are not weights')
      attributes = attributes | WEIGHTS[names]
    Record(attributes, operation.optional_attributes).check(dict(node.attributes), self.where)
    if not operation.has_weights:
      known = operation.arrays | operation.optional_arrays
      if not set(operation.arrays) <= set(names) <= set(known):
        raise InvalidError(
          f'{self.where} has the arrays {display_name(names)}; those of {node.op} are {", ".join(known)}'
        )
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
      raise InvalidError(f'{self.where}/{name} has the shape {list(array.shape)}, and the input {list(x.shape)}')

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
    if not x.levels <= count <= MOST_LEVELS:
      raise InvalidError(f'{self.where} has {count} values for {x.levels} codes')
    return _Result('real', x.shape)

  def _max_pool(self, x):
    return _Result(x.kind, self._slid(2 * (self.node.attributes['window'],), x.shape[2]), x.levels)

  def _sum(self, x):
    if x.kind == 'codes':
      self._check_sum(math.prod(x.shape[:2]) * (x.levels - 1))
    return _Result('real' if x.kind == 'real' else 'sums', x.shape[2:])

  def _convolution(self, x):
    *window, inputs, outputs = self._weights(4)
    groups = self.node.groups
    if inputs * groups != x.shape[2]:
      raise InvalidError(f'{self.where} has weights for {inputs * groups} channels, but its input has {x.shape[2]}')
    if outputs % groups:
      raise InvalidError(f'{self.where} has {outputs} outputs in {groups} groups')
    return _Result(self._sum_kind(), self._slid(window, outputs))

  def _dense(self, x):
    inputs, outputs = self._weights(2)
    if inputs != math.prod(x.shape):
      raise InvalidError(f'{self.where} has weights for {inputs} values, but its input has {math.prod(x.shape)}')
    return _Result(self._sum_kind(), _bounded((outputs,), self.where))

  def _sum_kind(self):
    return 'sums' if self.input.kind == 'codes' and 'codes' in self.node.arrays else 'real'

  def _weights(self, rank):
    """Checks the weights, [..., O] with `rank` axes, and returns their shape."""
    arrays = self.node.arrays
    weights = arrays['codes' if 'codes' in arrays else 'kernel']
    if np.ndim(weights) != rank or not np.size(weights):
      raise InvalidError(f'{self.where} has weights of the shape {list(np.shape(weights))}')
    if 'kernel' in arrays:
      self._kernel(weights)
    elif weights.dtype != np.uint8 or int(weights.max()) >> self.node.attributes['bits']:
      raise InvalidError(
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
        raise InvalidError(f'{self.where}/kernel has values that are not integers up to 2^22, but its input is codes')
      self._check_sum(kernel[..., 0].size * 128 * (self.input.levels - 1))  # of one byte

  def _table(self, values, codes):
    Array().check(values, f'{self.where}/values')
    if (
      values.ndim not in (1, 2)
      or (values.ndim == 2 and len(values) != codes.shape[-1])
      or not (codes.max() < values.shape[-1] <= MOST_LEVELS)
    ):
      raise InvalidError(
        f'{self.where}/values has the shape {list(values.shape)}, but there are codes up to {codes.max()} '
        f'and {codes.shape[-1]} channels'
      )
    if self.input.kind == 'codes':
      raise InvalidError(f'{self.where} has a table of values, but its input is codes')

  def _integers(self, weights):
    if weights.min() < _SMALLEST_WEIGHT or weights.max() > _LARGEST_WEIGHT:
      raise InvalidError(
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
      raise InvalidError(
        f'{self.where}: a window of {window[0]}x{window[1]} with padding {padding} does not fit '
        f'{self.input.shape[0]}x{self.input.shape[1]}'
      )
    return _bounded((*sides, channels), self.where)

  def _check_sum(self, largest):
    if largest > _LARGEST_SUM:
      raise InvalidError(f'{self.where}: sums up to {largest:.3g} do not fit 32 bits')


def _bounded(shape, where):
  if (max(shape[:2]) > LONGEST_SIDE and len(shape) == 3) or math.prod(shape) > MOST_VALUES:
    raise InvalidError(f'{where}: a feature map of shape {list(shape)} is too large')
  return shape
