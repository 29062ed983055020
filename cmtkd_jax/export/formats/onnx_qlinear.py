"""The fast ONNX file: convolutions of codes are QLinearConv, 8-bit integers with int32 sums and fixed-point scales.

A convolution, the affine map after it and the quantizer after that are one operation. Its bias must be an integer:
weights are multiplied by what makes its rounding harmless, if int8 holds them. Where no quantizer follows (in residual
blocks), the sums are results of QLinearConv if they leave room in 8 bits on calibration images, as those of narrow
layers with few bits do. Else they are matrix products, MatMulInteger with 32-bit sums, one row a window of the map;
ConvInteger is slow in ONNX Runtime. So sums are exact, and codes differ from the exact ones only where rounding a
bias or a scale meets a threshold. Sums of grouped convolutions always take 8 bits, rounded where they need more. First
and last layers in full precision stay float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter
from cmtkd_jax.export.formats import onnx_qdq

_BATCH = 32
_LARGEST_BIAS = 2**30
_SPAN = 224  # of the 256 numbers of a byte: other images may have sums a little outside
_CONSTANT = 2**20  # the bias of channels that are constant


def write(path, graph, about, images=None):
  """Writes `graph` and `about`, what is to be known about it, see `schema.ABOUT`.

  Args:
    images: uint8 [B, H, W, C], some hundred training images, from which the ranges of sums are taken. A network of
      full precision needs none: its file is plain float32.

  Raises:
    UserError: the network has a grid that is not uniform, weights do not fit int8, or `onnx` is not installed.
  """
  writer = _Writer(graph, images)
  writer.write_nodes()
  writer.parts.write(path, graph, about, writer.opset)


class _Writer(onnx_qdq.Writer):
  """Codes are uint8 tensors; `real` turns them into float32."""

  def __init__(self, graph, images):
    super().__init__(graph)
    self._readers = {}
    for node in self.graph.nodes:
      for name in node.inputs:
        self._readers.setdefault(name, []).append(node)
    self._done, self._reals = set(), set()
    self._pending_bias = {}  # {map: what is still to be added to its tensor}; a reader adds it to its own bias
    self._ranges = self._calibrate(images)

  def write_nodes(self):
    for node in self.graph.nodes:
      if node.output not in self._done:
        getattr(self, node.op)(node)

  def _calibrate(self, images):
    """`{convolution whose sums no quantizer follows: (lowest, highest sum)}`, each [C]."""
    names = {
      node.output
      for node in self.graph.nodes
      if self.kinds[node.output] == 'sums'
      and node.op == 'convolution'
      and (affine := self._only_reader(node, 'affine'))
      and not self._fused_codes(affine)
    }
    if not names:
      return {}
    if images is None:
      raise UserError('the QLinearConv file needs images for calibration, and there are none')

    @jax.jit
    def extremes(images):
      values = interpreter.run(self.graph, images, interpreter.carrier())
      return {name: jnp.stack([values[name].min((0, 1, 2)), values[name].max((0, 1, 2))]) for name in names}

    found = [extremes(jnp.asarray(images[first : first + _BATCH])) for first in range(0, len(images), _BATCH)]
    return {
      name: (np.min([batch[name][0] for batch in found], axis=0), np.max([batch[name][1] for batch in found], axis=0))
      for name in names
    }

  def _only_reader(self, node, op):
    readers = self._readers.get(node.output, ())
    return readers[0] if len(readers) == 1 and readers[0].op == op else None

  def _fused_codes(self, affine):
    """The quantizer that can be one operation with the affine map before it and the convolution before that."""
    quantize = self._only_reader(affine, 'quantize')
    return quantize if quantize and 'thresholds' not in quantize.arrays and affine.arrays['bias'].ndim < 3 else None

  def real(self, name):
    if self.kinds.get(name) == 'codes':
      # A cast: around a DequantizeLinear, a convolution and a QuantizeLinear, ONNX Runtime would quantize the weights.
      return self._once(f'{name}/float', lambda made: self.parts.to_type(name, np.float32, made))
    if name in self._pending_bias:
      bias = self.channels_first(self._pending_bias[name], name)
      return self._once(
        f'{name}/with bias',
        lambda made: self.parts.node('Add', [name, self.parts.constant(f'{name}/pending bias', bias)], made),
      )
    return name

  def _without_bias(self, name):
    return name if name in self._pending_bias else self.real(name)

  def _once(self, name, make):
    if name not in self._reals:
      self._reals.add(name)
      make(name)
    return name

  def pixels(self, node):
    self.with_ones(node, node.output)

  def convolution(self, node):
    affine, is_real = self._only_reader(node, 'affine'), self.kinds[node.output] == 'real'
    if affine is None or (is_real and affine.arrays['bias'].ndim == 3):  # which Conv cannot add
      super().convolution(node)
      return
    self._done.add(affine.output)
    if is_real:
      self._float_convolution(node, affine)
    elif quantize := self._fused_codes(affine):
      self._done.add(quantize.output)
      result = self._qlinear(
        node, *_fixed_point(node, affine, self.levels[node.inputs[0]] - 1, quantize.attributes['levels'])
      )
      self._clip(result, quantize)
    elif node.groups > 1 or self._fits_byte(node):
      self._byte_sums(node, affine)
    else:
      self._integer_sums(node, affine)

  def _fits_byte(self, node):
    """Whether the sums of every channel leave room in a byte on the calibration images."""
    low, high = self._ranges[node.output]
    return bool(((high - low) < _SPAN).all())

  def _float_convolution(self, node, affine):
    if 'codes' in node.arrays:
      self.refuse_table(node)
    bias, scale = _broadcast(affine, node.weights.shape[-1:])
    kernel = self.arranged(node, np.float32(node.weights * scale))
    self.parts.node(
      'Conv',
      [
        self.real(node.inputs[0]),
        self.parts.constant(f'{node.output}/weights', kernel),
        self.parts.constant(f'{node.output}/bias', np.float32(bias * scale)),
      ],
      affine.output,
      **onnx_qdq.geometry(node),
    )

  def _byte_sums(self, node, affine):
    """The sums in 8 bits, step * (code + lowest): exact where those of a channel span less than 256, else rounded."""
    bias, scale = _broadcast(affine, node.weights.shape[-1:])
    sign = np.where(scale < 0, -1, 1)
    low, high = np.sort(sign * np.float64(self._ranges[node.output]), axis=0)
    step = np.maximum((high - low) / 255, 1)
    low = np.round(low - np.maximum(255 - (high - low), 0) / 2)  # in the middle
    weights = _turned(node, sign * np.float64(_int8(node, node.weights)))
    result = self._qlinear(node, weights, -low, 1 / step)
    scale = np.abs(scale)
    self._dequantize(result, affine.output, step * scale, scale * (low + sign * bias))

  def _integer_sums(self, node, affine):
    """The sums in 32 bits, as a product of matrices [N, H' W', k k I] [k k I, O] whose rows are windows of the map."""
    (height, width, channels), (*out, features) = self.shapes[node.inputs[0]], self.shapes[node.output]
    named = lambda name: f'{node.output}/{name}'
    constant = lambda name, array: self.parts.constant(named(name), array)
    positions = constant('positions', np.int64([0, height * width, channels]))
    last = self.parts.node('Transpose', node.inputs[0], named('channels last'), perm=[0, 2, 3, 1])
    x = self.parts.node('Reshape', [last, positions], named('map'))
    # Windows read one position more, which is 0, where they reach over the border. Gather copies whole positions, which
    # is several times faster than slices of the map.
    x = self.parts.node('Pad', [x, constant('one more', np.int64([0, 0, 0, 0, 1, 0]))], named('map and border'))
    windows = self.parts.node('Gather', [x, constant('window', _window(node, height, width))], named('windows'), axis=1)
    columns = constant('columns', np.int64([0, out[0] * out[1], node.weights.shape[0] ** 2 * channels]))
    rows = self.parts.node('Reshape', [windows, columns], named('rows'))
    weights = constant('weights', _int8(node, node.weights).reshape(-1, features))
    sums = self.parts.node('MatMulInteger', [rows, weights], named('integers'))
    bias, scale = _broadcast(affine, (features,))
    real = self.parts.to_type(sums, np.float32, named('sums as float'))
    scaled = self.parts.node('Mul', [real, constant('scale', np.float32(scale))], named('scaled'))
    first = self.parts.node('Transpose', scaled, named('channels first'), perm=[0, 2, 1])
    self.parts.node('Reshape', [first, constant('shape', np.int64([0, features, *out]))], affine.output)
    self._pending_bias[affine.output] = bias * scale

  def _dequantize(self, codes, name, scale, bias):
    """Makes the map `name`, scale * codes + bias, scale [C] positive; the bias stays pending."""
    if np.all(scale == scale.flat[0]):
      self.parts.node('DequantizeLinear', [codes, self.parts.constant(f'{name}/step', np.float32(scale.flat[0]))], name)
    else:  # DequantizeLinear with one scale per channel takes three times as long in ONNX Runtime
      x = self.parts.node('DequantizeLinear', [codes, *self.unit()], f'{name}/codes as float')
      self.parts.node('Mul', [x, self.parts.constant(f'{name}/step', self.channels_first(scale, name))], name)
    self._pending_bias[name] = bias

  def _qlinear(self, node, weights, bias, scale):
    """uint8 codes: clip(round((sum + bias) * scale), 0, 255)."""
    one, unsigned = self.unit()
    arrays = {
      'weights': self.arranged(node, weights.astype(np.int8)),
      'scale': np.float32(scale),
      'bias': np.round(bias).astype(np.int32),
    }
    weights, scale, bias = (self.parts.constant(f'{node.output}/{name}', array) for name, array in arrays.items())
    signed = self.parts.constant('signed zero', np.int8(0))
    return self.parts.node(
      'QLinearConv',
      [node.inputs[0], one, unsigned, weights, scale, signed, one, unsigned, bias],
      f'{node.output}/result',
      **onnx_qdq.geometry(node),
    )

  def _clip(self, codes, node):
    """Clips uint8 to the highest code; the type clips at 0 and 255."""
    bounds = [self.parts.constant(f'code {bound}', np.uint8(bound)) for bound in (0, node.attributes['levels'] - 1)]
    self.parts.node('Clip', [codes, *bounds], node.output)

  def dense(self, node):
    if self.kinds[node.output] == 'real':
      super().dense(node)
      return
    # As many sums as outputs: their scales cost nothing. The product itself is exact.
    weights = self.arranged(node, _int8(node, node.weights))
    sums = self.parts.node(
      'MatMulInteger',
      [self.flat(node, node.inputs[0]), self.parts.constant(f'{node.output}/weights', weights)],
      f'{node.output}/integers',
    )
    self.parts.to_type(sums, np.float32, node.output)

  def affine(self, node):
    x, pending = node.inputs[0], self._pending_bias.get(node.inputs[0], 0)
    bias, scale = _broadcast(node, self.shapes[x][-1:])
    if self.kinds[node.inputs[0]] == 'codes' and (scale > 0).all():
      self._dequantize(x, node.output, scale, bias * scale)
      return
    constant = lambda name, array: self.parts.constant(f'{node.output}/{name}', self.channels_first(array, node.output))
    x = self.parts.node('Mul', [self._without_bias(x), constant('scale', scale)], f'{node.output}/scaled')
    self.parts.node('Add', [x, constant('bias', (pending + bias) * scale)], node.output)

  def add(self, node):
    pending = sum(self._pending_bias.get(name, 0) for name in node.inputs)
    self.parts.node('Add', list(map(self._without_bias, node.inputs)), node.output)
    if np.any(pending):
      self._pending_bias[node.output] = pending

  def quantize(self, node):
    if 'thresholds' in node.arrays:
      self.parts.to_type(self.counted(node), np.uint8, node.output)
      return
    self._clip(
      self.parts.node('QuantizeLinear', [self.real(node.inputs[0]), *self.unit()], f'{node.output}/codes'), node
    )


def _window(node, height, width):
  """The positions, row by row, that each window of a convolution reads; H W, one more, outside. int32 [H' W' k k]."""
  stride, pad, size = node.attributes['stride'], node.attributes['padding'], node.weights.shape[0]
  inside = np.arange(height * width, dtype=np.int32).reshape(height, width)
  numbers = np.pad(inside, pad, constant_values=height * width)
  windows = np.lib.stride_tricks.sliding_window_view(numbers, (size, size))[::stride, ::stride]
  return windows.reshape(-1)


def _int8(node, weights):
  if weights.max() > 127 or weights.min() < -128:
    raise UserError(
      f'{node.output}: its {node.attributes["bits"]}-bit weights are the odd numbers up to '
      f'{int(np.abs(weights).max())}, which int8 does not hold; use the exact ONNX file, or 7 bits in config.bits.rules'
    )
  return np.round(weights).astype(np.int8)


def _turned(node, weights):
  """`weights`, whose signs a negative scale may have turned, if int8 still holds them."""
  if weights.max() > 127:
    raise UserError(
      f'{node.output}: a channel with a weight of -128 has a negative scale, and int8 does not hold the opposite, 128; '
      'use the exact ONNX file, or 7 bits in config.bits.rules'
    )
  return weights


def _fixed_point(node, affine, most, levels):
  """Returns (weights, bias, scale), whole numbers but for the positive scale, for (sum + bias) * scale; each [..., O].

  most: the highest code of the input. levels: number of codes of the result.
  """
  weights, (bias, scale) = np.float64(_int8(node, node.weights)), _broadcast(affine, node.weights.shape[-1:])
  dead = scale == 0  # the result is 0 whatever the sum
  weights, bias, scale = np.where(dead, 0, weights), np.where(dead, 0, bias), np.where(dead, 1, scale)
  # Two products at a time are added up in 16 bits where the processor has no instruction for four in 32.
  largest = min(127, (2**15 - 1) // (2 * most))
  most_often = np.maximum(1, largest // np.maximum(1, np.abs(weights).max(tuple(range(weights.ndim - 1)))))
  # Of the multiples that fit, the one whose rounded bias moves the fewest sums over a threshold.
  multiples = np.arange(1, most_often.max() + 1)[:, None, None]
  moved = np.round(multiples * bias) / multiples - bias  # [multiples, 1, O]
  thresholds = (np.arange(1, levels)[:, None] - 0.5) / scale - bias  # [levels - 1, O]
  wrong = np.abs(np.ceil(thresholds) - np.ceil(thresholds - moved)).sum(1) + np.abs(moved[:, 0])
  multiple = 1 + np.argmin(np.where(multiples[:, 0] <= most_often, wrong, np.inf), axis=0)
  factor = np.where(scale < 0, -multiple, multiple)
  weights, bias, scale = _turned(node, weights * factor), bias * factor, scale / factor
  # A channel whose normalization has (nearly) no scale: its bias alone counts.
  constant = np.abs(bias) > _LARGEST_BIAS
  weights = np.where(constant, 0, weights)
  scale = np.where(constant, np.abs(bias) * scale / _CONSTANT, scale)
  return weights, np.where(constant, np.sign(bias) * _CONSTANT, bias), scale


def _broadcast(affine, channels):
  """Bias and scale of an affine map, float64, of at least the shape `channels`, (C,)."""
  return (
    np.broadcast_to(array, np.broadcast_shapes(array.shape, channels)).astype(np.float64)
    for array in (affine.arrays['bias'], affine.arrays['scale'])
  )
