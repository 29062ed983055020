"""From traced steps to a `Graph`: scales and normalizations are folded into one affine operation per place.

Inside this module an affine is x * slope + shift, in float64. In this form two affines merge without a division, so a
slope of 0 (a filter whose scale is 0, a normalization whose scale is 0) needs no special case. `_rounded` turns the
result into the (x + bias) * scale, in float32, of the `Graph`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter
from cmtkd_jax.export.graph import IMAGES, Graph, Node
from cmtkd_jax.models import inspect, layers
from cmtkd_jax.models.bit_policy import FULL_PRECISION

_INPUT, _PIXELS = 'input', 'pixels'
_CONSTANT = 2.0**60  # a bias so many times larger than any input makes an affine a constant
_SMALLEST = float(np.finfo(np.float32).tiny)  # smaller numbers count as 0 on most devices
_DIVERGED = 'the network has diverged; export an earlier checkpoint, or train again'
_LARGEST = np.float32(1e30)
_SAME = 1e-5  # of a step: thresholds that lie so close are the same
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_AT_ONCE = 2048  # numbers that a quantizer quantizes in one call
_NOTHING = 1e-30  # smaller numbers may count as zero


class Grid(NamedTuple):
  """What the codes of a feature map stand for: scale * code + start, or values[code]."""

  scale: float = 1.0
  start: float = 0.0
  values: np.ndarray | None = None


def fold(steps, input_shape, mean, std):
  """Returns the `Graph` of the `trace.TracedOp`s of a network.

  Args:
    steps: as from `trace.trace`.
    input_shape: (H, W, C) of the images.
    mean, std: C floats on the 0..1 scale.

  Raises:
    UserError: a layer has something that codes and scales cannot express.
  """
  quantized = any(step.op == 'activation' and step.quantizer is not None for step in steps)
  folder = _Folder(mean, std, quantized)
  for step in steps:
    getattr(folder, step.op)(step)
  with np.errstate(over='ignore', invalid='ignore'):  # `_rounded` names what is not finite
    nodes = [_rounded(node) if node.op == 'affine' else node for node in _merged(folder.nodes)]
  return Graph(tuple(nodes), tuple(input_shape))


class _Folder:
  """Turns one step after the other into nodes; a method an operation."""

  def __init__(self, mean, std, exact_input):
    self.nodes, self._grids, self._real = [], {}, {}  # _grids: of maps of codes; _real: their names as real maps
    self._mean, self._std, self._exact_input = mean, std, exact_input

  def emit(self, op, inputs, output, attributes=None, arrays=None):
    inputs = (inputs,) if isinstance(inputs, str) else inputs
    self.nodes.append(Node(op, inputs, output, attributes or {}, arrays or {}))
    return output

  def _as_real(self, name):
    if name == _INPUT and name not in self._real:
      self._real[name] = self.emit(
        'image', IMAGES, name, arrays={'mean': np.float32(self._mean), 'std': np.float32(self._std)}
      )
    grid = self._grids.get(name)
    if grid is None or name in self._real:
      return self._real.get(name, name)
    if grid.values is not None:
      real = self.emit('lookup', name, f'{name}/real', arrays={'values': grid.values})
    else:
      real = self._affine(name, grid.scale, grid.start, f'{name}/real')
    self._real[name] = real
    return real

  def _affine(self, name, slope, shift, output):
    return self.emit('affine', name, output, arrays={'slope': np.float64(slope), 'shift': np.float64(shift)})

  def convolution(self, step):
    module = step.module
    padding = (module.kernel - 1) // 2 if module.padding is None else module.padding
    attributes = {'stride': module.stride, 'padding': padding}
    if module.groups > 1:
      attributes['groups'] = module.groups
    self._product(step, attributes)

  def dense(self, step):
    self._product(step, {})

  def _product(self, step, attributes):
    """Adds a convolution or matrix product, and the affine that follows it."""
    name, own = step.inputs[0], step.variables['params']
    quantizer = step.quantizer
    weights, scale = _weights(own, quantizer, step)
    attributes, shift = attributes | weights.pop('attributes'), 0.0
    takes_pixels = step.op == 'convolution' and 'groups' not in attributes  # their channel of 255s is for all outputs
    if name == _INPUT and quantizer is None and self._exact_input and takes_pixels:
      name, weights['kernel'] = self._pixels(weights['kernel'])
    grid = self._grids.get(name)
    exact = grid is not None and grid.values is None and ('factor' in attributes or quantizer is None)
    if exact and quantizer is None:
      weights['kernel'], scale = _to_integers(weights['kernel'])
    name = name if exact else self._as_real(name)
    node = Node(step.op, (name,), f'{step.output}/sums', attributes, weights)
    self.nodes.append(node)
    if exact:
      if grid.start:  # padding is worth 0, which no code stands for: the shift depends on the position
        parts = [node.weights] if node.is_integer else node.kernel_bytes()
        inside = (_sum_inside(part, step.shape, attributes) for part in parts)
        shift = grid.start * scale * sum(256**place * total for place, total in enumerate(inside))
      scale = grid.scale * scale
    if 'bias' in own:
      shift = shift + np.float64(own['bias'])
    self._affine(node.output, scale, shift, step.output)

  def _pixels(self, kernel):
    """(pixels as codes, the kernel that takes them): mean and std of the images go into the kernel."""
    if _PIXELS not in self._grids:
      self._grids[self.emit('pixels', IMAGES, _PIXELS)] = Grid()
    mean, std, kernel = (np.asarray(array, np.float64) for array in (self._mean, self._std, kernel))
    by_pixel = kernel / (255 * std[:, None])
    by_ones = -(mean[:, None] * by_pixel).sum(2, keepdims=True)
    return _PIXELS, np.concatenate([by_pixel, by_ones], axis=2)

  def norm(self, step):
    running, own = step.variables['batch_stats'], step.variables.get('params', {})
    if not all(np.isfinite(values).all() for values in running.values()):  # an infinite variance would hide in a scale
      raise UserError(f'{step.output}: its running statistics are not finite; {_DIVERGED}')
    slope = np.float64(own.get('scale', 1)) / np.sqrt(np.float64(running['var']) + step.module.epsilon)
    shift = np.float64(own.get('bias', 0)) - np.float64(running['mean']) * slope
    self._affine(self._as_real(step.inputs[0]), slope, shift, step.output)

  def activation(self, step):
    if step.quantizer is None:
      self.relu(step)
      return
    own = inspect.quantizer_values(step.variables, layers.quantizer_name('activation'))
    grid, thresholds, uniform = activation_grid(step.quantizer, own, step.output)
    name, arrays = self._as_real(step.inputs[0]), {}
    if uniform:
      name = self._affine(name, 1 / grid.scale, -grid.start / grid.scale, f'{step.output}/steps')
    else:
      arrays = {'thresholds': thresholds}
    self._grids[self.emit('quantize', name, step.output, {'levels': len(thresholds) + 1}, arrays)] = grid

  def relu(self, step):
    self.emit('relu', self._as_real(step.inputs[0]), step.output)

  def add(self, step):
    self.emit('add', tuple(map(self._as_real, step.inputs)), step.output)

  def max_pool(self, step):
    grid, module = self._grids.get(step.inputs[0]), step.module
    if grid is not None and grid.values is None and grid.scale < 0:
      grid = None  # the greatest value is that of the least code
    self.emit(
      'max_pool',
      step.inputs[0] if grid else self._as_real(step.inputs[0]),
      step.output,
      {'window': module.window, 'stride': module.stride, 'padding': module.padding},
    )
    if grid is not None:
      self._grids[step.output] = grid

  def mean(self, step):
    grid, positions = self._grids.get(step.inputs[0]), step.shape[0] * step.shape[1]
    exact = grid is not None and grid.values is None
    name = step.inputs[0] if exact else self._as_real(step.inputs[0])
    self.emit('sum', name, f'{step.output}/sum')
    self._affine(
      f'{step.output}/sum', (grid.scale if exact else 1.0) / positions, grid.start if exact else 0.0, step.output
    )


def _weights(own, quantizer, step):
  """(attributes and arrays of a node's weights, their scale as a scalar or [O])."""
  kernel = own['kernel']
  if not np.isfinite(kernel).all():
    raise UserError(f'{step.output}: its weights are not finite; {_DIVERGED}')
  if quantizer is None:
    return {'attributes': {'bits': FULL_PRECISION}, 'kernel': np.asarray(kernel, np.float32)}, 1.0
  values = inspect.quantizer_values(step.variables, layers.quantizer_name('weight'))
  coded = quantizer.quantize(jnp.asarray(kernel, jnp.float32), values)
  if coded.offset is not None:
    raise UserError(f'{step.output}: weights with an offset cannot be exported; use another quantizer for weights')
  codes, zero, attributes = np.asarray(coded.codes), float(coded.zero), {'bits': quantizer.bits}
  if codes.min() < 0:
    codes, zero = codes + 2 ** (quantizer.bits - 1), zero + 2 ** (quantizer.bits - 1)
  arrays = {'codes': codes.astype(np.uint8)}
  if coded.levels is not None:
    # One table of values a channel, or one for all.
    levels = np.float32(coded.levels)
    values = np.float32(coded.scale).reshape(-1, 1) * (levels - np.float32(zero))
    return {
      'attributes': attributes,
      **arrays,
      'values': values[0] if levels.ndim == 1 and len(values) == 1 else values,
    }, 1.0
  factor = 1 if zero == round(zero) else 2  # grids without a zero have their integers between the halves
  attributes |= {'factor': factor, 'shift': round(factor * zero)}
  scale = np.float64(coded.scale) / factor
  return {'attributes': attributes, **arrays}, scale.reshape(-1) if scale.ndim else scale


def _to_integers(kernel):
  """(integers up to 2^22 as float32, their scale [O], a power of two): each output keeps the digits of its largest."""
  kernel = np.float64(kernel)
  largest = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
  scale = np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1))) - 22)
  return np.float32(np.round(kernel / scale)), scale


