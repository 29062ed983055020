"""An ONNX file in QONNX's operations, for tools that build circuits: float32 carries integers, Quant names their bits.

Weights pass through Quant (1 bit: BipolarQuant) as integers with scale 1 and zero point 0, activations through Relu and
Quant; scales and normalizations stand between as Add and Mul. Weights of a grid without a zero, such as -3, -1, 1, 3,
have as many bits as these integers need. Sums above 2^24 are rounded as float32 does. The batch is 1, as the tools ask
for: the executor of the `qonnx` package takes no symbolic shapes.
"""

import numpy as np

from cmtkd_jax.errors import UserError
from cmtkd_jax.export.formats import onnx_qdq
from cmtkd_jax.models.bit_policy import FULL_PRECISION

DOMAIN = 'qonnx.custom_op.general'


def write(path, graph, about):
  """Writes `graph` and `about`, what is to be known about it, see `schema.ABOUT`.

  Raises:
    UserError: the network has a grid that is not uniform, or `onnx` is not installed.
  """
  writer = _Writer(graph)
  writer.write_nodes()
  writer.parts.write(path, graph, about, writer.opset, [DOMAIN], batch=1)


class _Writer(onnx_qdq.Writer):
  def ranges(self, node):
    return [(0, self.shapes[node.inputs[0]][-1] // node.groups)]

  def weights(self, node, name, first=0, last=None):
    weights = self.arranged(node, node.weights, first, last)
    kernel = self.parts.constant(f'{name}/integers', weights)
    if node.attributes['bits'] == FULL_PRECISION:
      return kernel
    self.refuse_table(node)
    if set(np.unique(weights)) <= {-1, 1}:
      return self.parts.node(
        'BipolarQuant', [kernel, self.parts.constant('one', np.float32(1))], f'{name}/weights', domain=DOMAIN
      )
    low, high = int(weights.min()), int(weights.max())
    bits = max(2, 1 + max(high, -low - 1).bit_length())  # 1 signed bit means -1 and 1 to QONNX, not -1 and 0
    return self._quant(kernel, bits, f'{name}/weights', signed=1, narrow=int(low > -(2 ** (bits - 1))))

  def _quant(self, x, bits, output, signed, narrow):
    inputs = [
      x,
      *(
        self.parts.constant(name, np.float32(value))
        for name, value in (('one', 1), ('zero', 0), (f'bits {bits}', bits))
      ),
    ]
    return self.parts.node('Quant', inputs, output, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode='ROUND')

  def affine(self, node):
    x = self.parts.node('Add', [node.inputs[0], self.per_channel(node, 'bias')], f'{node.output}/shifted')
    self.parts.node('Mul', [x, self.per_channel(node, 'scale')], node.output)

  def quantize(self, node):
    levels = node.attributes['levels']
    bits = (levels - 1).bit_length()
    if 'thresholds' in node.arrays or levels != 2**bits:
      raise UserError(
        f'{node.output}: its quantizer has thresholds of its own, or other than 2^b levels, which Quant of QONNX '
        'does not have; use the packed archive'
      )
    x = self.parts.node('Relu', node.inputs[0], f'{node.output}/relu')
    self._quant(x, bits, node.output, signed=0, narrow=0)
