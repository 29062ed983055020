"""Exported networks: folding, exact sums, packing, archive, StableHLO, and the command that makes and reads them."""

import errno
import functools
import io
import json
import os
import pickle
import re
import shutil
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmtkd_jax import config as config_lib
from cmtkd_jax import export, models, quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import compare, fold, graph_check, interpreter, predict, schema, trace
from cmtkd_jax.export.formats import bitpacking, packed, stablehlo
from cmtkd_jax.export.graph import Graph, Node
from cmtkd_jax.models import resnet, wide_resnet
from cmtkd_jax.models.batch_norm import BatchNorm
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.models.layers import Activation
from cmtkd_jax.quantizers import base
from cmtkd_jax.runs import provenance, run_files
from cmtkd_jax.runtime import local_file
from cmtkd_jax.training import build
from cmtkd_jax.training import loop as train
from tests.networks import small_mobilenet
from tests.pruned_network import make_pruned

# Packing.


def test_packing_by_hand():
  # codes 1, 2, 3, 2 of 2 bits: 01, 10, 11, 10 -> byte 10 11 10 01 = 0xb9; code 1 alone: 0x01
  np.testing.assert_array_equal(bitpacking.pack(np.uint8([[1, 2, 3, 2, 1]]), 2), np.uint8([0xB9, 0x01]))
  # codes 5, 3, 6 of 3 bits: 101, 011, 110 -> ..0 | 1 10 011 101: first byte 10 011 101 = 0x9d, then 1
  np.testing.assert_array_equal(bitpacking.pack(np.uint8([5, 3, 6]), 3), np.uint8([0x9D, 0x01]))


@pytest.mark.parametrize('bits', range(1, 9))
def test_packing_takes_its_bits_and_comes_back(bits):
  codes = np.random.default_rng(0).integers(0, 2**bits, (3, 5, 7), dtype=np.uint8)
  data = bitpacking.pack(codes, bits)
  assert data.nbytes == -(-codes.size * bits // 8)
  np.testing.assert_array_equal(bitpacking.unpack(data, bits, codes.shape), codes)
  by_shifts = jax.jit(bitpacking.unpack_by_shifts, static_argnums=(1, 2))(jnp.asarray(data), bits, codes.shape)
  np.testing.assert_array_equal(by_shifts, codes)
  with pytest.raises(ValueError, match='bytes'):
    bitpacking.unpack(data[:-1], bits, codes.shape)
  if bits < 8:
    with pytest.raises(ValueError, match=f'does not fit into {bits} bits'):
      bitpacking.pack(np.uint8([2**bits]), bits)


# Exact sums.


def reference_convolution(x, kernel, stride, padding):
  """Sums of products in int64, written out."""
  x = np.pad(x.astype(np.int64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  kh, kw = kernel.shape[:2]
  rows, columns = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw)))
  out = np.zeros((len(x), rows, columns, kernel.shape[-1]), np.int64)
  for i in range(rows):
    for j in range(columns):
      patch = x[:, i * stride : i * stride + kh, j * stride : j * stride + kw]
      out[:, i, j] = np.tensordot(patch, kernel.astype(np.int64), 3)
  return out


@pytest.mark.parametrize('sums', interpreter.SUMS)
@pytest.mark.parametrize('low, high, most', [(-3, 3, 3), (-127, 127, 127), (-128, 127, 255), (-255, 255, 255)])
@pytest.mark.parametrize('stride, padding', [(1, 1), (2, 0)])
def test_sums_are_exact(sums, low, high, most, stride, padding):
  """Also where codes or weights go beyond int8, and where float32 could not hold the whole sum."""
  rng = np.random.default_rng(0)
  weights = rng.integers(low, high + 1, (3, 3, 64, 4))
  if high == 255:
    weights = 2 * (weights // 2) + 1  # 8-bit grids without a zero have odd integers
  weights[..., 0] = weights.max()
  codes = rng.integers(0, most + 1, (2, 6, 6, 64))
  codes[0] = most
  attributes = {'stride': stride, 'padding': padding}
  found = interpreter.SUMS[sums](jnp.asarray(codes, jnp.int32), weights.astype(np.float32), most, attributes)
  expected = reference_convolution(codes, weights, stride, padding)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, expected)
  assert most < 255 or np.abs(expected).max() > interpreter._EXACT_FLOAT  # or the test would not see rounding


