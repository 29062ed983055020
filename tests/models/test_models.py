"""Backbones: parameter counts by hand, shapes at the taps, data flow against stages recomputed in NumPy."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax.errors import UserError
from cmtkd_jax.models import MODELS, ORDERS, resnet
from cmtkd_jax.models.bit_policy import BitPolicy, Rule
from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.network import Network
from cmtkd_jax.models.products import values

pytestmark = pytest.mark.integration  # whole networks
KEY = jax.random.key(0)
FULL = BitPolicy(32, 32)
WEIGHT_STEP = {1: 1.595769, 2: 0.995687, 4: 0.335201}
ACTIVATION_STEP = {1: 0.799, 2: 0.538, 4: 0.185}

# Compiled without the optimizations that take long: these programs run once.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
)


def build(name, policy=FULL, num_classes=100, dtype=jnp.float32, **settings):
  defaults = {'width': 1.0, 'stem': 'cifar', 'block_order': 'pre'}
  return MODELS[name](num_classes=num_classes, layers=LayerFactory(policy, dtype), **(defaults | settings))


def images(size, batch=2):
  return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


def shapes_of(net, x, train=False):
  return jax.eval_shape(lambda x: net.init(KEY, x, train), x)


def count(variables):
  return sum(math.prod(p.shape) for p in jax.tree.leaves(variables))


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('order, parameters', [('pre', 11218340), ('post', 11220132), ('edmips', 11224100)])
def test_resnet18_parameter_count(order, parameters):
  """Worked by hand, post order being the ResNet18 of the literature.

  stem      3*3*3*64 = 1728, norm 2*64 = 128                                                      1856
  stage 1   two blocks of 2 * (9*64*64 = 36864) + 2 norms of 128                                147968
  stage 2   9*64*128 + 9*128*128 + shortcut 64*128 + 2*256 = 229888; 2*147456 + 512 = 295424    525312
  stage 3   9*128*256 + 9*256*256 + shortcut 128*256 + 2*512 = 918528; 1180672                 2099200
  stage 4   9*256*512 + 9*512*512 + shortcut 256*512 + 2*1024 = 3672064; 4720640               8392704
  head      512*100 + 100                                                                        51300
  sum                                                                                         11218340
  post order has a norm on each of the three shortcuts besides: 2 * (128 + 256 + 512) = 1792.
  edmips has these, a norm after each second convolution, 4 * (64 + 128 + 256 + 512) = 3840, and one behind the
  stem's, 128.
  """
  variables = shapes_of(build('resnet18', block_order=order), images(32))
  assert count(variables['params']) == parameters
  # Each norm stores two statistics where it has two parameters: all of the above but kernels and the bias.
  norms = 128 * 5 + 256 * 4 + 512 * 4 + 1024 * 4 + {'pre': 0, 'post': 1792, 'edmips': 1792 + 3840 + 128}[order]
  assert count(variables['batch_stats']) == norms
  # 49*3*64 = 9408 in place of 27*64 = 1728 with the ImageNet stem.
  imagenet = shapes_of(build('resnet18', block_order=order, stem='imagenet'), images(224))
  assert count(imagenet['params']) == parameters + 7680


def test_alexnet_parameter_count():
  """Kernels, then two norm parameters a feature; no biases but the last one's.

  conv 121*3*96 = 34848, 25*96*256 = 614400, 9*256*384 = 884736, 9*384*384 = 1327104, 9*384*256 = 884736
  norm 2 * (96 + 256 + 384 + 384 + 256) = 2752
  fc6 9216*4096 = 37748736, fc7 4096*4096 = 16777216, norms 4*4096 = 16384, fc8 4096*1000 + 1000 = 4097000
  """
  expected = 34848 + 614400 + 884736 + 1327104 + 884736 + 2752 + 37748736 + 16777216 + 16384 + 4097000
  variables = shapes_of(build('alexnet', stem='imagenet', num_classes=1000), images(227))
  assert count(variables['params']) == expected


def test_parameter_counts_of_resnet34_and_50_and_vgg_small():
  """ResNets: those of torchvision. VGG-small: kernels, norms, and 4*4*512 inputs of the classifier."""
  resnet34 = shapes_of(build('resnet34', block_order='post', stem='imagenet', num_classes=1000), images(224))
  assert count(resnet34['params']) == 21_797_672
  resnet50 = shapes_of(build('resnet50', block_order='post', stem='imagenet', num_classes=1000), images(224))
  assert count(resnet50['params']) == 25_557_032
  kernels = 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
  expected = kernels + 2 * 2 * (128 + 256 + 512) + 8192 * 10 + 10
  assert count(shapes_of(build('vgg_small', num_classes=10), images(32))['params']) == expected


def test_learned_steps_are_extra_parameters():
  """2-bit LSQ adds one scalar to each quantized layer: convolutions but the first, shortcuts, activations."""
  plain = shapes_of(build('resnet18'), images(32))['params']
  quantized = shapes_of(build('resnet18', BitPolicy(2, 2, quantizer='lsq')), images(32))['params']
  assert count(quantized) == count(plain) + 16 + 3 + 17


@pytest.mark.parametrize(
  'name, stem, taps',
  [
    ('resnet8', 'cifar', (3, 5, 7)),
    ('resnet20', 'cifar', (7, 13, 19)),
    ('resnet32', 'cifar', (11, 21, 31)),
    ('resnet56', 'cifar', (19, 37, 55)),
    ('resnet110', 'cifar', (37, 73, 109)),
    ('resnet18', 'cifar', (5, 9, 13, 17)),
    ('resnet18', 'imagenet', (5, 9, 13, 17)),
    ('resnet34', 'imagenet', (7, 15, 27, 33)),
    ('resnet50', 'imagenet', (10, 22, 40, 49)),
    ('vgg_small', 'cifar', (2, 4, 6)),
    ('alexnet', 'cifar', (1, 2, 5)),
    ('alexnet', 'imagenet', (1, 2, 5)),
  ],
)
def test_taps(name, stem, taps):
  net = build(name, stem=stem)
  assert net.taps == taps and len(net.make_stages) == len(taps)


@pytest.mark.parametrize(
  'name, stem, size, maps',
  [
    ('resnet18', 'cifar', 32, [(32, 64), (16, 128), (8, 256), (4, 512)]),
    ('resnet18', 'imagenet', 224, [(56, 64), (28, 128), (14, 256), (7, 512)]),
    ('resnet34', 'imagenet', 224, [(56, 64), (28, 128), (14, 256), (7, 512)]),
    ('resnet50', 'imagenet', 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
    ('vgg_small', 'cifar', 32, [(16, 128), (8, 256), (4, 512)]),
    ('resnet8', 'cifar', 32, [(32, 16), (16, 32), (8, 64)]),
    ('resnet20', 'cifar', 32, [(32, 16), (16, 32), (8, 64)]),
    ('resnet32', 'cifar', 32, [(32, 16), (16, 32), (8, 64)]),
    # 227: conv 11/4 to 55, pools 3/2 to 27, 13, 6. 32: pools 2/2 to 16, 8, 4.
    ('alexnet', 'imagenet', 227, [(27, 96), (13, 256), (6, 256)]),
    ('alexnet', 'cifar', 32, [(16, 96), (8, 256), (4, 256)]),
  ],
)
def test_map_shapes(name, stem, size, maps):
  """At every stage, before and after the closing quantizer; then the logits."""
  for order in ORDERS if name in ('resnet8', 'resnet18') else ('pre',):
    net = build(name, BitPolicy(2, 2), stem=stem, block_order=order)

    def walk(net, x):
      shapes = []
      for k in range(len(net.taps)):
        before = net.stage(k, x, False)
        x = net.activate(k, before, False)
        assert x.shape == before.shape and values(x).dtype == jnp.float32
        shapes.append(x.shape)
      return shapes, net.classify(x, False)

    seen = []

    def init(x, net=net, walk=walk, seen=seen):
      (shapes, logits), _ = net.init_with_output(KEY, x, method=walk)
      seen.extend(shapes)
      return logits

    logits = jax.eval_shape(init, images(size))
    assert seen == [(2, side, side, features) for side, features in maps]
    assert logits.shape == (2, 100) and logits.dtype == jnp.float32


def test_width():
  variables = shapes_of(build('resnet18', width=0.25), images(32))
  assert variables['params']['stage4']['block2']['conv2']['kernel'].shape == (3, 3, 128, 128)
  assert variables['params']['head']['classifier']['kernel'].shape == (128, 100)
  variables = shapes_of(build('alexnet', width=1 / 32), images(32))
  assert variables['params']['head']['fc6']['kernel'].shape == (4 * 4 * 8, 128)


@pytest.mark.parametrize('order', ['post', 'edmips'])
@pytest.mark.parametrize('name', ['alexnet', 'vgg_small', 'wrn16_1'])
def test_alexnet_and_wide_networks_have_one_block_order(name, order):
  with pytest.raises(UserError, match=f"block_order='{order}'.*'pre'"):
    build(name, block_order=order)


ASKED = []


class Spy(BitPolicy):
  """Notes the path and role of every layer that asks for its bits."""

  def weight_quantizer(self, path, role):
    ASKED.append((path, role))
    return super().weight_quantizer(path, role)

  def activation_quantizer(self, path):
    ASKED.append((path, 'activation'))
    return super().activation_quantizer(path)


@pytest.mark.parametrize('order', ORDERS)
def test_resnet18_roles(order):
  ASKED.clear()
  shapes_of(build('resnet18', Spy(2, 2), block_order=order), images(32))
  asked = {role: [p for p, r in ASKED if r == role] for _, role in ASKED}
  blocks = [(k, b) for k in (1, 2, 3, 4) for b in (1, 2)]
  assert asked['first'] == ['stage1/stem/conv']
  assert asked['last'] == ['head/classifier']
  assert asked['shortcut'] == [f'stage{k}/block1/shortcut' for k in (2, 3, 4)]
  assert asked['body'] == [f'stage{k}/block{b}/conv{c}' for k, b in blocks for c in (1, 2)]
  assert sorted(asked['activation']) == sorted(
    ['stage1/activation0' if order == 'edmips' else 'stage1/stem/activation']
    + [f'stage{k}/block{b}/activation1' for k, b in blocks]
    + [f'stage{k}/activation1' for k in (1, 2, 3, 4)]
    + [f'stage{k}_activation' for k in (1, 2, 3, 4)]
  )


def test_alexnet_roles():
  ASKED.clear()
  shapes_of(build('alexnet', Spy(2, 2)), images(32))
  asked = {role: [p for p, r in ASKED if r == role] for _, role in ASKED}
  assert asked['first'] == ['stage1/conv1'] and asked['last'] == ['head/fc8'] and 'shortcut' not in asked
  assert asked['body'] == ['stage2/conv1', 'stage3/conv1', 'stage3/conv2', 'stage3/conv3', 'head/fc6', 'head/fc7']
  # Before the last layer stands a plain ReLU, so that seven layers quantize six times.
  assert asked['activation'] == [
    'stage1_activation',
    'stage2_activation',
    'stage3/activation1',
    'stage3/activation2',
    'stage3_activation',
    'head/activation6',
  ]


# The data flow, recomputed in float64 NumPy from the parameters.


class Reference:
  """The pieces of a network with HWGQ at `bits`, or without quantizers at 32."""

  def __init__(self, bits):
    self.bits = bits

  def kernel(self, layer, quantized=True):
    w = np.asarray(layer['kernel'], np.float64)
    if self.bits == 32 or not quantized:
      return w
    levels = WEIGHT_STEP[self.bits] * w.std(ddof=1) * (np.arange(2**self.bits) - (2**self.bits - 1) / 2)
    return levels[np.abs(w[..., None] - levels).argmin(-1)]

  def conv(self, x, layer, stride=1, quantized=True):
    w = self.kernel(layer, quantized)
    k, pad = w.shape[0], (w.shape[0] - 1) // 2
    height, width = ((n + 2 * pad - k) // stride + 1 for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return sum(
      x[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width] @ w[i, j]
      for i in range(k)
      for j in range(k)
    )

  def norm(self, x, layer):
    axes = tuple(range(x.ndim - 1))
    centered = x - x.mean(axes)
    normalized = centered / np.sqrt((centered**2).mean(axes) + 1e-5)
    return normalized * np.asarray(layer['scale']) + np.asarray(layer['bias'])

  def quantize(self, x):
    if self.bits == 32:
      return np.maximum(x, 0)
    d = ACTIVATION_STEP[self.bits]
    return d * np.searchsorted((np.arange(2**self.bits - 1) + 0.5) * d, x)


def randomized(params, seed=0):
  """Moves every parameter, so that scales are not all one and biases not all zero."""
  rng = np.random.default_rng(seed)
  noise = lambda p: rng.normal(size=p.shape) * (0.2 if p.ndim == 1 else 0.02)
  return jax.tree.map(lambda p: p + jnp.asarray(noise(p), p.dtype), params)


def stage_with(net, k, x):
  """Returns stage k's parameters and its output on x with batch statistics."""
  init = jit(lambda x: net.init(KEY, x, True, method=lambda net, x, train: net.stage(k, x, train)))
  variables = init(x)
  variables = variables | {'params': randomized(variables['params'])}
  y, _ = jit(lambda v, x: net.apply(v, k, x, True, method='stage', mutable=['batch_stats']))(variables, x)
  return variables['params'][f'stage{k + 1}'], np.asarray(y)


