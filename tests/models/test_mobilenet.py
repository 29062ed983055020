"""MobileNetV2: counts of the literature, taps, maps, stages recomputed in NumPy; methods take it, and ResNet50."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import models
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import bit_table, mobilenet, resnet
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.products import values
from cmtkd_jax.training import build as build_lib
from cmtkd_jax.training.teachers import Teacher
from tests.networks import small_mobilenet

pytestmark = pytest.mark.integration  # whole networks

# Compiled without the optimizations that take long: these programs run once.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
)
KEY, FULL = jax.random.key(0), BitPolicy(32, 32)
WEIGHT_STEP, ACTIVATION_STEP = 0.995687, 0.538  # of HWGQ at 2 bits


def build(policy=FULL, num_classes=100, make=mobilenet.mobilenet_v2, **settings):
  return make(num_classes=num_classes, layers=LayerFactory(policy), **({'stem': 'cifar'} | settings))


def shapes_of(net, size):
  return jax.eval_shape(lambda x: net.init(KEY, x, False), jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))


@pytest.mark.parametrize('order, stem, size', [('pre', 'imagenet', 224), ('post', 'cifar', 32)])
def test_parameter_count(order, stem, size):
  """torchvision's 3,504,872, in both orders; the stems differ in strides alone."""
  variables = shapes_of(build(num_classes=1000, stem=stem, block_order=order), size)
  assert sum(math.prod(p.shape) for p in jax.tree.leaves(variables['params'])) == 3_504_872


@pytest.mark.parametrize(
  'stem, size, sides', [('imagenet', 224, (56, 28, 14, 7)), ('cifar', 32, (32, 16, 8, 4))], ids=['imagenet', 'cifar']
)
def test_taps_and_maps(stem, size, sides):
  """53 layers: 52 convolutions and the classifier; strides of the paper, or those of CIFAR ports."""
  net, seen = build(BitPolicy(2, 2), stem=stem), []
  assert net.taps == (9, 18, 39, 52)

  def walk(net, x):
    for k in range(4):
      before = net.stage(k, x, False)
      x = net.activate(k, before, False)
      seen.append((before.shape, values(x).shape))
    return net.classify(x, False)

  logits = jax.eval_shape(
    lambda x: net.init_with_output(KEY, x, method=walk)[0], jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  )
  assert seen == [2 * ((2, side, side, f),) for side, f in zip(sides, (24, 32, 96, 1280), strict=True)]
  assert logits.shape == (2, 100) and logits.dtype == jnp.float32


def test_bits_and_macs_of_every_layer():
  """300.8 million MACs at 224, as the paper has; every convolution but the first takes quantized weights and maps."""
  config = config_lib.default()
  config.method.name, config.model.name, config.model.stem = 'single', 'mobilenet_v2', 'imagenet'
  rows = bit_table.collect(build_lib.create_method(config, 1000), (224, 224, 3))
  assert sum(row.macs for row in rows) == 300_774_272
  widths = [(row.weight_bits, row.activation_bits) for row in rows]
  assert widths == [(32, 32), *51 * [(2, 2)], (32, 32)]
  depthwise = [row for row in rows if row.layer.endswith('/depthwise')]
  assert len(depthwise) == 17 and depthwise[0].parameters == 9 * 32 and depthwise[-1].parameters == 9 * 960


# Stages, recomputed in float64 NumPy.


def kernel_of(layer, bits, quantized=True):
  w = np.asarray(layer['kernel'], np.float64)
  if bits == 32 or not quantized:
    return w
  levels = WEIGHT_STEP * w.std(ddof=1) * (np.arange(4) - 1.5)
  return levels[np.abs(w[..., None] - levels).argmin(-1)]


def conv(x, w, stride=1, depthwise=False):
  size, pad = len(w), (len(w) - 1) // 2
  windows = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), (size, size), (1, 2)
  )[:, ::stride, ::stride]
  return np.einsum('bhwcij,ijc->bhwc', windows, w[:, :, 0]) if depthwise else np.einsum('bhwcij,ijcf->bhwf', windows, w)


def norm(x, layer):
  centered = x - x.mean((0, 1, 2))
  return centered / np.sqrt((centered**2).mean((0, 1, 2)) + 1e-5) * np.asarray(layer['scale']) + np.asarray(
    layer['bias']
  )


def activation(x, bits):
  if bits == 32:
    return np.maximum(x, 0)
  return ACTIVATION_STEP * np.searchsorted((np.arange(3) + 0.5) * ACTIVATION_STEP, x)