@pytest.mark.parametrize('sums', interpreter.SUMS)
@pytest.mark.parametrize('groups, low, high, most', [(2, -255, 255, 255), (128, -255, 255, 255), (128, -3, 3, 3)])
def test_sums_in_groups_are_exact(sums, groups, low, high, most):
  """Each group has ranges of its own channels, and halves of its own where weights go beyond int8."""
  rng = np.random.default_rng(0)
  weights = 2 * (rng.integers(low, high + 1, (3, 3, 128 // groups, 128)) // 2) + 1
  weights[..., 0] = weights.max()
  codes = rng.integers(0, most + 1, (2, 5, 5, 128))
  codes[0] = most
  attributes = {'stride': 2, 'padding': 1, 'groups': groups}
  found = interpreter.SUMS[sums](jnp.asarray(codes, jnp.int32), weights.astype(np.float32), most, attributes)
  parts = zip(np.split(codes, groups, -1), np.split(weights, groups, -1), strict=True)
  expected = np.concatenate([reference_convolution(x, kernel, 2, 1) for x, kernel in parts], -1)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, expected)
  assert groups > 2 or np.abs(expected).max() > interpreter._EXACT_FLOAT


@pytest.mark.parametrize('sums', interpreter.SUMS)
def test_sums_of_dense_layers_are_exact(sums):
  rng = np.random.default_rng(0)
  codes, weights = rng.integers(0, 256, (3, 4, 4, 64)), 2 * rng.integers(-128, 128, (1024, 5)) + 1
  weights[:, 0] = 255
  codes[0] = 255
  found = interpreter.SUMS[sums](jnp.asarray(codes, jnp.int32), weights.astype(np.float32), 255, {})
  np.testing.assert_array_equal(found, codes.reshape(3, -1) @ weights)


# Folding.


def make_method(**changes):
  """(config, method) of one small network."""
  config = config_lib.default()
  config.method.name, config.model.width = 'single', 4 / 16
  config.update_from_flattened_dict(changes)
  with pytest.MonkeyPatch.context() as patch:  # what the third stage adds to folding, the second has already
    for name, blocks in (('resnet8', (1, 1)), ('resnet20', (2, 1))):
      patch.setitem(models.MODELS, name, functools.partial(resnet._resnet, blocks, (16, 32)))
    patch.setitem(models.MODELS, 'wrn16_1', functools.partial(wide_resnet.wide_resnet, 10, 1))
    patch.setitem(models.MODELS, 'mobilenet_v2', small_mobilenet)
    return config, build.create_method(config, 10)


@functools.cache
def make_network(**changes):
  """(config, method, variables with running statistics, uint8 images) of one small network."""
  config, method = make_method(**changes)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, config.data.image_size, config.data.image_size, 1), dtype=np.uint8)

  @jax.jit
  def initial_with_statistics(images):
    variables = method.init({'params': jax.random.key(0)}, images, train=True)
    mutable = [name for name in variables if name != 'params']
    return variables | method.apply(variables, images, train=True, mutable=mutable)[1]

  # Normalizations that do something, in both directions.
  scale = lambda path, x: (
    x * rng.choice([-1.0, 0.5, 2.0], x.shape).astype(np.float32)
    if ('norm' in str(path) and 'scale' in str(path))
    else x + 0.1
    if 'bias' in str(path)
    else x
  )
  variables = jax.device_get(initial_with_statistics(standardized(images)))
  variables = jax.tree_util.tree_map_with_path(scale, variables)
  return config, method, variables, images


