"""Layers against naive NumPy convolutions and composed gradients; bit policy; max-pooling against Flax."""

import dataclasses
import functools
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.models.bit_policy import BitPolicy, Rule, check_bits, parse_rules
from cmtkd_jax.models.layers import (
  INITIALIZERS,
  QUANTIZER_STATE,
  Activation,
  Conv,
  Dense,
  LayerFactory,
  MaxPool,
  max_pool,
)
from cmtkd_jax.models.products import values
from cmtkd_jax.quantizers import Quantized

FULL = BitPolicy(32, 32)
WEIGHT_STEP = (1.595769, 0.995687, 0.586019, 0.335201, 0.188139, 0.104063, 0.056868, 0.030762)
KEY = jax.random.key(0)

# Compiled without the optimizations that take long: these programs run once.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def naive_convolution(x, kernel, stride, pad):
  """[B, H, W, C] by [k, k, C, F], one output position at a time, in float64."""
  x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  k = kernel.shape[0]
  height, width = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
  y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
  for i in range(height):
    for j in range(width):
      patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
      y[:, i, j] = np.einsum('bhwc,hwcf->bf', patch, kernel)
  return y


def nearest_mid_rise(w, bits):
  """HWGQ weights by search among the levels s (k - (2^b - 1) / 2)."""
  w = np.asarray(w, np.float64)
  levels = WEIGHT_STEP[bits - 1] * w.std(ddof=1) * (np.arange(2**bits) - (2**bits - 1) / 2)
  return levels[np.abs(w[..., None] - levels).argmin(-1)]


@pytest.mark.parametrize(
  'kernel, stride, padding, size',
  [
    (3, 1, None, 5),
    (3, 2, None, 6),
    (1, 2, None, 5),
    (5, 2, 2, 7),
    (2, 1, 0, 4),
    (3, 2, 0, 8),
  ],
)
def test_convolution_by_naive_numpy(kernel, stride, padding, size):
  for policy in (FULL, BitPolicy(2, 2)):
    conv = Conv(4, kernel, policy, stride, padding)
    x = normal(0, 2, size, size, 3)
    y, variables = jit(lambda x, conv=conv: conv.init_with_output(KEY, x, False))(x)
    w = variables['params']['kernel']
    assert w.shape == (kernel, kernel, 3, 4) and w.dtype == jnp.float32
    assert set(variables) == set(['params']) and set(variables['params']) == {'kernel'}  # no bias, no state
    pad = (kernel - 1) // 2 if padding is None else padding
    expected = naive_convolution(x, np.asarray(w) if policy is FULL else nearest_mid_rise(w, 2), stride, pad)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def pull_back(function, *arguments):
  """Returns the gradients of `function` in all arguments but the last, which is the cotangent."""
  return jit(lambda *a: jax.vjp(function, *a[:-1])[1](a[-1]))(*arguments)


def composed_gradient(x, quantized_kernel, stride, pad, g):
  """Gradients (x, kernel) of a plain convolution at a kernel that is already quantized."""
  convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return pull_back(convolve, x, np.asarray(quantized_kernel, np.float32), g)


