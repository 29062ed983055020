"""The one evaluation of an exported network: integer codes, exact sums, one float32 scale and bias, the next quantizer.

Sums of codes are exact however they are computed: as int8 convolutions with int32 accumulation, or on float32 carriers
where integer convolutions are missing (GPU), if they stay below 2^24. Both give the same codes, to the last.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.export import images as images_lib
from cmtkd_jax.models.layers import max_pool

_EXACT_FLOAT = 2**24  # integers up to here are float32 numbers
_BYTE = 128
_LARGEST = np.finfo(np.float32).max


def carrier():
  """Returns how sums are computed where JAX runs by default: 'int8' on CPU, else 'float'."""
  return 'int8' if jax.default_backend() == 'cpu' else 'float'


class Network:
  """An exported network as a function of images, compiled once for each batch size.

  Args:
    graph: the `Graph`.
    sums: 'int8' or 'float', see `carrier`; None for what suits the backend.

  Raises:
    UserError: by a call, where the images are not uint8 [B, H, W, C] of the network's size.
  """

  def __init__(self, graph, sums=None):
    self.graph, self.sums = graph, sums or carrier()
    evaluated = graph.by_bytes()
    layers = [node.output for node in graph.nodes if node.op == 'quantize']

    def logits_and_codes(images):
      values = run(evaluated, images, self.sums)
      return values[graph.nodes[-1].output], {layer: values[layer] for layer in layers}

    self._logits = jax.jit(lambda images: logits_and_codes(images)[0])
    self._with_codes = jax.jit(logits_and_codes)

  def __call__(self, images):
    """Returns the logits float32 [B, classes] of images uint8 [B, H, W, C]."""
    return self._logits(images_lib.check(images, self.graph.image_shape))

  def with_codes(self, images):
    """Returns (logits, `{layer: codes int32}` of every quantized map)."""
    return self._with_codes(images_lib.check(images, self.graph.image_shape))


def run(graph, images, sums, weights=None):
  """Evaluates a graph; one that is not split by bytes nearly so, with a kernel's products in float32.

  Args:
    graph: the `Graph`.
    images: uint8 [B, H, W, C].
    sums: 'int8' or 'float'.
    weights: (node) -> array like `node.weights`, where they are made inside of a compiled function; only for 'float'.

  Returns:
    `{name: array}` of every result; codes and sums int32, else float32.
  """
  kinds, levels = graph.kinds(), graph.levels()
  values = {}
  for node in graph.nodes:
    inputs = [values[name] for name in node.inputs if name in values] or [images]
    arrays, attributes = node.arrays, node.attributes
    match node.op:
      case 'image':
        value = _standardized(inputs[0], arrays)
      case 'pixels':
        value = jnp.pad(inputs[0], (*3 * ((0, 0),), (0, 1)), constant_values=255).astype(jnp.int32)
      case 'convolution' | 'dense':
        made = None if weights is None else weights(node)
        if kinds[node.output] == 'sums':
          most = levels[node.inputs[0]] - 1
          value = SUMS[sums](inputs[0], node.weights, most, attributes, made)
        else:
          value = product(inputs[0].astype(jnp.float32), node.weights if made is None else made, attributes)
      case 'affine':
        x = inputs[0].astype(jnp.float32)
        value = (x + _ranked(arrays['bias'], x)) * _ranked(arrays['scale'], x)
      case 'quantize':
        value = _quantize(inputs[0], attributes['levels'], arrays.get('thresholds'))
      case 'lookup':
        value = jnp.asarray(arrays['values'])[inputs[0]]
      case 'add':
        # The minimum keeps compilers from contracting the product before it and this sum to one rounding.
        value = jnp.minimum(inputs[0], _LARGEST) + jnp.minimum(inputs[1], _LARGEST)
      case 'relu':
        value = jnp.maximum(inputs[0], 0)
      case 'max_pool':
        real = max_pool(
          inputs[0].astype(jnp.float32), attributes['window'], attributes['stride'], attributes['padding']
        )
        value = real.astype(inputs[0].dtype)
      case 'sum':
        value = jnp.sum(inputs[0], axis=(1, 2))
    values[node.output] = value
  return values


def _standardized(images, arrays):
  return (images.astype(jnp.float32) / np.float32(255) - _ranked(arrays['mean'], images)) / (
    _ranked(arrays['std'], images)
  )


def _ranked(array, x):
  """`array`, which belongs to the last axes of `x`, with as many axes."""
  return array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def _quantize(x, levels, thresholds):
  if thresholds is None:
    return jnp.clip(jnp.round(x), 0, levels - 1).astype(jnp.int32)
  return jnp.searchsorted(
    jnp.asarray(thresholds), x, side='right', method='compare_all' if levels <= 16 else 'scan'
  ).astype(jnp.int32)


def product(x, kernel, attributes, **options):
  """Returns the convolution with a node's `attributes`, or the matrix product if they have no stride."""
  if 'stride' not in attributes:
    return jax.lax.dot(x.reshape(x.shape[0], -1), jnp.asarray(kernel), precision='highest', **options)
  return jax.lax.conv_general_dilated(
    x,
    jnp.asarray(kernel),
    2 * (attributes['stride'],),
    2 * (2 * (attributes['padding'],),),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=attributes.get('groups', 1),
    precision='highest',
    **options,
  )