@pytest.mark.parametrize('bits', [32, 2])
def test_pre_order_stage(bits):
  """Main branch and projection of the first block read the stage's input; identities skip the norm."""
  net, r = build('resnet18', BitPolicy(bits, bits), width=1 / 16), Reference(bits)
  x = r.quantize(normal(0, 4, 8, 8, 4).astype(np.float64))
  p, y = stage_with(net, 1, jnp.asarray(x, jnp.float32))
  assert set(p) == {'block1', 'norm1', 'block2', 'norm2'}
  assert set(p['block1']) == {'conv1', 'norm1', 'conv2', 'shortcut'}
  assert set(p['block2']) == {'conv1', 'norm1', 'conv2'}

  b1, b2 = p['block1'], p['block2']
  inner = r.quantize(r.norm(r.conv(x, b1['conv1'], 2), b1['norm1']))
  total = r.conv(inner, b1['conv2']) + r.conv(x, b1['shortcut'], 2)
  entry = r.quantize(r.norm(total, p['norm1']))
  inner = r.quantize(r.norm(r.conv(entry, b2['conv1']), b2['norm1']))
  total = r.conv(inner, b2['conv2']) + total
  np.testing.assert_allclose(y, r.norm(total, p['norm2']), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('bits', [32, 2])
def test_post_order_stage(bits):
  """Norms on both branches, the quantizer after the sum; identities add the quantized map."""
  net, r = build('resnet18', BitPolicy(bits, bits), width=1 / 16, block_order='post'), Reference(bits)
  x = r.quantize(normal(0, 4, 8, 8, 4).astype(np.float64))
  p, y = stage_with(net, 1, jnp.asarray(x, jnp.float32))
  assert set(p) == {'block1', 'block2'}
  assert set(p['block1']) == {'conv1', 'norm1', 'conv2', 'norm2', 'shortcut', 'shortcut_norm'}

  b1, b2 = p['block1'], p['block2']
  inner = r.quantize(r.norm(r.conv(x, b1['conv1'], 2), b1['norm1']))
  shortcut = r.norm(r.conv(x, b1['shortcut'], 2), b1['shortcut_norm'])
  total = r.norm(r.conv(inner, b1['conv2']), b1['norm2']) + shortcut
  entry = r.quantize(total)
  inner = r.quantize(r.norm(r.conv(entry, b2['conv1']), b2['norm1']))
  total = r.norm(r.conv(inner, b2['conv2']), b2['norm2']) + entry
  np.testing.assert_allclose(y, total, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('bits', [32, 2])
def test_edmips_order_stage(bits):
  """As `pre`, but both branches are normalized before they are added; the projection reads what is quantized."""
  net, r = build('resnet18', BitPolicy(bits, bits), width=1 / 16, block_order='edmips'), Reference(bits)
  x = r.quantize(normal(0, 4, 8, 8, 4).astype(np.float64))
  p, y = stage_with(net, 1, jnp.asarray(x, jnp.float32))
  assert set(p) == {'block1', 'norm1', 'block2', 'norm2'}
  assert set(p['block1']) == {'conv1', 'norm1', 'conv2', 'norm2', 'shortcut', 'shortcut_norm'}
  assert set(p['block2']) == {'conv1', 'norm1', 'conv2', 'norm2'}

  def edmips_block(out, raw, block):
    """The published block behind its bn0 and quantizer, whose result is `out`; `raw` is what they read."""
    residual = raw
    if 'shortcut' in block:
      residual = r.norm(r.conv(out, block['shortcut'], 2), block['shortcut_norm'])
    out = r.norm(r.conv(out, block['conv1'], 2 if 'shortcut' in block else 1), block['norm1'])
    return r.norm(r.conv(r.quantize(out), block['conv2']), block['norm2']) + residual

  raw = edmips_block(x, None, p['block1'])
  raw = edmips_block(r.quantize(r.norm(raw, p['norm1'])), raw, p['block2'])
  np.testing.assert_allclose(y, r.norm(raw, p['norm2']), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('order', ORDERS)
def test_bottleneck_stage(order):
  """1x1, 3x3 with the stride, 1x1 to four times the features; the projection reads what conv1 reads."""
  net, r = (
    resnet._resnet((1, 2), (64, 128), 10, LayerFactory(BitPolicy(2, 2)), 1 / 32, 'cifar', order, resnet.BOTTLENECK),
    Reference(2),
  )
  assert net.taps == (4, 10)
  x = r.quantize(normal(0, 4, 8, 8, 8).astype(np.float64))
  p, y = stage_with(net, 1, jnp.asarray(x, jnp.float32))
  norms, after_sum = order != 'pre', order != 'post'

  def block(x, identity, p, stride):
    inner = r.quantize(r.norm(r.conv(x, p['conv1']), p['norm1']))
    inner = r.quantize(r.norm(r.conv(inner, p['conv2'], stride), p['norm2']))
    y = r.conv(inner, p['conv3'])
    if 'shortcut' in p:
      identity = r.conv(x, p['shortcut'], stride)
      identity = r.norm(identity, p['shortcut_norm']) if norms else identity
    return (r.norm(y, p['norm3']) if norms else y) + identity

  assert [p['block1'][f'conv{i}']['kernel'].shape for i in (1, 2, 3)] == [(1, 1, 8, 4), (3, 3, 4, 4), (1, 1, 4, 16)]
  assert ('norm3' in p['block1']) == norms and 'shortcut' in p['block1'] and 'shortcut' not in p['block2']
  total = block(x, None, p['block1'], 2)
  entry = r.quantize(r.norm(total, p['norm1']) if after_sum else total)
  total = block(entry, total if after_sum else entry, p['block2'], 1)
  np.testing.assert_allclose(y, r.norm(total, p['norm2']) if after_sum else total, rtol=1e-3, atol=2e-4)


def pooled(x, window, stride, pad=0):
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
  views = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
  return views[:, ::stride, ::stride].max((-2, -1))


def strided_conv(x, w, stride, pad):
  views = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  views = np.lib.stride_tricks.sliding_window_view(views, w.shape[:2], (1, 2))[:, ::stride, ::stride]
  return np.einsum('bhwcij,ijcf->bhwf', views, w)


@pytest.mark.parametrize('order', ORDERS)
def test_imagenet_stem(order):
  """7x7/2, 3x3/2 pool: `post` pools after the quantizer, the others before the norm; no projection follows.

  `edmips` does not quantize what the first block adds, but what its convolution reads, after one norm more.
  """
  net, r = build('resnet18', BitPolicy(2, 2), width=1 / 16, stem='imagenet', block_order=order), Reference(2)
  x = normal(0, 2, 32, 32, 3)
  p, y = stage_with(net, 0, jnp.asarray(x))
  stem = p['stem']
  maps = strided_conv(x.astype(np.float64), np.asarray(stem['conv']['kernel'], np.float64), 2, 3)
  if order == 'pre':
    maps = r.quantize(r.norm(pooled(maps, 3, 2, 1), stem['norm']))
  elif order == 'edmips':
    maps = r.norm(pooled(maps, 3, 2, 1), stem['norm'])
  else:
    maps = pooled(r.quantize(r.norm(maps, stem['norm'])), 3, 2, 1)
  total = entry = maps
  if order == 'edmips':
    entry = r.quantize(r.norm(maps, p['norm0']))
  for b in (1, 2):
    block = p[f'block{b}']
    inner = r.quantize(r.norm(r.conv(entry, block['conv1']), block['norm1']))
    if order == 'pre':
      total = r.conv(inner, block['conv2']) + total
      out = r.norm(total, p[f'norm{b}'])
    elif order == 'edmips':
      total = r.norm(r.conv(inner, block['conv2']), block['norm2']) + total
      out = r.norm(total, p[f'norm{b}'])
    else:
      out = r.norm(r.conv(inner, block['conv2']), block['norm2']) + entry
    entry = r.quantize(out)
  np.testing.assert_allclose(y, out, rtol=1e-3, atol=2e-4)


def test_alexnet_stages():
  """Convolution, pool, norm, in this order; the last stage quantizes between its three convolutions."""
  net, r = build('alexnet', BitPolicy(2, 2), width=1 / 32), Reference(2)
  x = normal(0, 2, 16, 16, 3)
  p, y = stage_with(net, 0, jnp.asarray(x))
  conv = r.conv(x.astype(np.float64), p['conv1'], quantized=False)
  np.testing.assert_allclose(y, r.norm(pooled(conv, 2, 2), p['norm1']), rtol=1e-3, atol=2e-4)

  x = r.quantize(normal(1, 2, 8, 8, 8).astype(np.float64))
  p, y = stage_with(net, 2, jnp.asarray(x, jnp.float32))
  x = r.quantize(r.norm(r.conv(x, p['conv1']), p['norm1']))
  x = r.quantize(r.norm(r.conv(x, p['conv2']), p['norm2']))
  expected = r.norm(pooled(r.conv(x, p['conv3']), 2, 2), p['norm3'])
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=2e-4)


def test_vgg_small():
  """Two convolutions, a pool before the second normalization; the classifier reads all positions of the last map."""
  net, r = build('vgg_small', BitPolicy(2, 2), num_classes=7, width=1 / 32), Reference(2)
  x = r.quantize(normal(1, 2, 8, 8, 4).astype(np.float64))
  p, y = stage_with(net, 1, jnp.asarray(x, jnp.float32))
  inner = r.quantize(r.norm(r.conv(x, p['conv1']), p['norm1']))
  np.testing.assert_allclose(y, r.norm(pooled(r.conv(inner, p['conv2']), 2, 2), p['norm2']), rtol=1e-3, atol=2e-4)

  classify = lambda net, x: net.classify(x, False)
  x = np.abs(normal(2, 3, 4, 4, 16))
  p = randomized(jit(lambda x: net.init(KEY, x, method=classify))(x)['params'])
  layer = p['head']['classifier']
  expected = x.reshape(3, -1) @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])
  np.testing.assert_allclose(net.apply({'params': p}, x, method=classify), expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(UserError, match="model.stem='imagenet' does not exist for vgg_small; use 'cifar'"):
    build('vgg_small', stem='imagenet')
  with pytest.raises(UserError, match='too small for this network: 1x1 maps are left to pool; use 8 or more'):
    shapes_of(build('vgg_small'), images(7))
  with pytest.raises(UserError, match='too small for this network: a 11x11 convolution reads 8x8 maps; use 227'):
    shapes_of(build('alexnet', stem='imagenet'), images(8))


def test_heads():
  """ResNet: mean over positions, one dense layer. AlexNet: the last dense layer reads an unquantized ReLU."""
  classify = lambda net, x: net.classify(x, True)
  r, x = Reference(2), np.abs(normal(0, 8, 4, 4, 8))
  net = build('resnet8', BitPolicy(2, 2), num_classes=10, width=1 / 8)
  p = randomized(jit(lambda x: net.init(KEY, x, method=classify))(x)['params'])
  logits = net.apply({'params': p}, x, method=classify)
  layer = p['head']['classifier']
  expected = x.mean((1, 2)) @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)

  alexnet = build('alexnet', BitPolicy(2, 2), num_classes=10, width=1 / 128)
  variables = jit(lambda x: alexnet.init(KEY, x, method=classify))(x)
  variables = variables | {'params': randomized(variables['params'])}
  apply = jit(lambda v, x: alexnet.apply(v, x, method=classify, mutable=['batch_stats']))
  logits, p = apply(variables, x)[0], variables['params']['head']
  hidden = r.quantize(r.norm(x.reshape(8, -1).astype(np.float64) @ r.kernel(p['fc6']), p['norm6']))
  hidden = np.maximum(r.norm(hidden @ r.kernel(p['fc7']), p['norm7']), 0)
  expected = hidden @ np.asarray(p['fc8']['kernel'], np.float64) + np.asarray(p['fc8']['bias'])
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope='module')
def small():
  """A narrow 2-bit ResNet8 with its variables and images."""
  net, x = build('resnet8', BitPolicy(2, 2), num_classes=10, width=0.25), jnp.asarray(normal(0, 4, 8, 8, 3))
  variables = jit(lambda x: net.init(KEY, x, True))(x)
  return net, variables | {'params': randomized(variables['params'])}, x