def standardized(images):
  return (images.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def make_graph(config, method, variables):
  size = config.data.image_size
  return fold.fold(trace.trace(method, variables, (size, size, 1), 'student'), (size, size, 1), (0.5,), (0.5,))


def run_graph(graph, images, sums='int8'):
  """{name: array} of every result."""
  return jax.jit(lambda images: interpreter.run(graph.by_bytes(), images, sums))(images)


NETWORKS = {  # a network for each thing that folding treats apart
  '2/2': {},
  '1/5': {'student.weight_bits': 1, 'student.activation_bits': 5},
  '8/8': {'student.weight_bits': 8, 'student.activation_bits': 8, 'bits.first_last': 8},
  '4/32': {'student.weight_bits': 4, 'student.activation_bits': 32},
  'post, imagenet stem': {'model.block_order': 'post', 'model.stem': 'imagenet', 'data.image_size': 16},
  'edmips': {'model.block_order': 'edmips', 'model.name': 'resnet20', 'student.activation_bits': 4},
  'edmips, imagenet stem': {'model.block_order': 'edmips', 'model.stem': 'imagenet', 'data.image_size': 16},
  'alexnet': {'model.name': 'alexnet', 'model.stem': 'cifar', 'data.image_size': 32, 'model.width': 0.02},
  'vgg': {'model.name': 'vgg_small', 'data.image_size': 8, 'model.width': 0.03, 'bits.first_last': 8},
  'wide, groups': {'model.name': 'wrn16_1', 'model.bn_groups': 2, 'quantizer.name': 'pact'},
  'offset': {'quantizer.name': 'lsq_plus'},
  'thresholds': {'quantizer.name': 'n2uq'},
  'levels': {'quantizer.name': 'lq_nets'},
  'signs': {'quantizer.name': 'xnor', 'student.weight_bits': 1, 'student.activation_bits': 1},
}


@pytest.mark.parametrize('name', NETWORKS)
def test_folded_network_is_the_trained_one(name):
  """Logits agree to rounding; codes agree but where rounding meets a threshold; both ways to sum agree in every bit."""
  config, method, variables, images = make_network(**NETWORKS[name])
  graph = make_graph(config, method, variables)

  @jax.jit
  def everything(variables, images):  # constants would be folded, which jax 0.10 does wrongly for LQ-Nets' search
    trained = compare._forward_with_codes(method, variables, images, (0.5,), (0.5,))
    return trained, *(interpreter.run(graph.by_bytes(), images, sums) for sums in interpreter.SUMS)

  (logits, codes), ours, other = everything(variables, images)
  layers = [node.output for node in graph.nodes if node.op == 'quantize']
  assert set(layers) == set(codes)
  different = sum(int(np.sum(np.asarray(codes[layer]) != np.asarray(ours[layer]))) for layer in layers)
  assert different <= 1e-3 * sum(codes[layer].size for layer in layers)
  if not different:
    np.testing.assert_allclose(ours[graph.nodes[-1].output], logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())
  for layer in layers:
    np.testing.assert_array_equal(ours[layer], other[layer])


def test_maxima_of_values_that_fall_with_their_codes():
  """N2UQ trains the scale of its outputs, which may become negative; the stem's maximum is over its values."""
  fields = {'model.block_order': 'post', 'model.stem': 'imagenet', 'data.image_size': 16, 'quantizer.name': 'n2uq'}
  config, method, variables, images = make_network(**fields)

  def negate(path, x):
    names = [entry.key for entry in path]
    return -x if 'output_scale' in names and 'stem' in '/'.join(names) else x

  variables = jax.tree_util.tree_map_with_path(negate, variables)
  graph = make_graph(config, method, variables)
  forward = functools.partial(compare._forward_with_codes, method, mean=(0.5,), std=(0.5,))
  logits, codes = jax.jit(forward)(variables, images)
  ours = run_graph(graph, images)
  for layer, found in codes.items():
    assert np.mean(np.asarray(found) != np.asarray(ours[layer])) <= 1e-3, layer
  np.testing.assert_allclose(ours[graph.nodes[-1].output], logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())


def test_quantized_layers_are_summed_in_integers():
  """Uniform codes meet integer weights in exact sums everywhere but in the first and the last layer."""
  graph = make_graph(*make_network()[:3])
  kinds = [graph.kinds()[node.output] for node in graph.nodes if node.op in ('convolution', 'dense')]
  assert kinds == ['real', *['sums'] * (len(kinds) - 2), 'real'] and len(kinds) > 6


def test_bytes_by_hand():
  # 70000 = 112 + 256 * 17 + 65536 * 1; 200 = -56 + 256 * 1; -32769 = -1 + 256 * -128
  kernel = np.float32([70000, 200, -32769, -(2**22), 2**22]).reshape(1, 1, 1, -1)
  node = Node('convolution', ('pixels',), 'out', {'stride': 1, 'padding': 0, 'bits': 32}, {'kernel': kernel})
  np.testing.assert_array_equal(
    np.concatenate(node.kernel_bytes(), 2)[0, 0], [[112, -56, -1, 0, 0], [17, 1, -128, 0, 0], [1, 0, 0, -64, 64]]
  )
  # The only channel is that of 255s, and the last sum of all is rounded: 255 * 70000 = 17850000 lies above 2^24.
  graph = Graph((Node('pixels', ('images',), 'pixels'), node), (1, 1, 0)).by_bytes()
  for sums in interpreter.SUMS:
    np.testing.assert_array_equal(
      interpreter.run(graph, np.zeros((1, 1, 1, 0), np.uint8), sums)['out'][0, 0, 0],
      np.float32([17850000, 51000, -8356095, -255 * 2**22, 255 * 2**22]),
    )


@pytest.mark.parametrize('changes', [{}, {'bits.shortcut': 'full_precision'}])
def test_full_precision_layers_on_codes_are_exact(changes):
  """The first layer takes pixels, normalized in its weights; what it gives is the convolution in float64, rounded."""
  config, method, variables, images = make_network(**changes)
  graph = make_graph(config, method, variables)
  nodes = [node for node in graph.nodes if 'kernel' in node.arrays and node.op == 'convolution']
  assert len(nodes) == (2 if changes else 1) and nodes[0].inputs == ('pixels',)
  values = [run_graph(graph, images, sums) for sums in interpreter.SUMS]
  for node in nodes:
    kernel = node.arrays['kernel']
    assert (kernel == np.round(kernel)).all() and 2**21 <= np.abs(kernel).max() <= 2**22
    x = np.pad(np.float64(values[0][node.inputs[0]]), ((0, 0), *2 * ((node.attributes['padding'],) * 2,), (0, 0)))
    size, stride = kernel.shape[0], node.attributes['stride']
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    exact = np.einsum('bhwcij,ijco->bhwo', windows, np.float64(kernel))
    np.testing.assert_allclose(values[0][node.output], exact, rtol=3e-7, atol=np.abs(exact).max() * 1e-7)
    np.testing.assert_array_equal(values[0][node.output], values[1][node.output])


def test_sizes_are_those_of_the_network():
  config, method, variables, _ = make_network()
  kernels = sum(x.size for x in jax.tree.leaves(variables['params']) if x.ndim > 1)
  words = compare.weight_sizes(make_graph(config, method, variables))
  counts = [int(count.replace(',', '')) for count in re.findall(r'([\d,]+) of \d+ bits', words)]
  assert len(counts) == 2 and sum(counts) == kernels and words.endswith('times less than as float32')
  full = compare.weight_sizes(make_graph(*make_method(**{'student.weight_bits': 32}), variables))
  assert full == f'weights: {kernels:,} of 32 bits take {kernels / 256:,.1f} KiB; together {kernels / 256:,.1f} KiB'


def test_pixels_carry_mean_and_std():
  mean, std, rng = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), np.random.default_rng(0)
  kernel, images = rng.normal(size=(3, 3, 3, 4)), rng.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
  _, by_pixel = fold._Folder(mean, std, True)._pixels(kernel)
  convolved = lambda x, kernel: np.einsum(
    'bhwcij,ijco->bhwo',
    np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)),
    kernel,
  )
  ones = np.full((2, 5, 5, 1), 255)
  np.testing.assert_allclose(
    convolved(np.concatenate([images, ones], 3), by_pixel),
    convolved((images / 255 - mean) / std, kernel),
    rtol=1e-10,
    atol=1e-10,
  )


def step(op, module=None, variables=None, source='input', output='out', shape=(2, 2, 1)):
  return trace.TracedOp(op, (source,), output, shape, module, variables)