def _int8_sums(codes, weights, most, attributes, made=None):
  """int8 x int8 products with int32 sums.

  Codes above 127 are sent less 128, and padded with -128, which stands for 0. Integer weights beyond int8, the odd
  numbers up to 255 of 8-bit grids without a zero, are sent as 2 h + 1: their halves, and a kernel of ones.
  """
  del made
  shifted = most > 127
  if shifted:
    codes = codes - _BYTE
    if padding := attributes.get('padding', 0):
      codes = jnp.pad(codes, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-_BYTE)
      attributes = {**attributes, 'padding': 0}
  codes = codes.astype(jnp.int8)
  total = 0
  for factor, part in _int8_parts(weights.astype(np.int32), attributes.get('groups', 1)):
    sums = product(codes, part.astype(np.int8), attributes, preferred_element_type=jnp.int32)
    if shifted:
      sums = sums + _ranked(_BYTE * part.reshape(-1, part.shape[-1]).sum(0), sums)
    total = total + factor * sums
  return total


def _int8_parts(weights, groups):
  """[(factor, weights that fit int8)], whose sum they are."""
  if weights.min() >= -_BYTE and weights.max() < _BYTE:
    return [(1, weights)]
  odd = weights & 1
  shared = groups == 1 and (odd == odd[..., :1]).all()  # one output then stands for all
  return [(2, weights >> 1), (1, odd[..., :1] if shared else odd)]


def exact_groups(weights, channels, most):
  """Returns ranges (first, last) of input channels within which sums of codes up to `most` stay below 2^24.

  Of a convolution with groups these are channels of every group, of which the kernel has as many.

  weights: float32 [..., O]; those of dense layers belong to a flattened [H, W, C], with the channel last.
  """
  by_channel = weights.reshape(-1, channels, weights.shape[-1])
  largest = most * np.abs(by_channel).sum(0, dtype=np.float64)  # [C, O]
  groups, first = [], 0
  for last in range(1, channels + 1):
    if last == channels or largest[first : last + 1].sum(0).max() >= _EXACT_FLOAT:
      groups.append((first, last))
      first = last
  return groups


def _float_sums(codes, weights, most, attributes, made=None):
  """Sums of float32 numbers, exact in any order: input channels are taken in groups whose sums stay below 2^24."""
  made = weights if made is None else made
  codes, groups = codes.astype(jnp.float32), attributes.get('groups', 1)
  channels = codes.shape[-1] // groups
  ranges = exact_groups(weights, channels, most)
  if len(ranges) == 1:
    return product(codes, made, attributes).astype(jnp.int32)
  by_channel = made.reshape(-1, channels, made.shape[-1])
  by_group = codes.reshape(*codes.shape[:-1], groups, channels)
  total = 0
  for first, last in ranges:
    part = by_channel[:, first:last]
    part = part.reshape(*made.shape[:-2], last - first, -1) if made.ndim == 4 else part.reshape(-1, made.shape[-1])
    of_groups = by_group[..., first:last].reshape(*codes.shape[:-1], groups * (last - first))
    total = total + product(of_groups, part, attributes).astype(jnp.int32)
  return total


SUMS = {'int8': _int8_sums, 'float': _float_sums}


def differing_codes(graph, images):
  """Returns `{layer: codes that differ}` between the two ways to sum, on this machine: a test of exactness."""
  ways = [Network(graph, way).with_codes(images)[1] for way in SUMS]
  return {name: int(jnp.sum(ways[0][name] != ways[1][name])) for name in ways[0]}