@pytest.mark.parametrize('bits', range(1, 9))
def test_convolution_gradient(bits):
  """Not zero at any width, but that of a convolution with the quantized kernel, passed through unchanged."""
  x, conv = normal(0, 2, 5, 5, 3), Conv(4, 3, BitPolicy(bits, 2), 2)
  w, g = 0.2 * normal(bits, 3, 3, 3, 4), normal(9, 2, 3, 3, 4)
  dx, dw = pull_back(lambda x, w: conv.apply({'params': {'kernel': w}}, x, True), x, w, g)
  dx_expected, dw_expected = composed_gradient(x, nearest_mid_rise(w, bits), 2, 1, g)
  assert (np.asarray(dw) != 0).all()
  np.testing.assert_allclose(dw, dw_expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dx, dx_expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('groups', [2, 4])
def test_convolution_in_groups(groups):
  """With one scale per channel: value and gradients are those of one convolution per group, at the quantized kernel."""
  policy = BitPolicy(3, 2, quantizer='lsq', weight_options=(('per_channel', True),))
  conv = Conv(4, 3, policy, 2, groups=groups)
  step = np.float32([0.1, 0.2, 0.15, 0.3])
  w, g = 0.3 * normal(1, 3, 3, 4 // groups, 4), normal(9, 2, 3, 3, 4)
  codes = np.random.default_rng(0).integers(0, 4, (2, 5, 5, 4)).astype(np.float32)
  apply = lambda x, w: conv.apply(
    {'params': {'kernel': w, 'weight_quantizer': {'step': step}}},
    Quantized(x, jax.lax.stop_gradient(jnp.float32(codes)), jnp.float32(0.25)),
    True,
  )
  x, quantized = 0.25 * codes, step * np.round(np.clip(w / step, -4, 3))
  parts = list(zip(*(np.split(array, groups, -1) for array in (x, quantized, g)), strict=True))
  y = jit(apply)(x, w)
  wanted = np.concatenate([naive_convolution(x, np.float32(kernel), 2, 1) for x, kernel, _ in parts], -1)
  np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
  dx, dw = pull_back(apply, x, w, g)
  dx_parts, dw_parts = zip(*(composed_gradient(x, kernel, 2, 1, g) for x, kernel, g in parts), strict=True)
  np.testing.assert_allclose(dx, np.concatenate(dx_parts, -1), rtol=1e-4, atol=1e-5)
  inside = (w / step > -4) & (w / step < 3)
  np.testing.assert_allclose(dw, np.where(inside, np.concatenate(dw_parts, -1), 0), rtol=1e-4, atol=1e-5)


def test_kernels_in_groups_start_as_in_pytorch():
  """kaiming_normal_ counts fan-in within a group, 9 * 2, and fan-out over all features, 9 * 64."""
  x = jnp.zeros((1, 4, 4, 64))
  for name, fan in (('he_fan_out', 9 * 64), ('ctkd', 9 * 2)):
    conv = Conv(64, 3, FULL, initializers=INITIALIZERS[name], groups=32)
    kernel = conv.init(KEY, x, False)['params']['kernel']
    assert kernel.shape == (3, 3, 2, 64)
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / fan), rtol=0.1)
  with pytest.raises(UserError, match='groups=3 do not divide 64 channels and 6 features; choose a divisor of both'):
    Conv(6, 3, FULL, groups=3).init(KEY, x, False)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_convolution_gradient_with_learned_step(bits):
  x, conv = normal(0, 2, 5, 5, 3), Conv(4, 3, BitPolicy(bits, 2, quantizer='lsq'), 2)
  w, g, step = 0.2 * normal(bits, 3, 3, 3, 4), normal(9, 2, 3, 3, 4), 0.6 / 2**bits
  apply = lambda x, w, s: conv.apply({'params': {'kernel': w, 'weight_quantizer': {'step': s}}}, x, True)
  dx, dw, ds = pull_back(apply, x, w, np.float32(step), g)
  if bits == 1:
    level = np.where(w >= 0, 1, -1)
    inside, zone, top = True, level, 1
  else:
    low, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    grid = np.arange(low, top + 1)
    level = grid[np.abs(w[..., None] / step - grid).argmin(-1)]
    inside = (w / step > low) & (w / step < top)
    zone = np.where(inside, level - w / step, level)
  dx_expected, through = composed_gradient(x, step * level, 2, 1, g)
  assert (np.asarray(dw) != 0).any() and ds != 0
  np.testing.assert_allclose(dw, through * inside, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dx, dx_expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(ds, (through * zone).sum() / np.sqrt(108 * top), rtol=1e-3, atol=1e-5)


def test_dense():
  """The last layer keeps full precision and has a bias; a hidden one is quantized and has none."""
  x = normal(0, 3, 6)
  last, hidden = Dense(5, BitPolicy(2, 2), role='last'), Dense(5, BitPolicy(2, 2))
  params = jit(lambda x: last.init(KEY, x, False))(x)['params']
  assert set(params) == {'kernel', 'bias'} and not params['bias'].any()
  assert np.abs(params['kernel']).max() <= 1 / np.sqrt(6)
  params['bias'] = jnp.arange(5.0)
  expected = x @ np.asarray(params['kernel']) + np.arange(5)
  np.testing.assert_allclose(last.apply({'params': params}, x, False), expected, rtol=1e-5)
  params = jit(lambda x: hidden.init(KEY, x, False))(x)['params']
  assert set(params) == {'kernel'}
  expected = x @ nearest_mid_rise(params['kernel'], 2)
  np.testing.assert_allclose(hidden.apply({'params': params}, x, False), expected, rtol=1e-4, atol=1e-5)


def test_activation():
  """32 bits are a ReLU; 2 bits are HWGQ's four levels."""
  x = np.float32([[-1, -0.0, 0.2, 0.3, 1.0, 9.0]])
  relu, quantized = Activation(BitPolicy(2, 32)), Activation(BitPolicy(32, 2))
  assert relu.init(KEY, x, False) == quantized.init(KEY, x, False) == {}
  np.testing.assert_array_equal(relu.apply({}, x, True), np.maximum(x, 0))
  expected = 0.538 * np.float32([[0, 0, 0, 1, 2, 3]])
  np.testing.assert_allclose(values(quantized.apply({}, x, True)), expected, rtol=1e-6)


# Which layer gets which bits.


def test_bits_by_role():
  roles = ('body', 'first', 'last', 'shortcut')
  bits = lambda policy: [policy.resolve_weight_bits('net/x', role) for role in roles]
  assert bits(BitPolicy(2, 4)) == [2, 32, 32, 2]
  assert bits(BitPolicy(2, 4, first_last_bits=8)) == [2, 8, 8, 2]
  assert bits(BitPolicy(2, 4, quantize_shortcuts=False)) == [2, 32, 32, 32]
  assert bits(BitPolicy(32, 32, first_last_bits=8)) == [32, 32, 32, 32]  # a full-precision network has none
  assert BitPolicy(2, 4).resolve_activation_bits('net/x') == 4
  policy = BitPolicy(2, 4, first_last_bits=8)
  assert policy.weight_quantizer('net/x', 'first').bits == 8
  assert policy.weight_quantizer('net/x', 'body').bits == 2
  assert policy.activation_quantizer('net/x').bits == 4
  assert BitPolicy(2, 4).weight_quantizer('net/x', 'last') is None


def test_rules_match_whole_paths_and_the_first_wins():
  policy = BitPolicy(
    2,
    2,
    first_last_bits=8,
    quantize_shortcuts=False,
    rules=parse_rules(
      [('student/stage1/block1/conv1', 5, 6), ('student/stage1/.*', 3, 4), ('stage2', 7, 7), ('.*/stage3/.*', 32, 32)]
    ),
  )
  weight, activation = policy.resolve_weight_bits, policy.resolve_activation_bits
  assert weight('student/stage1/block1/conv1', 'body') == 5  # not the wider rule after it
  assert weight('student/stage1/block1/conv10', 'body') == 3
  assert weight('student/stage1/stem/conv', 'first') == 3  # a rule comes before the role
  assert weight('student/stage1/block1/shortcut', 'shortcut') == 3
  assert weight('teacher/student/stage1/block1/conv1', 'body') == 2  # no match inside a longer path
  assert weight('student/stage2/block1/conv1', 'body') == 2
  assert weight('a/stage3/b', 'last') == activation('a/stage3/b') == 32
  assert activation('student/stage1/block1/conv1') == 6 and activation('student/stage1/norm') == 4
  assert policy.activation_quantizer('a/stage3/b') is None
  assert policy.weight_quantizer('student/stage1/block1/conv1', 'body').bits == 5


@pytest.mark.parametrize('rule', [('(', 2, 2), ('a', 2), ('a', 9, 2), ('a', 2, 0), ('a', True, 2), 5, (3, 2, 2)])
def test_bad_rules_are_refused(rule):
  with pytest.raises(UserError, match='config.bits.rules'):
    parse_rules([rule])


def test_bits_that_do_not_exist_are_refused():
  for bits in (*range(1, 9), 32):
    check_bits(bits, 'x')
  for bits in (0, 9, 16, 33, -1, True, None, '2'):
    with pytest.raises(UserError, match='config.here.* 1, 2, 3, 4, 5, 6, 7, 8, 32'):
      check_bits(bits, 'config.here')


class TwoStages(nn.Module):
  """Layers under the paths stage1/conv1, stage1/activation1, ..: as a backbone nests them."""

  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    for k in (1, 2):
      x = Nested(self.layers, name=f'stage{k}')(x, train)
    return x


class Nested(nn.Module):
  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    x = self.layers.conv(3, 3, name='conv1')(x, train)
    return self.layers.activation(name='activation1')(x, train)


def test_rules_see_the_modules_path():
  policy = BitPolicy(2, 2, rules=(Rule('stage2/conv1', 32, 32), Rule('stage2/activation1', 8, 32)))
  net, x = TwoStages(LayerFactory(policy)), normal(0, 2, 4, 4, 3)
  variables = net.init(KEY, x, False)
  _, captured = net.apply(variables, x, False, capture_intermediates=True, mutable=['intermediates'])
  stages = captured['intermediates']
  first, second = (np.asarray(values(stages[s]['__call__'][0])) for s in ('stage1', 'stage2'))
  kernels = [np.asarray(variables['params'][s]['conv1']['kernel']) for s in ('stage1', 'stage2')]
  assert set(np.unique(np.rint(first / 0.538))) <= {0, 1, 2, 3}
  np.testing.assert_allclose(first, 0.538 * np.rint(first / 0.538), rtol=1e-5)
  convolved = stages['stage1']['conv1']['__call__'][0]
  expected = naive_convolution(x, nearest_mid_rise(kernels[0], 2), 1, 1)
  np.testing.assert_allclose(convolved, expected, rtol=1e-4, atol=1e-5)
  # Stage 2 has neither: a plain convolution and a ReLU.
  expected = np.maximum(naive_convolution(first, kernels[1], 1, 1), 0)
  np.testing.assert_allclose(second, expected, rtol=1e-4, atol=1e-5)


# Learned and fitted values.


def test_lsq_steps_start_from_the_first_data():
  conv, x = Conv(4, 3, BitPolicy(3, 2, quantizer='lsq')), normal(0, 2, 5, 5, 3)
  params = conv.init(KEY, x, False)['params']
  assert set(params) == {'kernel', 'weight_quantizer'} and set(params['weight_quantizer']) == {'step'}
  step = params['weight_quantizer']['step']
  assert step.shape == () and step.dtype == jnp.float32
  np.testing.assert_allclose(step, 2 * np.abs(params['kernel']).mean() / np.sqrt(3), rtol=1e-5)

  per_channel = BitPolicy(3, 2, quantizer='lsq', weight_options=(('per_channel', True),))
  params = Conv(4, 3, per_channel).init(KEY, x, False)['params']
  np.testing.assert_allclose(
    params['weight_quantizer']['step'], 2 * np.abs(params['kernel']).mean((0, 1, 2)) / np.sqrt(3), rtol=1e-5
  )

  activation = Activation(BitPolicy(3, 2, quantizer='lsq'))
  variables = activation.init(KEY, x, False)
  assert set(variables) == {'params'}
  step = variables['params']['activation_quantizer']['step']
  np.testing.assert_allclose(step, 2 * np.maximum(x, 0).mean() / np.sqrt(3), rtol=1e-5)
  # Later data are quantized by the stored step, not by their own.
  level = np.clip(np.rint(5 * x / np.asarray(step)), 0, 3)
  y, changed = activation.apply(variables, 5 * x, True, mutable=True)
  np.testing.assert_allclose(values(y), np.asarray(step) * level, rtol=1e-5)
  assert changed['params']['activation_quantizer']['step'] == step


@pytest.mark.parametrize(
  'name, kernel, classifier, scale',
  [('he_fan_out', 'normal, fan-out', 'uniform, fan-in', None), ('ctkd', 'normal, fan-in', 'normal, fan-in', (0, 1))],
)
@pytest.mark.parametrize('groups', [1, 2])
def test_initializers(name, kernel, classifier, scale, groups):
  """Moments of what each layer starts from: He's deviation is sqrt(2 / fan), the uniform one's sqrt(1 / 3 / fan)."""
  layers = LayerFactory(FULL, bn_groups=groups, initializers=INITIALIZERS[name])
  x = normal(0, 2, 4, 4, 16)
  for layer, shape, kind in (
    (layers.conv(64, 3), (3, 3, 16, 64), kernel),
    (layers.dense(64), (256, 64), kernel),
    (layers.dense(10, role='last'), (256, 10), classifier),
  ):
    found = np.asarray(layer.init(KEY, x, True)['params']['kernel'])
    assert found.shape == shape
    fan = np.prod(shape[:-1]) if kind.endswith('fan-in') else np.prod(shape[:-2]) * shape[-1]
    deviation = np.sqrt(2 / fan) if kind.startswith('normal') else np.sqrt(1 / fan / 3)
    np.testing.assert_allclose(found.std(), deviation, rtol=0.05)
    fourth = 3 if kind.startswith('normal') else 9 / 5
    np.testing.assert_allclose((found**4).mean() / found.var() ** 2, fourth, rtol=0.1)

  class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
      return layers.norm(name='norm')(x, True)

  params = Norm().init(KEY, normal(0, 2, 1, 1, 2000))['params']['norm']
  assert not np.any(params['bias'])
  found = np.asarray(params['scale'])
  if scale is None:
    assert np.all(found == 1)
  else:
    low, high = scale
    assert found.min() >= low and found.max() < high
    np.testing.assert_allclose([found.mean(), found.std()], [0.5, np.sqrt(1 / 12)], rtol=0.05)


@dataclasses.dataclass(frozen=True)
class Toy(quantizers.Quantizer):
  """Scales to the running maximum, learns a gain, and notes the type of all it is given."""

  learned = ('gain',)
  fitted = ('top',)

  def init(self, x):
    return {'gain': jnp.float32(1), 'top': jnp.max(jnp.abs(x))}

  def quantize(self, x, parameters):
    return quantizers.QTensor(jnp.zeros(x.shape, jnp.int32), parameters['gain'], levels=jnp.zeros(1))

  def fake_quantize(self, x, parameters):
    TOY_TYPES.extend([x.dtype, parameters['top'].dtype, parameters['gain'].dtype])
    return parameters['gain'] * x / parameters['top']

  def update(self, x, parameters):
    TOY_TYPES.append(x.dtype)
    return {'top': 0.75 * parameters['top'] + 0.25 * jnp.max(jnp.abs(x))}


TOY_TYPES = []


@pytest.fixture
def toy(monkeypatch):
  """Registers `Toy`; yields the types it has seen."""
  monkeypatch.setitem(quantizers.QUANTIZERS, 'toy', types.SimpleNamespace(Weight=Toy, Activation=Toy))
  TOY_TYPES.clear()
  return TOY_TYPES


def test_fitted_values_follow_training_only(toy):
  del toy
  activation, x = Activation(BitPolicy(2, 2, quantizer='toy')), np.float32([[1, -4, 2]])
  variables = activation.init(KEY, x, True)
  assert variables == {
    'params': {'activation_quantizer': {'gain': 1}},
    QUANTIZER_STATE: {'activation_quantizer': {'top': 4}},
  }  # not yet updated
  assert QUANTIZER_STATE == 'quantizer_state'

  y, changed = activation.apply(variables, 2 * x, True, mutable=[QUANTIZER_STATE])
  np.testing.assert_allclose(values(y), 2 * x / 4)  # the value before this step's update
  assert changed[QUANTIZER_STATE]['activation_quantizer']['top'] == 5  # 3/4 of 4 and 1/4 of 8
  y, changed = activation.apply(variables | changed, 2 * x, False, mutable=[QUANTIZER_STATE])
  np.testing.assert_allclose(values(y), 2 * x / 5)
  assert changed[QUANTIZER_STATE]['activation_quantizer']['top'] == 5
  activation.apply(variables, x, False)  # evaluation needs nothing mutable


def test_fitted_values_of_weights(toy):
  del toy
  conv, x = Conv(4, 3, BitPolicy(2, 2, quantizer='toy')), normal(0, 1, 4, 4, 2)
  variables = conv.init(KEY, x, True)
  top = np.abs(variables['params']['kernel']).max()
  assert variables[QUANTIZER_STATE] == {'weight_quantizer': {'top': top}}
  doubled = variables | {'params': jax.tree.map(lambda p: 2 * p, variables['params'])}
  for train, expected in ((True, 1.25 * top), (False, top)):
    _, changed = conv.apply(doubled, x, train, mutable=[QUANTIZER_STATE])
    np.testing.assert_allclose(changed[QUANTIZER_STATE]['weight_quantizer']['top'], expected, rtol=1e-6)


def test_bfloat16_keeps_parameters_and_quantizers_in_float32(toy):
  layers = LayerFactory(BitPolicy(2, 2, quantizer='toy'), dtype=jnp.bfloat16)
  x = jnp.asarray(normal(0, 2, 4, 4, 3), jnp.bfloat16)
  for layer, data in ((layers.conv(4, 3), x), (layers.dense(4), x[:, 0, 0]), (layers.activation(), x)):
    variables = layer.init(KEY, data, True)
    y, changed = layer.apply(variables, data, True, mutable=[QUANTIZER_STATE])
    assert {v.dtype for v in jax.tree.leaves((variables, changed))} == {jnp.dtype('float32')}
    assert values(y).dtype == (jnp.float32 if isinstance(layer, Activation) else jnp.bfloat16)
    loss = lambda v, layer=layer, data=data: values(layer.apply(v, data, False)).astype(jnp.float32).sum()
    gradient = jax.eval_shape(jax.grad(loss), variables)
    assert {v.dtype for v in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}
  assert len(toy) > 9 and set(toy) == {jnp.dtype('float32')}
  y, variables = jit(lambda x: layers.norm().init_with_output(KEY, x, True))(x)
  assert {v.dtype for v in jax.tree.leaves((y, variables))} == {jnp.dtype('float32')}


def test_bfloat16_convolution_rounds_the_quantized_kernel():
  """The kernel is quantized in float32 and only then rounded for the product."""
  x, policy = normal(0, 2, 4, 4, 3), BitPolicy(2, 2)
  params = Conv(4, 3, policy).init(KEY, x, False)
  y = Conv(4, 3, policy, dtype=jnp.bfloat16).apply(params, x, False)
  kernel = jnp.asarray(nearest_mid_rise(params['params']['kernel'], 2), jnp.bfloat16)
  expected = naive_convolution(jnp.asarray(x, jnp.bfloat16), np.asarray(kernel, np.float64), 1, 1)
  np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2e-2, atol=2e-2)