def test_normalization_by_hand():
  # (x - 1) / sqrt(3.99999 + 1e-5) * 6 + 5 = (x - 1) * 3 + 5 = (x + 2/3) * 3; a scale of 0 leaves its bias of 7.
  variables = {
    'batch_stats': {'mean': np.float32([1, 1]), 'var': np.float32([3.99999, 1])},
    'params': {'scale': np.float32([6, 0]), 'bias': np.float32([5, 7])},
  }
  graph = fold.fold([step('norm', BatchNorm(), variables)], (2, 2, 2), (0, 0), (1 / 255, 1 / 255))
  node = graph.nodes[-1]
  np.testing.assert_allclose(node.arrays['bias'][0], 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(node.arrays['scale'][0], 3, rtol=1e-6)
  x = np.full((1, 2, 2, 2), 10, np.uint8)
  np.testing.assert_allclose(interpreter.run(graph, x, 'float')['out'][0, 0, 0], [32, 7], rtol=1e-6)


@pytest.mark.parametrize(
  'name', [name for name, module in quantizers.QUANTIZERS.items() if hasattr(module, 'Activation')]
)
def test_thresholds_are_those_of_the_quantizer(name):
  """Just below a threshold the code is one less."""
  for bits in {1, 2, 3, 8}.intersection(quantizers.QUANTIZERS[name].Activation.bit_widths):
    quantizer = quantizers.QUANTIZERS[name].Activation(bits)
    parameters = quantizer.init(jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 4)), jnp.float32))
    grid, thresholds, uniform = fold.activation_grid(quantizer, parameters, 'layer')
    code = lambda x: np.asarray(quantizer.quantize(jnp.asarray(x), parameters).codes)
    wanted = code(np.float32([-1e30]))[0] + np.arange(1, len(thresholds) + 1)
    # Numbers of the same array, so that all are computed by the same instructions.
    at, below = np.split(code(np.concatenate([thresholds, np.nextafter(thresholds, np.float32(-9e9))])), 2)
    assert (at >= wanted).all() and (below < wanted).all()
    assert (grid.values is None) == (name not in ('lq_nets', 'apot'))
    # QIL's and EWGS's interval, not the step of their output, spaces the thresholds; sign keeps its zero; N2UQ learns.
    assert uniform == (name in ('hwgq', 'lsq', 'lsq_plus', 'dorefa', 'pact', 'sawb', 'n2uq', 'lqw_caq')), (
      bits,
      thresholds[:3],
    )
    if uniform:
      halfway = grid.scale * (np.arange(1, len(thresholds) + 1) - 0.5) + grid.start
      np.testing.assert_allclose(thresholds, halfway, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', quantizers.QUANTIZERS)
def test_pruned_networks_answer_as_in_training(name, tmp_path):
  """Scales of 0 and what they divide: every format gives the codes and logits of training's forward pass."""
  method, variables, images = make_pruned(name)
  graph = fold.fold(trace.trace(method, variables, (4, 4, 1), 'student'), (4, 4, 1), (0.5,), (0.5,))
  logits, codes = jax.jit(functools.partial(compare._forward_with_codes, method, mean=(0.5,), std=(0.5,)))(
    variables, images
  )
  assert np.std(logits, 0).max() > 0.01  # the images get through
  for node in graph.nodes:
    assert all(np.isfinite(array).all() for array in node.arrays.values()), node.output
  ours, our_codes = interpreter.Network(graph).with_codes(images)
  for layer in our_codes:
    np.testing.assert_array_equal(our_codes[layer], codes[layer], err_msg=layer)
  np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)
  formats = [
    'packed',
    'stablehlo',
    *(
      ['onnx_qdq']
      if not export.FORMATS['onnx_qdq'].missing() and not any('values' in node.arrays for node in graph.nodes)
      else []
    ),
  ]
  for path in export.write(export.from_graph(graph), tmp_path, formats).values():
    np.testing.assert_allclose(export.open_network(path)[0](images), ours, rtol=1e-5, atol=1e-5, err_msg=str(path))


def test_scales_of_0_by_hand():
  # y = slope x + shift. 0 x + 3: 3 / 2^60 after a bias of 2^60. 0 x + 0: bias and scale are 0. 2 x + 3: (x + 1.5) 2.
  # 1e-30 x + 3: of x nothing is left. 1e-45 x + 0: smaller than any float32 that devices count with.
  node = Node(
    'affine',
    ('sums',),
    'out',
    arrays={'slope': np.float64([0, 0, 2, 1e-30, 1e-45]), 'shift': np.float64([3, 0, 3, 3, 0])},
  )
  found = fold._rounded(node).arrays
  np.testing.assert_array_equal(found['bias'], np.float32([2**60, 0, 1.5, 2**60, 0]))
  np.testing.assert_array_equal(found['scale'], np.float32([3 / 2**60, 0, 2, 3 / 2**60, 0]))
  assert found['bias'].dtype == found['scale'].dtype == np.float32
  # A shift for each of two positions, of one channel without a slope: its largest decides.
  found = fold._rounded(
    Node('affine', ('sums',), 'out', arrays={'slope': np.float64(0), 'shift': np.float64([[[4.0]], [[-1.0]]])})
  ).arrays
  np.testing.assert_array_equal(np.squeeze(found['bias']), [2**60, -(2**58)])
  np.testing.assert_array_equal(found['scale'], [4 / 2**60])