def _sum_inside(weights, shape, attributes):
  """The sum of the weights that lie inside the map at each position: [H', W', O], or [O] without padding."""
  if not attributes.get('padding'):
    return weights.sum(tuple(range(weights.ndim - 1)), dtype=np.float64)
  return np.float64(interpreter.product(jnp.ones((1, *shape), jnp.float32), weights, attributes)[0])


def activation_grid(quantizer, parameters, name):
  """Returns (`Grid`, thresholds float32 [levels - 1], whether codes are the rounded (x / scale - offset)).

  Thresholds are the smallest float32 numbers at which the code is 1, 2, ...; they are found by bisection, so that they
  are those of the quantizer itself whatever its formula.

  Raises:
    UserError: the quantizer is not ascending in its input, or not one function for the whole map.
  """
  quantize = lambda x: quantizer.quantize(jnp.asarray(x, jnp.float32), parameters)

  def codes_of(x):
    padding = -len(x) % _AT_ONCE  # JAX compiles every operation again for another shape
    return np.asarray(quantize(np.pad(x, (0, padding))).codes)[: len(x)]

  thresholds, lowest = _thresholds(codes_of, quantizer.bits, name)
  grid, uniform = _grid(quantize([0]), thresholds, lowest, name)
  probes = np.unique(
    np.concatenate(
      [thresholds * np.float32(factor) for factor in (0.5, 0.999, 1.001, 2)]
      + [np.linspace(-3, 3, 1001, dtype=np.float32)]
    )
  )
  if (codes_of(probes) - lowest != np.searchsorted(thresholds, probes, side='right')).any():
    raise UserError(
      f'{name}: its quantizer does not ascend with its input, which cannot be exported; use another quantizer for '
      'activations'
    )
  return grid, thresholds, uniform