def stage_with(net, k, x):
  """Returns random parameters of stage k and its result with statistics of the batch."""
  rng = np.random.default_rng(0)
  variables = jax.eval_shape(lambda x: net.init(KEY, x, True, method=lambda net, x, train: net.stage(k, x, train)), x)
  draw = lambda path, p: np.float32(('scale' in str(path)) + rng.normal(size=p.shape) * (0.2 if p.ndim == 1 else 0.4))
  variables = jax.tree_util.tree_map_with_path(draw, variables)
  y, _ = jit(lambda v, x: net.apply(v, k, x, True, method='stage', mutable=['batch_stats']))(variables, x)
  return variables['params'][f'stage{k + 1}'], np.asarray(y)


@pytest.mark.parametrize('bits', [32, 2])
@pytest.mark.parametrize('order', ['pre', 'post'])
def test_stages_against_numpy(order, bits):
  """Identities add the real sums; what is read goes through a quantizer; a first block of a row adds nothing."""
  net = build(BitPolicy(bits, bits), make=small_mobilenet, width=1 / 8, block_order=order)
  assert net.taps == (9, 13)

  def branch(x, block, stride=1):
    if 'expand' in block:
      x = activation(norm(conv(x, kernel_of(block['expand'], bits)), block['expand_norm']), bits)
    x = conv(x, kernel_of(block['depthwise'], bits), stride, depthwise=True)
    x = conv(activation(norm(x, block['depthwise_norm']), bits), kernel_of(block['project'], bits))
    return norm(x, block['project_norm']) if order == 'post' else x

  def follow(total, p, b):
    return norm(total, p[f'norm{b}']) if order == 'pre' else total

  rng = np.random.default_rng(1)
  x = rng.normal(size=(4, 6, 6, 3)).astype(np.float32)
  p, y = stage_with(net, 0, jnp.asarray(x))
  x = activation(norm(conv(x, kernel_of(p['stem'], bits, quantized=False)), p['stem_norm']), bits)
  total = branch(x, p['block1'])
  assert 'expand' not in p['block1'] and p['block2']['depthwise']['kernel'].shape == (3, 3, 1, 6)
  total = branch(activation(follow(total, p, 1), bits), p['block2'])
  total = total + branch(activation(follow(total, p, 2), bits), p['block3'])
  assert total.min() < -0.5  # the sum is signed
  np.testing.assert_allclose(y, follow(total, p, 3), rtol=1e-3, atol=5e-4)

  x = activation(rng.normal(size=(4, 6, 6, 3)), bits)
  p, y = stage_with(net, 1, jnp.asarray(x, jnp.float32))
  x = activation(follow(branch(x, p['block1'], 2), p, 1), bits)
  np.testing.assert_allclose(y, norm(conv(x, kernel_of(p['last'], bits)), p['last_norm']), rtol=1e-3, atol=5e-4)


def small_config(monkeypatch, name):
  """Of a short network of that name, with one scale per channel."""
  bottlenecks = functools.partial(resnet._resnet, (1, 1), (64, 128), convolutions=resnet.BOTTLENECK)
  monkeypatch.setitem(models.MODELS, name, {'mobilenet_v2': small_mobilenet, 'resnet50': bottlenecks}[name])
  config = config_lib.default()
  config.method.name, config.model.name, config.model.width = 'single', name, 1 / 16
  config.quantizer.name, config.quantizer.lsq.weight.per_channel = 'lsq', True
  return config


def test_forward_with_a_scale_a_channel(monkeypatch):
  method = build_lib.create_method(small_config(monkeypatch, 'mobilenet_v2'), 4)
  x = jnp.zeros((2, 8, 8, 3)) + 0.5
  variables = jit(lambda x: method.init(KEY, x, train=True))(x)
  logits = jit(lambda v, x: method.apply(v, x, train=False).logits['student'])(variables, x)
  assert logits.shape == (2, 4) and np.isfinite(logits).all()
  block = variables['params']['student']['stage1']['block2']
  assert block['depthwise']['weight_quantizer']['step'].shape == (3,)


@pytest.mark.parametrize('name', ['mobilenet_v2', 'resnet50'])
@pytest.mark.parametrize(
  'method, networks', [('kd', {'student', 'teacher'}), ('cmtkd', {'student', 'combined_teacher'})]
)
def test_methods_take_it(name, method, networks, monkeypatch):
  config = small_config(monkeypatch, name)
  teachers = (Teacher('elsewhere', config_lib.derive(config, {})),) if method == 'kd' else ()
  config.method.name, config.method.cmtkd.teacher_bits = method, (8,)
  module = build_lib.create_method(config, 4, teachers)
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  found = jax.eval_shape(lambda x: module.init_with_output(KEY, x, train=True)[0].logits, x)
  assert networks <= set(found) and {logits.shape for logits in found.values()} == {(2, 4)}


def test_what_it_is_not():
  with pytest.raises(UserError, match="block_order='edmips' does not exist for mobilenet_v2; use 'pre' or 'post'"):
    build(block_order='edmips')