def test_stages_compose_to_the_network(small):
  """The parts that a method runs one by one are the network on its own; the taps hold levels of 2 bits."""
  net, variables, x = small

  def parts(net, x):
    maps = []
    for k in range(3):
      x = net.activate(k, net.stage(k, x, False), False)
      maps.append(values(x))
    return net.classify(x, False), maps

  logits, maps = jit(lambda v, x: net.apply(v, x, method=parts))(variables, x)
  whole = jit(lambda v, x: net.apply(v, x, False))(variables, x)
  np.testing.assert_allclose(whole, logits, rtol=1e-5, atol=1e-6)
  for m in maps:
    assert {0, 1, 2} <= set(np.unique(np.rint(np.asarray(m) / 0.538))) <= {0, 1, 2, 3}
    np.testing.assert_allclose(m, 0.538 * np.rint(np.asarray(m) / 0.538), rtol=1e-5)


def test_diverged_network_shows_it(small):
  """NaN in the first kernel arrives at the logits: no quantizer on the way turns it into a number."""
  net, variables, x = small
  params = jax.tree.map(lambda p: p, variables['params'])
  params['stage1']['stem']['conv']['kernel'] *= jnp.nan
  assert np.isnan(jit(lambda v, x: net.apply(v, x, False))(variables | {'params': params}, x)).all()