# Max-pooling.

POOLS = [(3, 2, 1), (2, 2, 0), (3, 2, 0)]


def flax_max_pool(x, window, stride, padding):
  return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding), (padding, padding)))


@pytest.mark.parametrize('window, stride, padding', POOLS)
@pytest.mark.parametrize('height, width', [(8, 8), (7, 9)])
def test_max_pool_equals_flax_on_ties(window, stride, padding, height, width):
  """Quantized maps are full of ties: values and gradients are those of Flax exactly."""
  x = jnp.round(2 * normal(window, 2, height, width, 3)).clip(-1, 1) * np.float32(0.538)
  views = np.lib.stride_tricks.sliding_window_view(np.asarray(x), (2, 2), (1, 2))
  assert (np.sort(views.reshape(-1, 4))[:, -1] == np.sort(views.reshape(-1, 4))[:, -2]).mean() > 0.3
  ours = lambda x: max_pool(x, window, stride, padding)
  theirs = lambda x: flax_max_pool(x, window, stride, padding)
  y = jit(ours)(x)
  np.testing.assert_array_equal(y, jit(theirs)(x))
  g = normal(1, *y.shape)
  np.testing.assert_array_equal(pull_back(ours, x, g)[0], pull_back(theirs, x, g)[0])


def test_max_pool_by_hand():
  """The first of two equal maxima, in row-major order, takes the gradient."""
  x = jnp.float32([[1, 3, 0, 0], [3, 2, 0, 5]])[None, :, :, None]
  np.testing.assert_array_equal(max_pool(x, 2, 2)[0, :, :, 0], [[3, 5]])
  gradient = pull_back(lambda x: max_pool(x, 2, 2), x, np.float32([[7, 9]])[None, :, :, None])[0]
  np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 7, 0, 0], [0, 0, 0, 9]])


