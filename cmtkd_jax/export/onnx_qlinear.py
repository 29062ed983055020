"""The fast ONNX file: convolutions of codes are QLinearConv, 8-bit integers with int32 sums and fixed-point scales.

A convolution, the affine map behind it and the quantizer behind that are one operation. Its bias must be an integer:
weights are multiplied up as far as int8 holds them, so that it is a fine one. Where no quantizer follows (the sums of
residual blocks), the result is rounded to 8 bits over the range that each channel has on calibration images. So codes
may differ from the exact ones at a threshold: predictions agree, logits do so nearly. First and last layers in full
precision, and grids whose padding is worth no code, stay float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import integer, onnx_qdq

_LARGEST_BIAS = 2**30
_CONSTANT = 2**20  # the bias of channels that are constant


def write(path, graph, about, images=None):
  """Writes `graph` and what is to be known about it, a JSON-able dict.

  Args:
    images: uint8 [B, H, W, C], some hundred training images, from which the ranges of sums are taken. A network of
      full precision needs none: its file is plain float32.

  Raises:
    UserError: the network has a grid that is not uniform, weights do not fit int8, or `onnx` is not installed.
  """
  writer = _Writer(graph, images)
  writer.write_nodes()
  writer.parts.write(path, graph.image_shape, about, writer.opset)


class _Writer(onnx_qdq.Writer):
  """Codes are uint8 tensors; `real` turns them into float32."""

  def __init__(self, graph, images):
    super().__init__(graph)
    self._readers = {}
    for node in self.graph.nodes:
      for name in node.inputs:
        self._readers.setdefault(name, []).append(node)
    self._done, self._reals = set(), set()
    self._ranges = self._calibrate(images)

  def write_nodes(self):
    for node in self.graph.nodes:
      if node.output not in self._done:
        getattr(self, node.op)(node)

  def _calibrate(self, images):
    """`{affine map behind a convolution of codes: (lowest, highest)}`, each [C]."""
    names = {affine.output for node in self.graph.nodes if self.kinds[node.output] == 'sums'
             and node.op == 'convolution' and (affine := self._fused_affine(node)) and not self._fused_codes(affine)}
    if not names:
      return {}
    if images is None:
      raise UserError('the QLinearConv file needs images for calibration, and there are none')

    @jax.jit
    def extremes(images):
      values = integer.run(self.graph, images, integer.carrier())
      return {name: (values[name].min((0, 1, 2)), values[name].max((0, 1, 2))) for name in names}

    found = [extremes(jnp.asarray(images[first:first + 32])) for first in range(0, len(images), 32)]
    return {name: (np.min([np.asarray(batch[name][0]) for batch in found], axis=0),
                   np.max([np.asarray(batch[name][1]) for batch in found], axis=0)) for name in names}

  def _only_reader(self, node, op):
    readers = self._readers.get(node.output, ())
    return readers[0] if len(readers) == 1 and readers[0].op == op else None

  def _fused_affine(self, node):
    affine = self._only_reader(node, 'affine')
    return affine if affine and affine.arrays['bias'].ndim < 3 else None  # else it depends on the position

  def _fused_codes(self, affine):
    quantize = self._only_reader(affine, 'quantize')
    return quantize if quantize and 'thresholds' not in quantize.arrays else None

  def real(self, name):
    if self.kinds.get(name) != 'codes':
      return name
    if name not in self._reals:
      self._reals.add(name)
      self.parts.node('DequantizeLinear', [name, *self.unit()], f'{name}/float')
    return f'{name}/float'

  def convolution(self, node):
    affine = self._fused_affine(node)
    if affine is None:
      super().convolution(node)
      return
    self._done.add(affine.output)
    bias, scale = (np.broadcast_to(np.float64(affine.arrays[name]), node.weights.shape[-1:])
                   for name in ('bias', 'scale'))
    attributes = {'pads': 4 * [node.attributes['padding']], 'strides': 2 * [node.attributes['stride']]}
    if self.kinds[node.output] == 'real':
      if 'codes' in node.arrays:
        self.refuse_table(node)
      kernel = self.arranged(node, np.float32(node.weights * scale))
      self.parts.node('Conv', [self.real(node.inputs[0]), self.parts.constant(f'{node.output}/weights', kernel),
                               self.parts.constant(f'{node.output}/bias', np.float32(bias * scale))], affine.output,
                      **attributes)
      return
    self.refuse_table(node)
    quantize = self._fused_codes(affine)
    step, zero = np.float64(1), np.uint8(0)
    if quantize is None:
      low, high = (np.float64(bound) for bound in self._ranges[affine.output])
      low, high = np.minimum(low, 0), np.maximum(high, 0)
      step = np.maximum((high - low) / 255, 1e-12)
      zero = np.round(-low / step).astype(np.uint8)
      bias = bias + zero * step / scale
    weights, bias, scale = _fixed_point(node, bias, scale / step, self.levels[node.inputs[0]] - 1)
    constant = lambda name, array: self.parts.constant(f'{node.output}/{name}', array)
    one, unsigned = self.unit()
    signed = self.parts.constant('signed zero', np.int8(0))
    self._done.add(quantize.output if quantize else None)
    result = self.parts.node(
        'QLinearConv', [node.inputs[0], one, unsigned, constant('weights', self.arranged(node, weights)),
                        constant('scale', scale), signed, one, unsigned, constant('bias', bias)],
        f'{node.output}/result', **attributes)
    if quantize:
      self._clip(result, quantize)
    else:
      self.parts.node('DequantizeLinear', [result, constant('step', np.float32(step)), constant('zero', zero)],
                      affine.output, axis=1)

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
    sums = self.parts.node('MatMulInteger', [self.flat(node, node.inputs[0]),
                                             self.parts.constant(f'{node.output}/weights', weights)],
                           f'{node.output}/integers')
    self.parts.to_type(sums, np.float32, node.output)

  def affine(self, node):
    x, shape = node.inputs[0], self.shapes[node.output]
    if len(shape) < 3 or node.arrays['bias'].ndim == 3:
      super().affine(node)
      return
    bias, scale = (np.broadcast_to(node.arrays[name], shape[-1:]) for name in ('bias', 'scale'))
    if self.kinds[x] == 'codes' and not bias.any():
      self.parts.node('DequantizeLinear', [x, self.parts.constant(f'{node.output}/scale', scale),
                                           self.parts.constant(f'{node.output}/zero', np.zeros(shape[-1:], np.uint8))],
                      node.output, axis=1)
      return
    # The operation that multiplies and adds in one pass.
    constants = {'scale': scale, 'offset': bias * scale, 'mean': np.zeros_like(scale), 'variance': np.ones_like(scale)}
    self.parts.node('BatchNormalization', [self.real(x), *(
        self.parts.constant(f'{node.output}/{name}', array) for name, array in constants.items())], node.output,
                    epsilon=0.0)

  def quantize(self, node):
    if 'thresholds' in node.arrays:
      self.parts.to_type(self.counted(node), np.uint8, node.output)
      return
    self._clip(self.parts.node('QuantizeLinear', [self.real(node.inputs[0]), *self.unit()], f'{node.output}/codes'),
               node)


def _int8(node, weights):
  if weights.max() > 127 or weights.min() < -128:
    raise UserError(f'{node.output}: its {node.attributes["bits"]}-bit weights are the odd numbers up to '
                    f'{int(np.abs(weights).max())}, which int8 does not hold; use the exact ONNX file, or 7 bits')
  return np.round(weights).astype(np.int8)


def _fixed_point(node, bias, scale, most):
  """Returns (weights int8 [..., O], bias int32 [O], scale float32 [O]), all scales positive, for (sum + bias) * scale.

  most: the highest code of the input.
  """
  weights = np.float64(_int8(node, node.weights))
  # Two products at a time are added up in 16 bits where the processor has no instruction for four in 32.
  largest = min(127, (2**15 - 1) // (2 * most))
  multiple = np.maximum(1, largest // np.maximum(1, np.abs(weights).max(tuple(range(weights.ndim - 1)))))
  factor = np.where(scale < 0, -multiple, multiple)
  weights, bias, scale = np.clip(weights * factor, -128, 127), bias * factor, scale / factor
  # A channel whose normalisation has (nearly) no scale: its bias alone counts.
  constant = np.abs(bias) > _LARGEST_BIAS
  weights = np.where(constant, 0, weights)
  scale = np.where(constant, np.abs(bias) * scale / _CONSTANT, scale)
  bias = np.where(constant, np.sign(bias) * _CONSTANT, bias)
  return weights.astype(np.int8), np.round(bias).astype(np.int32), np.float32(scale)