def test_products_of_scales_beyond_float32():
  """Scales whose product float32 does not hold count as 0, or end the export with one line."""
  affine = lambda name, slope, shift, output: Node(
    'affine', (name,), output, arrays={'slope': np.float64(slope), 'shift': np.float64(shift)}
  )
  (merged,) = fold._merged([affine('sums', 1e-30, 1, 'a'), affine('a', 1e-30, 2, 'b')])
  found = fold._rounded(merged).arrays
  assert np.float32(7 + found['bias']) * found['scale'] == 2
  for slope, shift in ((1e30, 0), (1, np.nan), (1, np.inf), (np.nan, 1)):
    (merged,) = fold._merged([affine('sums', slope, 0, 'a'), affine('a', 1e30, shift, 'layer/out')])
    with pytest.raises(UserError, match='^layer/out: .*not a finite float32 number; .*earlier checkpoint'):
      fold._rounded(merged)


def test_networks_that_have_diverged_are_refused():
  config, method, variables, _ = make_network()
  broken = jax.tree_util.tree_map_with_path(
    lambda path, x: x * np.nan if 'conv1' in str(path) and 'kernel' in str(path) else x, variables
  )
  with pytest.raises(UserError, match='conv1: its weights are not finite; .*earlier checkpoint'):
    make_graph(config, method, broken)
  broken = jax.tree_util.tree_map_with_path(
    lambda path, x: x + np.float32(np.inf) if 'var' in str(path) else x, variables
  )
  with pytest.raises(UserError, match='its running statistics are not finite; .*earlier checkpoint'):
    make_graph(config, method, broken)


def test_codes_that_the_bits_do_not_hold_are_refused():
  class Fine(base.Quantizer):
    def quantize(self, x, parameters=None):
      return quantizers.QTensor(jnp.round(jnp.clip(x, 0, 1) * 100).astype(jnp.int32), np.float32(0.01))

  with pytest.raises(UserError, match='here: its quantizer has codes from 0 to 100, and 2 bits hold 4'):
    fold.activation_grid(Fine(2), {}, 'here')


def test_what_cannot_be_exported_is_named():
  class Folded(base.Quantizer):
    quantize = lambda self, x, parameters=None: base.QTensor(
      jnp.round(jnp.clip(jnp.abs(x), 0, 3)).astype(jnp.int32), jnp.float32(1)
    )

  class Channels(base.Quantizer):
    quantize = lambda self, x, parameters=None: base.QTensor(
      jnp.round(jnp.clip(x, 0, 3)).astype(jnp.int32), jnp.ones(4)
    )

  with pytest.raises(
    UserError, match=r'here.*with a scale of shape .4,. cannot be exported; take another checkpoint, or another'
  ):
    fold.activation_grid(Channels(2), {}, 'here')

  class Bump(base.Quantizer):
    quantize = lambda self, x, parameters=None: base.QTensor(
      jnp.where((x > -2) & (x < -1), 2, jnp.round(jnp.clip(x, 0, 3)).astype(jnp.int32)), jnp.float32(1)
    )

  with pytest.raises(UserError, match='here: .* does not ascend .*; use another quantizer for activations'):
    fold.activation_grid(Bump(2), {}, 'here')
  with pytest.raises(UserError, match='here'):
    fold.activation_grid(Folded(2), {}, 'here')

  class Odd(nn.Module):
    def __call__(self, images, train):
      return type('Outputs', (), {'logits': {'student': jnp.sin(images)}})

  with pytest.raises(UserError, match="operation 'sin' .*; use layers of cmtkd_jax.models.layers"):
    trace.trace(Odd(), {}, (2, 2, 1), 'student')

  class Shifted(nn.Module):
    def __call__(self, images, train):
      return type('Outputs', (), {'logits': {'student': images + np.ones((1, 2, 2, 1), np.float32)}})

  class ShiftedByOne(nn.Module):
    def __call__(self, images, train):
      return type('Outputs', (), {'logits': {'student': jnp.mean(images + 1.0, (1, 2))}})

  for shifted in (Shifted(), ShiftedByOne()):
    with pytest.raises(UserError, match='adds a constant to a map .*; make it the bias of a layer'):
      trace.trace(shifted, {}, (2, 2, 1), 'student')

  class Divided(nn.Module):
    divisor: float = 4.0

    def __call__(self, images, train):
      return type('Outputs', (), {'logits': {'student': jnp.sum(images, (1, 2)) / self.divisor}})

  assert [step.op for step in trace.trace(Divided(), {}, (2, 2, 1), 'student')] == ['mean']
  for divisor in (2.0, 16.0, np.float32([[4, 2, 4]])):  # of 2x2 pixels, no mean
    with pytest.raises(UserError, match="operation 'div' .*, sums, ReLU and means"):
      trace.trace(Divided(divisor), {}, (2, 2, 3), 'student')

  class Twice(nn.Module):
    @nn.compact
    def __call__(self, images, train):
      activation = Activation(BitPolicy(32, 32), name='activation')
      return type('Outputs', (), {'logits': {'student': activation(activation(images, train), train)}})

  with pytest.raises(UserError, match='calls its layer activation twice, .*; make it two layers'):
    trace.trace(Twice(), {}, (2, 2, 1), 'student')