def test_running_statistics_move_in_training_only(small):
  net, variables, x = small
  for train in (True, False):
    _, changed = jit(lambda v, x, train=train: net.apply(v, x, train, mutable=['batch_stats']))(variables, x)
    moved = [
      bool((a != b).any())
      for a, b in zip(jax.tree.leaves(changed['batch_stats']), jax.tree.leaves(variables['batch_stats']), strict=True)
    ]
    assert all(moved) if train else not any(moved)


@pytest.mark.parametrize('quantizer, order', [('hwgq', 'pre'), ('lsq', 'post'), ('lsq', 'edmips')])
def test_gradients_reach_every_parameter(quantizer, order):
  policy = BitPolicy(2, 2, first_last_bits=8, quantizer=quantizer)
  net = resnet._resnet((1, 1), (4, 8), 10, LayerFactory(policy, jnp.float32), block_order=order)
  x, g = jnp.asarray(normal(0, 8, 8, 8, 3)), jnp.asarray(normal(1, 8, 10))

  @jit
  def gradients(x):
    variables = net.init(KEY, x, True)

    def loss(params):
      logits, _ = net.apply(variables | {'params': params}, x, True, mutable=['batch_stats'])
      return jnp.sum(g * jax.nn.log_softmax(logits))

    return jax.grad(loss)(variables['params'])

  leaves = jax.tree_util.tree_leaves_with_path(gradients(x))
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  assert any('shortcut' in n for n in names) and any('step' in n for n in names) == (quantizer == 'lsq')
  for name, (_, leaf) in zip(names, leaves, strict=True):
    assert np.isfinite(leaf).all() and np.any(leaf), name


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
  for policy in (BitPolicy(2, 2), BitPolicy(2, 4, quantizer='lsq'), FULL):
    net = build('resnet8', policy, dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(lambda x, net=net: net.init_with_output(KEY, x, True), images(32))
    assert logits.dtype == jnp.float32
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_norm_without_affine():
  """HWGQ's Caffe networks normalize without scale and bias."""
  layers = LayerFactory(FULL, bn_affine=False)
  net = MODELS['resnet8'](num_classes=10, layers=layers, width=1.0, stem='cifar', block_order='pre')
  leaves = jax.tree_util.tree_leaves_with_path(shapes_of(net, images(32))['params'])
  names = [path[-1].key for path, _ in leaves]
  # 7 convolutions, 2 shortcuts and the classifier, with its bias.
  assert sorted(names) == ['bias'] + 10 * ['kernel']


def test_a_networks_name_is_part_of_its_rules():
  """A network inside another module is addressed by its full path, from which its rules start."""

  class Pair(nn.Module):
    def setup(self):
      rules = (Rule('teacher/stage3/.*', 8, 8),)
      self.student = build('resnet8', Spy(2, 2, rules=rules))
      self.teacher = build('resnet8', Spy(4, 4, rules=rules))

    def __call__(self, x, train):
      return self.student(x, train) + self.teacher(x, train)

  ASKED.clear()
  shapes_of(Pair(), images(32))
  assert ('student/stage3/block1/conv1', 'body') in ASKED and ('teacher/stage3/block1/conv1', 'body') in ASKED
  assert ('teacher/stage1/stem/conv', 'first') in ASKED and ('student/head/classifier', 'last') in ASKED
  plain = jax.tree_util.tree_leaves_with_path(shapes_of(Pair(), images(32))['params'])
  assert not any(path[-1].key == 'step' for path, _ in plain)  # HWGQ has nothing to learn, whatever its bits


@pytest.mark.parametrize('taps', [(2,), (2, 4, 6), (4, 2), (2, 2)])
def test_taps_are_one_ascending_number_a_stage(taps):
  make = lambda: None
  network = Network(taps, (make, make), make, make)
  with pytest.raises(ValueError, match='are not one ascending number for each of 2 stages'):
    network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True)