@pytest.mark.parametrize('scale', [0.3, -0.3, 0.0, [0.7, -0.2]])
def test_a_maximum_stays_on_its_grid(scale):
  """Value and level are those of the greatest value, also where a learned scale has become negative."""
  level = np.random.default_rng(0).integers(-3, 4, (2, 7, 7, 2)).astype(np.float32) + np.float32(0.5)
  scale = np.broadcast_to(np.float32(scale), (1, 1, 1, 2)) if np.ndim(scale) else np.float32(scale)
  x = Quantized(jnp.asarray(scale * level), jnp.asarray(level), jnp.asarray(scale))
  pool = MaxPool(3, 2, padding=1)
  y = pool.apply({}, x)
  np.testing.assert_array_equal(y.value, max_pool(scale * level, 3, 2, 1))
  np.testing.assert_array_equal(y.value, y.scale * y.level)
  assert np.isin(y.level, level).all() and y.level.shape == (2, 4, 4, 2)
  g = normal(1, *y.shape)
  of_value = lambda value: pool.apply({}, dataclasses.replace(x, value=value)).value
  expected = pull_back(lambda x: max_pool(x, 3, 2, 1), x.value, g)[0]
  np.testing.assert_array_equal(pull_back(of_value, x.value, g)[0], expected)


def test_a_maximum_of_what_has_no_levels_or_is_not_a_number():
  x = jnp.asarray(normal(0, 1, 4, 4, 2))
  y = MaxPool(2, 2).apply({}, Quantized(x))
  np.testing.assert_array_equal(y.value, max_pool(x, 2, 2))
  assert y.level is None and y.scale is None
  level = jnp.round(x).at[0, 1, 1, 0].set(jnp.nan)
  y = MaxPool(2, 2).apply({}, Quantized(2 * level, level, jnp.float32(2)))
  np.testing.assert_array_equal(np.isnan(y.value), np.isnan(y.level))
  assert np.argwhere(np.isnan(y.level)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize('window, stride, padding', POOLS)
def test_max_pool_has_no_scatter(window, stride, padding):
  def programs(pool):
    gradient = jax.jit(jax.grad(lambda x: (pool(x, window, stride, padding) ** 2).sum()))
    lowered = gradient.lower(jnp.zeros((1, 8, 8, 2)))
    # An operation's call, not the name of this test among the source locations.
    return re.findall(r'[\w.-]*scatter"?\(', lowered.as_text() + lowered.compile().as_text())

  assert programs(flax_max_pool)  # what the test is able to see
  assert not programs(max_pool)