# Files.


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Work directory of a short run on the digits."""
  config = config_lib.default()
  config_lib.smoke(config, 8, channels=1)
  config.method.name, config.data.name, config.model.width = 'single', 'digits', 0.25
  config.tensorboard = False
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  train.train_and_evaluate(config, workdir)
  return workdir


@pytest.fixture(scope='module')
def archive(run):
  """(exported network, path of its packed file)."""
  exported = export.from_run(run)
  return exported, export.write(exported, run / 'files', ['packed'])['packed']


def digits(count):
  return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_archive_comes_back(archive):
  exported, path = archive
  graph, about = packed.read(path)
  assert json.loads(bytes(np.load(path)['manifest']))['version'] == 2  # as older programs read it
  assert about == json.loads(json.dumps(exported.about)) and about['classes'] == list(map(str, range(10)))
  assert [node.op for node in graph.nodes] == [node.op for node in exported.graph.nodes]
  for node, other in zip(graph.nodes, exported.graph.nodes, strict=True):
    assert (node.inputs, node.output, dict(node.attributes)) == (other.inputs, other.output, dict(other.attributes))
    assert all(np.array_equal(node.arrays[name], other.arrays[name]) for name in other.arrays)
  np.testing.assert_array_equal(interpreter.Network(graph)(digits(5)), interpreter.Network(exported.graph)(digits(5)))


def test_archive_is_read_by_numpy_alone(archive):
  """As the documentation of the format says, and with as many bytes as the bits make."""
  exported, path = archive
  file = np.load(path)
  manifest = json.loads(bytes(file['manifest']))
  quantized = 0
  for entry, node in zip(manifest['nodes'], exported.graph.nodes, strict=True):
    if 'codes' not in entry['arrays']:
      continue
    data, bits, shape = file[f'{entry["output"]}/codes'], entry['attributes']['bits'], entry['attributes']['shape']
    assert data.nbytes == -(-np.prod(shape) * bits // 8)
    every_bit = np.unpackbits(data, bitorder='little')[: np.prod(shape) * bits].reshape(-1, bits)
    np.testing.assert_array_equal((every_bit @ 2 ** np.arange(bits)).reshape(shape), node.arrays['codes'])
    quantized += 1
  assert quantized >= 7


@pytest.mark.parametrize('bits', range(1, 9))
def test_every_width_is_small_and_right_in_both_files(bits, tmp_path):
  *_, variables, images = make_network()  # HWGQ has no values of its own
  graph = make_graph(*make_method(**{'student.weight_bits': bits, 'student.activation_bits': bits}), variables)
  paths = export.write(export.from_graph(graph), tmp_path, ['packed', 'stablehlo'])
  counts = [node.arrays['codes'].size for node in graph.nodes if 'codes' in node.arrays]
  with zipfile.ZipFile(paths['packed']) as file:
    sizes = [info.file_size - 128 for info in file.infolist() if info.filename.endswith('codes.npy')]
  assert sizes == [-(-count * bits // 8) for count in counts]
  expected = np.asarray(interpreter.Network(graph)(images))
  np.testing.assert_array_equal(interpreter.Network(packed.read(paths['packed'])[0])(images), expected)
  program, _ = stablehlo.read(paths['stablehlo'])
  for count in (1, 3) if bits == 2 else (8,):  # any batch size
    np.testing.assert_allclose(program(images[:count]), expected[:count], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('bits, order, quantizer', [(2, 'pre', 'hwgq'), (4, 'post', 'lsq_plus')])
def test_convolutions_in_groups_in_both_files(bits, order, quantizer, tmp_path):
  """Codes are those of training, to the last, in the integer evaluation, the archive and the program.

  LSQ+ has an offset, so that padding is worth another sum at each position.
  """
  changes = {'model.name': 'mobilenet_v2', 'model.block_order': order, 'quantizer.name': quantizer}
  widths = {'student.weight_bits': bits, 'student.activation_bits': bits}
  config, method, variables, images = make_network(**changes, **widths)
  graph = make_graph(config, method, variables)
  groups = [node.groups for node in graph.nodes if node.op == 'convolution']
  assert sum(count > 1 for count in groups) == 4
  logits, codes = jax.jit(functools.partial(compare._forward_with_codes, method, mean=(0.5,), std=(0.5,)))(
    variables, images
  )
  paths = export.write(export.from_graph(graph), tmp_path, ['packed', 'stablehlo'])
  assert json.loads(bytes(np.load(paths['packed'])['manifest']))['version'] == 3
  ours, our_codes = interpreter.Network(packed.read(paths['packed'])[0]).with_codes(images)
  for layer in codes:
    np.testing.assert_array_equal(our_codes[layer], codes[layer], err_msg=layer)
  np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(stablehlo.read(paths['stablehlo'])[0](images), ours, rtol=1e-5, atol=1e-6)


def test_groups_that_do_not_fit_are_refused():
  kernel = lambda *shape: {'kernel': np.ones(shape, np.float32)}

  def check(attributes, arrays):
    nodes = (
      Node('image', ('images',), 'input', arrays={'mean': np.zeros(4, np.float32), 'std': np.ones(4, np.float32)}),
      Node('convolution', ('input',), 'conv', {'stride': 1, 'padding': 1, 'bits': 32, **attributes}, arrays),
      Node('sum', ('conv',), 'logits'),
    )
    return graph_check.check(Graph(nodes, (3, 3, 4)))

  assert check({'groups': 2}, kernel(3, 3, 2, 6)) == 6 and check({}, kernel(3, 3, 4, 5)) == 5
  for groups, shape, message in (
    (2, (3, 3, 4, 6), 'conv has weights for 8 channels, but its input has 4'),
    (2, (3, 3, 2, 5), 'conv has 5 outputs in 2 groups'),
    (1, (3, 3, 4, 4), 'conv.groups is 1, not an integer in 2..'),
    ('4', (3, 3, 1, 4), "conv.groups is '4', not an integer"),
  ):
    with pytest.raises(schema.InvalidError, match=message):
      check({'groups': groups}, kernel(*shape))


def test_stablehlo_grows_by_the_bits_of_its_weights(tmp_path):
  sizes, variables = {}, make_network(**{'model.width': 0.5})[2]
  for bits in (2, 8):
    graph = make_graph(*make_method(**{'student.weight_bits': bits, 'model.width': 0.5}), variables)
    stablehlo.write(tmp_path / str(bits), graph)
    sizes[bits] = (tmp_path / str(bits)).stat().st_size
  count = sum(node.arrays['codes'].size for node in graph.nodes if 'codes' in node.arrays)
  assert abs((sizes[8] - sizes[2]) - count * 6 / 8) < 0.05 * count


def rewrite(path, target, **changes):
  """Copies an archive with other members; None leaves one out."""
  members = dict(np.load(path)) | changes
  with open(target, 'wb') as file:
    np.savez(file, **{name: array for name, array in members.items() if array is not None})


def changed_manifest(path, **changes):
  manifest = json.loads(bytes(np.load(path)['manifest'])) | changes
  return np.frombuffer(json.dumps(manifest).encode(), np.uint8)


def test_damaged_archives_are_refused(archive, tmp_path):
  """One line each, whatever is wrong."""
  _, path = archive
  data = path.read_bytes()
  first = next(name for name in np.load(path).files if name.endswith('codes'))
  manifest = json.loads(bytes(np.load(path)['manifest']))

  def broken(nodes):
    return changed_manifest(path, nodes=nodes)

  at = data.index(np.load(path)[first].tobytes())
  files = {
    'truncated': data[: len(data) // 2],
    'empty': b'',
    'foreign': b'\x89PNG' + data[4:],
    'one byte changed': data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
  }
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  target = lambda name: tmp_path / name
  rewrite(path, target('newer'), manifest=changed_manifest(path, version=packed.VERSION + 1))
  rewrite(path, target('another format'), manifest=changed_manifest(path, format='other'))
  rewrite(path, target('no manifest'), manifest=None)
  rewrite(path, target('no codes'), **{first: None})
  rewrite(path, target('short codes'), **{first: np.load(path)[first][:-1]})
  rewrite(path, target('wide codes'), **{first: np.load(path)[first].astype(np.int32)})
  rewrite(path, target('unknown operation'), manifest=broken([manifest['nodes'][0] | {'op': 'system'}]))
  rewrite(path, target('unknown input'), manifest=broken([manifest['nodes'][0] | {'inputs': ['elsewhere']}]))
  rewrite(path, target('no operations'), manifest=broken([]))
  rewrite(
    path,
    target('huge shape'),
    manifest=broken(
      [
        node | {'attributes': node['attributes'] | {'shape': [10**6, 10**6]}} if 'shape' in node['attributes'] else node
        for node in manifest['nodes']
      ]
    ),
  )
  with open(target('compressed'), 'wb') as file:
    np.savez_compressed(file, **np.load(path))
  with zipfile.ZipFile(tmp_path / 'pickle', 'w') as file:
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], object), allow_pickle=True)
    file.writestr('manifest.npy', buffer.getvalue())
  (tmp_path / 'bare pickle').write_bytes(pickle.dumps({'manifest': 1}))
  found = sorted(tmp_path.iterdir())
  assert len(found) == 17
  for file in found:
    with pytest.raises(UserError) as error:
      packed.read(file)
    message = str(error.value)
    assert message.startswith(str(file)) and '\n' not in message, file
    assert ('update cmtkd_jax' if file.name == 'newer' else 'export it again') in message, message
  with pytest.raises(UserError, match='absent does not exist; export the network first'):
    packed.read(tmp_path / 'absent')


def test_damaged_stablehlo_is_refused(archive, tmp_path):
  path = export.write(archive[0], tmp_path, ['stablehlo'])['stablehlo']
  data = path.read_bytes()
  for content in (b'', b'\0' * 100, data[: len(data) // 2]):
    path.write_bytes(content)
    with pytest.raises(UserError, match='student.stablehlo is damaged.*export it again'):
      stablehlo.read(path)


def test_files_are_evaluated_beside_training(run):
  text = compare.export_and_compare(run, ['packed', 'stablehlo', 'hub'])
  rows = text.splitlines()
  assert len([row for row in rows if row.rstrip().endswith('0 of 355')]) == 5
  card, summary = (run / 'export' / 'hub' / 'README.md').read_text(), json.loads((run / 'summary.json').read_text())
  last, best = (summary['results']['test/student'][which] for which in ('last', 'best'))
  assert f'| test, last epoch | {last["top1"]:.2f} % | {last["top5"]:.2f} % | {summary["epochs"]} |' in card
  assert f'| test, best epoch | {best["top1"]:.2f} % | {best["top5"]:.2f} % | {best["epoch"]} |' in card
  assert f'      value: {round(last["top1"], 4)}' in card and "data.name = 'digits'" not in card  # the default
  assert 'of 2 bits take' in rows[-2] and rows[-1] == f'this is step {summary["steps"]} of the run'
  results = compare.integer_against_training(run)
  assert results['codes'] == 355 * sum(
    size * size * width for size, width in ((8, 4), (8, 4), (8, 4), (4, 8), (4, 8), (2, 16), (2, 16))
  )
  assert results['predictions_that_differ'] == 0 and results['codes_that_differ'] <= 1e-4 * results['codes']
  config = run_files.read_config(run)
  config.dtype = 'bfloat16'
  note = 'training computes in bfloat16 and the files in float32, so some predictions differ'
  assert note not in text and note in compare.export_and_compare(run, ['packed'], config)


def test_unknown_formats_are_found_before_any_is_written(run, tmp_path):
  copy = shutil.copytree(run, tmp_path / 'run', ignore=shutil.ignore_patterns('export'))
  with pytest.raises(UserError, match=r"formats=\['packed', 'foo'\]: there is no format 'foo'"):
    compare.export_and_compare(copy, ['packed', 'foo'])
  assert not (copy / 'export').exists()


def test_images_of_another_size_before_the_crop_are_not_compared(run):
  config = config_lib.from_json((run / 'config.json').read_text())
  config.data.resize = 9
  with pytest.raises(UserError, match='config.data.resize=9: exported networks take images as the run in'):
    compare.integer_against_training(run, config)


def test_versions_are_those_of_training(run, monkeypatch):
  trained = provenance.versions()
  monkeypatch.setattr(provenance, 'versions', lambda: {'jax': 'another'})
  assert export.from_run(run).about['versions'] == trained


def test_what_is_compared_is_one_checkpoint(run, tmp_path, monkeypatch):
  """Training may save a newer one after the first look. A file of an earlier export is named."""
  copy, seen = shutil.copytree(run, tmp_path / 'run'), []
  (copy / 'export').mkdir(exist_ok=True)
  export.write(export.from_graph(export.from_run(run).graph), copy / 'export', ['stablehlo'])

  def no_data(workdir, config, step):
    seen.append(step)
    raise UserError('no data')

  exported = export.from_run(run)
  before = exported._replace(about=exported.about | {'step': 1})
  export.write(before, copy / 'export', ['hub'])
  monkeypatch.setattr(compare, '_Run', no_data)
  rows = compare.export_and_compare(copy, ['packed']).splitlines()
  assert f'{copy}/export/hub is of step 1 and stays as it is: export it again' in rows
  assert f'{copy}/export/student.stablehlo is of an earlier export and can no longer be read: export it again' in rows
  with pytest.raises(UserError, match='no data'):
    compare.integer_against_training(copy)
  assert seen == [export.from_run(run).about['step']] * 2


def test_integer_evaluation_is_that_of_training(run):
  """Counts what differs: a network with another threshold is told apart."""
  exported = export.from_run(run)
  layer = next(node for node in exported.graph.nodes if node.op == 'quantize')
  values = run_graph(exported.graph, digits(4))
  method_codes = np.round(np.clip(np.asarray(values[layer.inputs[0]]), 0, 3))
  np.testing.assert_array_equal(values[layer.output], method_codes)


def test_images_are_classified_alike_by_every_file(run, tmp_path):
  paths = export.write(export.from_run(run), tmp_path / 'out', ['packed', 'stablehlo'])
  for i, image in enumerate(digits(2)):
    Image.fromarray(image[..., 0]).save(tmp_path / f'{i}.png')
  images = [str(tmp_path / f'{i}.png') for i in range(2)]
  found = {str(path): list(predict.predict(path, images)) for path in (run, *paths.values())}
  first, *others = found.values()
  assert all(other == first for other in others)
  assert [prediction.file for prediction in first] == images
  probabilities = [probability for _, probability in first[0].classes]
  assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1.001


def test_a_full_disk_ends_the_export(run, tmp_path, monkeypatch):
  """And does not leave out what did not fit."""
  copy, write = shutil.copytree(run, tmp_path / 'run'), local_file.write_whole

  def full(path, data):
    if path.name == 'student.stablehlo':
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(path, data)

  monkeypatch.setattr(local_file, 'write_whole', full)
  config = json.loads((copy / 'config.json').read_text())
  config['data']['name'] = 'npy:/absent'  # so that nothing is evaluated
  (copy / 'config.json').write_text(json.dumps(config))
  said = rf'^{copy}/export cannot be written \(No space left on device\); make room, or make it writable$'
  with pytest.raises(UserError, match=said):
    compare.export_and_compare(copy)
  assert (copy / 'export' / 'student.npz').exists()


@pytest.mark.parametrize('is_link', [False, True])
@pytest.mark.parametrize('name, format_name', [('', 'packed'), ('hub', 'hub')])
def test_a_file_where_a_folder_would_be_is_named(run, tmp_path, name, format_name, is_link):
  place = tmp_path / 'export' / name
  place.parent.mkdir(exist_ok=True)
  place.symlink_to('absent') if is_link else place.write_text('a file')
  with pytest.raises(
    UserError, match=f'^{place} cannot be a folder: a file or a link to nothing is in its place; remove'
  ):
    export.write(export.from_run(run), tmp_path / 'export', [format_name])


def test_bad_input_of_export(run, tmp_path):
  (tmp_path / 'text.png').write_text('no image')
  with pytest.raises(UserError, match="no format 'tflite'; there are packed"):
    export.write(export.from_run(run), tmp_path, ['tflite'])
  with pytest.raises(UserError, match='neither the directory of a run nor an exported file'):
    export.open_network(tmp_path / 'text.png')
  with pytest.raises(UserError, match='there is no config.json'):
    export.open_network(tmp_path)