def _thresholds(codes_of, bits, name):
  """(thresholds, the lowest code): for each code but the lowest, the smallest float32 number that has it."""
  lowest, highest = codes_of(np.array([-_LARGEST, _LARGEST])).tolist()
  if not 0 <= highest - lowest < 2**bits:
    raise UserError(
      f'{name}: its quantizer has codes from {lowest} to {highest}, and {bits} bits hold '
      f'{2**bits}, ascending with the input; a learned scale may be below 0: take another checkpoint, or fix its '
      'quantize()'
    )
  wanted = np.arange(lowest + 1, highest + 1)
  low, high = np.full(len(wanted), _key(-_LARGEST)), np.full(len(wanted), _key(_LARGEST))  # code below; at least
  while (high - low > 1).any():
    middle = (low + high) // 2
    reached = codes_of(_float(middle)) >= wanted
    low, high = np.where(reached, low, middle), np.where(reached, middle, high)
  return _float(high), lowest


def _grid(coded, thresholds, lowest, name):
  """(`Grid`, whether its codes are the rounded (x / scale - offset)) of a quantizer's `QTensor` and thresholds."""
  found = (coded.scale, coded.offset, coded.levels)
  if not all(np.isfinite(value).all() for value in found if value is not None):
    raise UserError(f'{name}: the values of its quantizer are not finite; {_DIVERGED}')
  scale = np.float64(np.asarray(coded.scale))
  if scale.ndim or not len(thresholds):
    what = f'a scale of shape {scale.shape}' if scale.ndim else 'one level'
    raise UserError(
      f'{name}: activations with {what} cannot be exported; take another checkpoint, or another '
      'quantizer for activations'
    )
  offset = 0.0 if coded.offset is None else float(coded.offset)
  if coded.levels is not None:
    values = np.asarray(scale * (np.asarray(coded.levels, np.float64) - coded.zero) + offset, np.float32)
    return Grid(values=values[lowest : lowest + len(thresholds) + 1]), False
  grid = Grid(float(scale), float(scale) * (float(lowest) - float(coded.zero)) + offset)
  halfway = scale * (np.arange(1, len(thresholds) + 1) - 0.5) + grid.start
  uniform = (
    scale > _NOTHING  # N2UQ learns its scale, which may be 0 or negative
    and np.all(np.abs(thresholds - halfway) <= _SAME * scale + _ROUNDING * np.abs(halfway))
    # Rounding takes 1/2 down to 0: a quantizer that has its threshold at zero and takes it up, as sign, keeps it.
    and np.all(np.abs(thresholds) > _NOTHING)
  )
  return grid, bool(uniform)


