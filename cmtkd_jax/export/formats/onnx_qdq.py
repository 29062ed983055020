"""A quantized ONNX file that is exact: on every runtime the codes are those of `interpreter.Network`.

Only a quantized first layer, and one after activations of 32 bits, takes real numbers, whose sums are rounded in the
runtime's order.

Weights are signed integers of 2, 4 or 8 bits (1, 2: INT2; 3, 4: INT4; else INT8) before DequantizeLinear, activations
pass through QuantizeLinear and DequantizeLinear with scale 1 (which is as fast as Round, and tells the runtime that 8
bits hold the map), and between them convolutions add up integers that float32 numbers carry, exactly. The scales stand
in the affine maps that follow. Opset 25 has INT2, 21 INT4; 13 is enough for the rest.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter
from cmtkd_jax.export.formats import onnx_common
from cmtkd_jax.export.graph import Graph
from cmtkd_jax.models.bit_policy import FULL_PRECISION

_STORED = {1: 2, 2: 2, 3: 4, 4: 4}  # bits of the type that holds b-bit weights; 8 above
_TYPES = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}
_OPSETS = {2: 25, 4: 21, 8: 13}


def write(path, graph, about):
  """Writes `graph` and `about`, what is to be known about it, see `schema.ABOUT`.

  Raises:
    UserError: the network has a grid that is not uniform, or `onnx` is not installed.
  """
  writer = Writer(graph.by_bytes())
  writer.write_nodes()
  writer.parts.write(path, graph, about, writer.opset)


class Writer:
  """Turns one operation after the other into those of ONNX, on maps [N, C, H, W]; a method an operation."""

  def __init__(self, graph):
    last = dataclasses.replace(graph.nodes[-1], output=onnx_common.LOGITS)
    self.graph = Graph((*graph.nodes[:-1], last), graph.image_shape)
    self.parts, self.opset = onnx_common.Parts(), _OPSETS[8]
    self.kinds, self.levels = self.graph.kinds(), self.graph.levels()
    maps = jax.eval_shape(
      lambda images: interpreter.run(self.graph, images, 'float'),
      jax.ShapeDtypeStruct((1, *graph.image_shape), jnp.uint8),
    )
    self.shapes = {name: x.shape[1:] for name, x in maps.items()}  # (H, W, C) or (C,)

  def write_nodes(self):
    """Adds all operations."""
    for node in self.graph.nodes:
      getattr(self, node.op)(node)

  def real(self, name):
    """The float32 tensor of a map."""
    return name

  def image(self, node):
    pixels = self.parts.to_type(self.transposed(node), np.float32, f'{node.output}/pixels')
    value = self.parts.node('Div', [pixels, self.parts.constant('255', np.float32(255))], f'{node.output}/divided')
    value = self.parts.node('Sub', [value, self.per_channel(node, 'mean')], f'{node.output}/centered')
    self.parts.node('Div', [value, self.per_channel(node, 'std')], node.output)

  def transposed(self, node):
    """The images as uint8 [N, C, H, W]."""
    return self.parts.node('Transpose', node.inputs[0], f'{node.output}/transposed', perm=[0, 3, 1, 2])

  def pixels(self, node):
    self.parts.to_type(self.with_ones(node, f'{node.output}/uint8'), np.float32, node.output)

  def with_ones(self, node, output):
    """The images with one more channel, of 255s, as uint8 [N, C + 1, H, W]."""
    ends = self.parts.constant('one more channel', np.int64([0, 0, 0, 0, 0, 1, 0, 0]))
    return self.parts.node('Pad', [self.transposed(node), ends, self.parts.constant('byte 255', np.uint8(255))], output)

  def convolution(self, node):
    self._product(node, 'Conv', **geometry(node))

  def dense(self, node):
    self._product(node, 'MatMul')

  def _product(self, node, op, **attributes):
    """A convolution or matrix product, of parts of the channels where the sum of all may not be exact."""
    x, ranges = self.real(node.inputs[0]), self.ranges(node)
    if len(ranges) == 1:
      self.parts.node(op, [self.flat(node, x), self.weights(node, node.output)], node.output, **attributes)
      return
    total = None
    for first, last in ranges:
      name = f'{node.output}/{first}'
      part = self._channels(node, x, first, last, f'{name}/part')
      part = self.parts.node(
        op, [self.flat(node, part), self.weights(node, name, first, last)], f'{name}/sums', **attributes
      )
      part = self.parts.to_type(part, np.int32, f'{name}/integers')
      total = part if total is None else self.parts.node('Add', [total, part], f'{name}/total')
    self.parts.to_type(total, np.float32, node.output)

  def _channels(self, node, x, first, last, output):
    """Input channels `first` to `last` of every group."""
    if node.groups == 1:
      return self.parts.node(
        'Slice', [x, *(self.parts.constant(f'integer {i}', np.int64([i])) for i in (first, last, 1))], output
      )
    starts = np.arange(node.groups)[:, None] * node.weights.shape[2]
    indices = (starts + np.arange(first, last)).reshape(-1)
    return self.parts.node('Gather', [x, self.parts.constant(f'{output}/channels', indices)], output, axis=1)

  def flat(self, node, x):
    if node.op == 'convolution' or len(self.shapes[node.inputs[0]]) == 1:
      return x
    return self.parts.node('Flatten', x, f'{x}/flat/{node.output}')

  def ranges(self, node):
    """Ranges of input channels, of every group, within which every sum is exact."""
    channels = self.shapes[node.inputs[0]][-1] // node.groups
    if self.kinds[node.output] != 'sums':
      return [(0, channels)]
    return interpreter.exact_groups(node.weights, channels, self.levels[node.inputs[0]] - 1)

  def weights(self, node, name, first=0, last=None):
    """Adds the weights of input channels `first` to `last`; returns their name."""
    weights = self.arranged(node, node.weights, first, last)
    if node.attributes['bits'] == FULL_PRECISION:
      return self.parts.constant(f'{name}/weights', weights)
    self.refuse_table(node)
    stored = _STORED.get(node.attributes['bits'], 8)
    half, factor, rest = 2 ** (stored - 1), 1, 0
    if weights.min() < -half or weights.max() >= half:  # grids without a zero: factor * integers + rest
      factor = node.attributes['factor']
      rest = factor * 2 ** (node.attributes['bits'] - 1) - node.attributes['shift']
    self.opset = max(self.opset, _OPSETS[stored])
    codes = self.parts.constant(f'{name}/codes', ((weights - rest) / factor).astype(_TYPES[stored]))
    scale = self.parts.constant(f'factor {factor}', np.float32(factor))
    made = self.parts.node('DequantizeLinear', [codes, scale], f'{name}/dequantized')
    return (
      made
      if not rest
      else self.parts.node('Add', [made, self.parts.constant(f'rest {rest}', np.float32(rest))], f'{name}/weights')
    )

  def arranged(self, node, weights, first=0, last=None):
    """Weights of some input channels as ONNX has them: [O, I, H, W] or [I * H * W, O]."""
    if node.op == 'convolution':
      return weights.transpose(3, 2, 0, 1)[:, first:last]
    channels = self.shapes[node.inputs[0]][-1]
    rows = weights.reshape(-1, channels, weights.shape[-1]).transpose(1, 0, 2)[first:last]
    return rows.reshape(-1, weights.shape[-1])

  def refuse_table(self, node, layer=None):
    """Raises `UserError` where codes stand for the values of a table."""
    if 'values' in node.arrays:
      raise UserError(
        f'{layer or node.output}: its quantizer has a table of levels (as apot, lq_nets and lqw_caq have), which no '
        'integer type of ONNX holds; use the packed archive or StableHLO'
      )

  def affine(self, node):
    # A difference: runtimes fuse a sum into the convolution before it, whose own sums would no longer be exact.
    x = self.parts.node(
      'Sub', [self.real(node.inputs[0]), self.per_channel(node, 'bias', -1)], f'{node.output}/shifted'
    )
    self.parts.node('Mul', [x, self.per_channel(node, 'scale')], node.output)

  def per_channel(self, node, name, sign=1):
    """Adds an array of one value per channel, or per channel and position; returns its name."""
    return self.parts.constant(f'{node.output}/{name}', self.channels_first(sign * node.arrays[name], node.output))

  def channels_first(self, array, name):
    """An array that broadcasts to the map `name` with channels last, as float32 that broadcasts to [N, C, H, W]."""
    shape = self.shapes[name]
    array = np.broadcast_to(array, np.broadcast_shapes(np.shape(array), shape[-1:]))
    if len(shape) == 3:
      array = np.moveaxis(array.reshape((1,) * (3 - array.ndim) + array.shape), -1, 0)
    return np.float32(array)[None]

  def quantize(self, node):
    if 'thresholds' in node.arrays:
      self.parts.to_type(self.counted(node), np.float32, node.output)
      return
    x = self.real(node.inputs[0])
    one, zero = self.unit()
    if node.attributes['levels'] < 256:  # above, the type clips
      bounds = [
        self.parts.constant(f'bound {bound}', np.float32(bound)) for bound in (0, node.attributes['levels'] - 1)
      ]
      x = self.parts.node('Clip', [x, *bounds], f'{node.output}/clipped')
    codes = self.parts.node('QuantizeLinear', [x, one, zero], f'{node.output}/codes')
    self.parts.node('DequantizeLinear', [codes, one, zero], node.output)

  def unit(self):
    """Scale and zero point of codes that stand for themselves."""
    return self.parts.constant('one', np.float32(1)), self.parts.constant('zero', np.uint8(0))

  def counted(self, node):
    """How many thresholds lie at or below each number: an int32 tensor."""
    thresholds = self.parts.constant(f'{node.output}/thresholds', node.arrays['thresholds'])
    axis = self.parts.constant('integer -1', np.int64([-1]))
    x = self.parts.node('Unsqueeze', [self.real(node.inputs[0]), axis], f'{node.output}/unsqueezed')
    x = self.parts.node('GreaterOrEqual', [x, thresholds], f'{node.output}/reached')
    x = self.parts.to_type(x, np.int32, f'{node.output}/ones')
    return self.parts.node('ReduceSum', [x, axis], f'{node.output}/count', keepdims=0)

  def lookup(self, node):
    self.refuse_table(node, node.inputs[0])

  def add(self, node):
    self.parts.node('Add', [self.real(name) for name in node.inputs], node.output)

  def relu(self, node):
    self.parts.node('Relu', self.real(node.inputs[0]), node.output)

  def max_pool(self, node):
    window, stride, padding = (node.attributes[name] for name in ('window', 'stride', 'padding'))
    x = node.inputs[0] if self.kinds[node.output] == 'codes' else self.real(node.inputs[0])
    self.parts.node('MaxPool', x, node.output, kernel_shape=2 * [window], strides=2 * [stride], pads=4 * [padding])

  def sum(self, node):
    axes = self.parts.constant('positions', np.int64([2, 3]))
    self.parts.node('ReduceSum', [self.real(node.inputs[0]), axes], node.output, keepdims=0)


def geometry(node):
  """Attributes of a Conv or QLinearConv; one without groups is written as before there were any."""
  shape = {'pads': 4 * [node.attributes['padding']], 'strides': 2 * [node.attributes['stride']]}
  return shape if node.groups == 1 else shape | {'group': node.groups}