def _key(x):
  """Integers in the order of float32 numbers."""
  bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
  return np.where(bits < 0, -(2**31) - bits, bits)


def _float(key):
  bits = np.where(key < 0, -(2**31) - key, key)
  return bits.astype(np.int32).view(np.float32)


def _merged(nodes):
  """Merges two affines into one where nothing else reads the result of the first."""
  readers = {}
  for node in nodes:
    for name in node.inputs:
      readers[name] = readers.get(name, 0) + 1
  made = {}
  for node in nodes:
    first = made.get(node.inputs[0])
    if node.op == 'affine' and first is not None and first.op == 'affine' and readers[first.output] == 1:
      (slope1, shift1), (slope2, shift2) = ((n.arrays['slope'], n.arrays['shift']) for n in (first, node))
      node = Node(
        'affine', first.inputs, node.output, arrays={'slope': slope1 * slope2, 'shift': shift1 * slope2 + shift2}
      )
      del made[first.output]
    made[node.output] = node
  return list(made.values())


def _rounded(node):
  """Returns an affine x * slope + shift as (x + bias) * scale in float32.

      scale = slope, bias = shift / slope

  A channel whose slope is 0, or tiny next to its shift, is a constant: its bias is so large that x + bias = bias. A
  channel that is 0 everywhere has bias = scale = 0, so that its result is exactly 0, which sign and other quantizers
  with a threshold at 0 need.

  Raises:
    UserError: the result is not finite in float32.
  """
  slope, shift = node.arrays['slope'], node.arrays['shift']
  largest = np.abs(shift).max(tuple(range(shift.ndim - 1)))  # over the positions
  if not (np.abs(slope) <= np.finfo(np.float32).max).all() or not (largest <= np.finfo(np.float32).max).all():
    raise UserError(f'{node.output}: a scale or a bias is not a finite float32 number; {_DIVERGED}')
  smallest = np.maximum(largest / _CONSTANT, _SMALLEST)
  constant, scale = np.abs(slope) < smallest, slope
  if constant.any():
    scale = np.where(constant, np.where(largest > _SMALLEST, smallest, 0), slope)
  bias = np.divide(shift, scale, out=np.zeros(np.broadcast_shapes(shift.shape, scale.shape)), where=scale != 0)
  return Node(
    'affine', node.inputs, node.output, arrays={'bias': bias.astype(np.float32), 'scale': scale.astype(np.float32)}
  )
