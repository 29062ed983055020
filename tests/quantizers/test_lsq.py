"""LSQ against float64 NumPy references, values worked by hand, and finite differences of the step."""

import itertools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.quantizers import base, dequantize, lsq
from tests import compiling

pytestmark = pytest.mark.usefixtures('strict_dtypes')

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
BITS = range(1, 9)
GRIDS = list(itertools.product(BITS, (False, True)))  # bits, signed


def f32(values):
  return jnp.asarray(values, jnp.float32)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same_bits(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.int32), b.view(np.int32))


def reference(v, step, bits, signed):
  """Returns (integer multiples of the step, clear of thresholds, dv_hat/dv, dv_hat/ds) in float64.

  A number is taken to the nearest of the grid's levels by search; 1-bit weights to -1 or +1.
  """
  v, step = np.asarray(v, np.float64), np.asarray(step, np.float64)
  ratio = v / step
  if signed and bits == 1:
    sign = 2.0 * (v >= 0) - 1
    return sign, np.abs(ratio) > 1e-4, np.ones_like(v), sign
  levels = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else np.arange(2**bits)
  distance = np.abs(ratio[..., None] - levels)
  level = levels[distance.argmin(-1)].astype(np.float64)
  clear = np.diff(np.sort(distance, -1)[..., :2], axis=-1)[..., 0] > 2e-4
  inside = (ratio > levels[0]) & (ratio < levels[-1])
  return level, clear, inside.astype(np.float64), np.where(inside, level - ratio, level)


def reference_init(v, bits, signed, per_channel=False):
  v = np.asarray(v, np.float64)
  magnitude = np.abs(v) if signed else np.where(v > 0, v, 0)
  magnitude = magnitude.reshape(-1, v.shape[-1]).mean(0) if per_channel else magnitude.mean()
  top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
  return magnitude if top == 0 else 2 * magnitude / np.sqrt(top)


@pytest.mark.parametrize('weight_bits, activation_bits', list(itertools.product((*BITS, 32), (*BITS, 32))))
def test_every_pair_of_widths(weight_bits, activation_bits):
  """A dense layer under every (weight, activation) width: value, gradients of data and of both steps."""
  policy = BitPolicy(weight_bits, activation_bits, quantizer='lsq')
  weight = policy.weight_quantizer('net/stage1/block1/conv1', 'body')
  activation = policy.activation_quantizer('net/stage1/block1/activation1')
  assert (weight is None, activation is None) == (weight_bits == 32, activation_bits == 32)
  x, w, g = normal(0, 4, 6), 0.3 * normal(1, 6, 5), normal(2, 4, 5)
  # Steps that put values into every zone, whatever the width.
  x_step, w_step = 1.3 / 2 ** min(activation_bits, 8), 0.9 / 2 ** min(weight_bits, 8)

  x_hat, dx_hat, x_zone, w_hat, dw_hat, w_zone = np.maximum(x, 0), x > 0, 0, w, 1, 0
  if activation:
    level, clear, dx_hat, x_zone = reference(x, x_step, activation_bits, False)
    assert clear.all()
    x_hat = x_step * level
  if weight:
    level, clear, dw_hat, w_zone = reference(w, w_step, weight_bits, True)
    assert clear.all()
    w_hat = w_step * level

  def layer(x, w, x_step, w_step):
    x = activation.fake_quantize(x, {'step': x_step}) if activation else jax.nn.relu(x)
    return x @ (weight.fake_quantize(w, {'step': w_step}) if weight else w)

  y, pull_back = jax.vjp(layer, f32(x), f32(w), f32(x_step), f32(w_step))
  dx, dw, dx_step, dw_step = pull_back(f32(g))
  # 6 features of an activation, 30 weights.
  x_scale = 1 / np.sqrt(6 * (2**activation_bits - 1))
  w_scale = 1 / np.sqrt(30 * max(1, 2 ** (weight_bits - 1) - 1))
  np.testing.assert_allclose(y, x_hat @ w_hat, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, (g @ w_hat.T) * dx_hat, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dw, (x_hat.T @ g) * dw_hat, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx_step, x_scale * ((g @ w_hat.T) * x_zone).sum(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dw_step, w_scale * ((x_hat.T @ g) * w_zone).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bits, signed', GRIDS)
def test_values_and_codes(bits, signed):
  v = np.concatenate([2 * normal(bits, 1500), [0, 100, -100]]).astype(np.float32)
  step = np.float32(2.5 / 2**bits)
  level, clear, _, _ = reference(v, step, bits, signed)
  clear |= v == 0
  assert clear.mean() > 0.98
  coded = lsq.quantize(f32(v), f32(step), bits, signed)
  quantized = lsq.fake_quantize(f32(v), f32(step), bits, signed)
  assert coded.codes.dtype == jnp.int32 and coded.scale.dtype == quantized.dtype == jnp.float32
  codes = (level + 1) / 2 if signed and bits == 1 else level  # 1-bit weights: -1, 1 are the codes 0, 1
  np.testing.assert_array_equal(np.asarray(coded.codes)[clear], codes[clear])
  np.testing.assert_allclose(np.asarray(quantized)[clear], step * level[clear], rtol=1e-6)


def test_signed_by_hand():
  """2 bits, s = 1/2: v/s = -4, -1.6, -0.6, 0, 0.4, 0.6, 0.8, 6; grid -2..1; half goes to even."""
  v, s = f32([-2, -0.8, -0.3, 0, 0.2, 0.3, 0.4, 3]), f32(0.5)
  np.testing.assert_array_equal(lsq.quantize(v, s, 2, True).codes, [-2, -2, -1, 0, 0, 1, 1, 1])
  np.testing.assert_allclose(lsq.fake_quantize(v, s, 2, True), [-1, -1, -0.5, 0, 0, 0.5, 0.5, 0.5])
  one_at_a_time = jax.vmap(jax.grad(lambda s, v: lsq.fake_quantize(v[None], s, 2, True).sum()), (None, 0))
  np.testing.assert_allclose(one_at_a_time(s, v), [-2, -0.4, -0.4, 0, -0.4, 0.4, 0.2, 1], atol=1e-6)
  np.testing.assert_array_equal(lsq.quantize(f32([0.25, 0.75, -0.25, -0.75]), s, 3, True).codes, [0, 2, 0, -2])


def test_unsigned_by_hand():
  """2 bits, s = 1/2: v/s = -1, 0.4, 0.6, 2.2, 2.8, 3.2; grid 0..3."""
  v, s = f32([-0.5, 0.2, 0.3, 1.1, 1.4, 1.6]), f32(0.5)
  np.testing.assert_array_equal(lsq.quantize(v, s, 2, False).codes, [0, 0, 1, 2, 3, 3])
  one_at_a_time = jax.vmap(jax.grad(lambda s, v: lsq.fake_quantize(v[None], s, 2, False).sum()), (None, 0))
  np.testing.assert_allclose(one_at_a_time(s, v), [0, -0.4, 0.4, -0.2, 0.2, 3], atol=1e-6)


def test_binary_weights_by_hand():
  """sign(0) = 1; every value passes its gradient, the step's is the sign."""
  v, s, g = f32([-3, -1e-6, 0, 1e-6, 0.4]), f32(0.3), f32([1, 2, 4, 8, 16])
  value, pull_back = jax.vjp(lambda v, s: lsq.fake_quantize(v, s, 1, True), v, s)
  dv, ds = pull_back(g)
  np.testing.assert_allclose(value, 0.3 * np.array([-1, -1, 1, 1, 1]), rtol=1e-6)
  np.testing.assert_array_equal(lsq.quantize(v, s, 1, True).codes, [0, 0, 1, 1, 1])
  np.testing.assert_array_equal(dv, g)
  np.testing.assert_allclose(ds, 4 + 8 + 16 - 1 - 2, rtol=1e-6)


@pytest.mark.parametrize('bits, signed', GRIDS)
def test_number_of_levels(bits, signed):
  v, s = f32(np.linspace(-20, 20, 8000)), f32(2.0 ** (1 - bits) * 4)
  codes = np.unique(lsq.quantize(v, s, bits, signed).codes)
  if signed and bits > 1:
    np.testing.assert_array_equal(codes, np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)))
  else:
    np.testing.assert_array_equal(codes, np.arange(2**bits))
  assert len(np.unique(lsq.fake_quantize(v, s, bits, signed))) == 2**bits


@pytest.mark.integration  # compiled as training does
@pytest.mark.parametrize('bits', BITS)
def test_codes_stand_for_the_values(bits):
  """dequantize(quantize(x)) is fake_quantize(x) bit for bit: eager, compiled, and with only the encoder compiled."""
  quantizers = [lsq.Activation(bits), lsq.Weight(bits), lsq.Weight(bits, per_channel=True)]
  x = f32(np.concatenate([normal(0, 500, 6), 0.07 * np.arange(-300, 300)[:, None] * np.ones((1, 6))]))
  parameters = [{'step': f32(0.14)}, {'step': f32(0.2 / 3)}, {'step': f32([0.01, 0.05, 0.1, 0.14, 0.3, 1])}]
  quantize = lambda x, p: [q.quantize(x, p) for q, p in zip(quantizers, p, strict=True)]
  fake_quantize = lambda x, p: [q.fake_quantize(x, p) for q, p in zip(quantizers, p, strict=True)]
  # The encoder on its own and in front of its decoder are different programs, and must not round differently.
  coded_by_jit = compiling.jit(quantize)(x, parameters)
  decoded_by_jit = compiling.jit(lambda x, p: [dequantize(c) for c in quantize(x, p)])(x, parameters)
  for eager, value, compiled, decoded, value_by_jit in zip(
    quantize(x, parameters),
    fake_quantize(x, parameters),
    coded_by_jit,
    decoded_by_jit,
    compiling.jit(fake_quantize)(x, parameters),
    strict=True,
  ):
    assert same_bits(dequantize(eager), value)
    assert same_bits(dequantize(compiled), value_by_jit)
    assert same_bits(decoded, value_by_jit)
    np.testing.assert_array_equal(eager.codes, compiled.codes)
    assert same_bits(value, value_by_jit)


def test_codes_on_thresholds_are_the_same_in_every_program():
  """A division by the step would be a product with its reciprocal in some programs and not in others."""
  compiled = compiling.jit(lambda v, s: lsq.quantize(v, s, 3, False))
  for step in np.random.default_rng(0).uniform(0.01, 1, 50).astype(np.float32):
    v = f32((np.arange(16) + 0.5).repeat(8) * step)
    np.testing.assert_array_equal(compiled(v, f32(step)).codes, lsq.quantize(v, f32(step), 3, False).codes)


@pytest.mark.parametrize('bits, signed', GRIDS)
def test_gradient_masks_and_zones(bits, signed):
  """A step of 1/4 divides exactly, so that the thresholds themselves can be tested."""
  s, eps = 0.25, 1e-4
  low, high = (-(2 ** (bits - 1)) * s, (2 ** (bits - 1) - 1) * s) if signed else (0, (2**bits - 1) * s)
  v = f32([low - 3, low - eps, low, low + eps, s / 2, high - eps, high, high + eps, high + 3, -eps, 0.0, eps])
  g = f32([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])
  value, pull_back = jax.vjp(lambda v, s: lsq.fake_quantize(v, s, bits, signed), v, f32(s))
  dv, ds = pull_back(g)
  assert same_bits(value, lsq.fake_quantize(v, f32(s), bits, signed))
  if signed and bits == 1:
    expected_dv, zones = np.ones(12), np.where(np.asarray(v) >= 0, 1, -1)
  else:
    ratio = np.asarray(v, np.float64) / s
    expected_dv = (ratio * s > low) & (ratio * s < high)
    zones = np.where(ratio <= low / s, low / s, np.where(ratio >= high / s, high / s, np.rint(ratio) - ratio))
  np.testing.assert_array_equal(dv, g * f32(expected_dv))
  np.testing.assert_allclose(ds, (np.asarray(g) * zones).sum(), rtol=1e-5)
  # Of the first nine points, only those strictly inside pass a gradient.
  if bits > 1:
    np.testing.assert_array_equal(np.asarray(dv)[:9] != 0, [0, 0, 0, 1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize('bits, signed', GRIDS)
def test_step_gradient_by_finite_differences(bits, signed):
  """In the clipped zones (1-bit weights: everywhere) v_hat = s * constant is smooth in s."""
  v, s, h = f32([-50.0, -40.0, 45.0, 60.0]), 0.125, 2.0**-7
  g = f32([1, -3, 2, 0.5])
  loss = lambda s: jnp.sum(g * lsq.fake_quantize(v, s, bits, signed))
  measured = (loss(f32(s + h)) - loss(f32(s - h))) / (2 * h)
  assert measured != 0
  np.testing.assert_allclose(jax.grad(loss)(f32(s)), measured, rtol=1e-5)


@pytest.mark.parametrize('bits', BITS)
def test_per_channel_steps(bits):
  """Each channel is quantized by its own step, and its step is moved by its own weights."""
  v, g = normal(0, 3, 3, 4, 5), normal(1, 3, 3, 4, 5)
  step = np.float32([0.1, 0.2, 0.4, 0.7, 1.1]) * 4 / 2**bits
  level, clear, dv_reference, zone = reference(v, step, bits, True)
  assert clear.all()
  quantizer = lsq.Weight(bits, per_channel=True)
  value, pull_back = jax.vjp(lambda v, s: quantizer.fake_quantize(v, {'step': s}), f32(v), f32(step))
  dv, ds = pull_back(f32(g))
  scale = 1 / np.sqrt(36 * max(1, 2 ** (bits - 1) - 1))  # 3 * 3 * 4 weights share a step
  np.testing.assert_allclose(value, level * step, rtol=1e-6)
  np.testing.assert_array_equal(dv, g * dv_reference.astype(np.float32))
  np.testing.assert_allclose(ds, scale * (g * zone).sum((0, 1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bits', BITS)
def test_gradient_scale(bits):
  x, w = f32(normal(0, 4, 2, 3, 5)), f32(normal(1, 3, 3, 2, 5))
  q_p, signed_q_p = 2**bits - 1, max(1, 2 ** (bits - 1) - 1)
  cases = [
    (lsq.Activation(bits), x, f32(0.3), False, 30 * q_p),  # 2 * 3 * 5 features of one example
    (lsq.Activation(bits, count='batch'), x, f32(0.3), False, 120 * q_p),
    (lsq.Weight(bits), w, f32(0.3), True, 90 * signed_q_p),
    (lsq.Weight(bits, per_channel=True), w, f32([0.3] * 5), True, 18 * signed_q_p),
  ]
  for quantizer, v, step, signed, count in cases:
    raw = jax.grad(lambda s: lsq.fake_quantize(v, s, bits, signed).sum())(step)
    scaled = jax.grad(lambda s: quantizer.fake_quantize(v, {'step': s}).sum())(step)
    assert np.abs(raw).min() > 1e-3
    np.testing.assert_allclose(scaled, raw / math.sqrt(count), rtol=1e-5)


@pytest.mark.parametrize('bits', BITS)
def test_init(bits):
  x, w = normal(0, 4, 2, 3, 5), 0.1 * normal(1, 3, 3, 2, 5)
  for quantizer, v, expected in [
    (lsq.Activation(bits), x, reference_init(x, bits, False)),
    (lsq.Weight(bits), w, reference_init(w, bits, True)),
    (lsq.Weight(bits, per_channel=True), w, reference_init(w, bits, True, per_channel=True)),
  ]:
    step = quantizer.init(f32(v))['step']
    assert step.dtype == jnp.float32 and step.shape == np.shape(expected)
    np.testing.assert_allclose(step, expected, rtol=1e-5)


def test_init_by_hand():
  v = f32([-1, 2, -3, 4])
  np.testing.assert_allclose(lsq.Weight(3).init(v)['step'], 2.886751, rtol=1e-6)  # 2 * 2.5 / sqrt(3)
  np.testing.assert_allclose(lsq.Weight(1).init(v)['step'], 2.5, rtol=1e-6)
  np.testing.assert_allclose(lsq.Activation(3).init(v)['step'], 1.133893, rtol=1e-6)  # 2 * 1.5 / sqrt(7)
  np.testing.assert_allclose(lsq.Activation(1).init(v)['step'], 3, rtol=1e-6)


def test_bounds():
  assert [lsq.bounds(b, True) for b in (1, 2, 3, 8)] == [(1, 0), (2, 1), (4, 3), (128, 127)]
  assert [lsq.bounds(b, False) for b in (1, 2, 3, 8)] == [(0, 1), (0, 3), (0, 7), (0, 255)]
  assert lsq.Weight(2).learned == lsq.Activation(2).learned == ('step',)


@pytest.mark.parametrize('bits, signed', GRIDS)
def test_a_step_of_zero_comes_back(bits, signed):
  """It quantizes to finite values, receives a gradient, and training brings it back."""
  v = f32(np.abs(normal(0, 64)) + 0.5)
  loss = jax.value_and_grad(lambda s: jnp.mean((lsq.fake_quantize(v, s, bits, signed) - v) ** 2))
  quantized = np.asarray(lsq.fake_quantize(v, f32(0), bits, signed))
  assert np.isfinite(quantized).all() and np.abs(quantized).max() < 1e-3
  # Every value is above the grid, so that d/ds is Q_P each: 2 mean((s Q_P - v) Q_P), with s all but 0.
  q_p = max(1, lsq.bounds(bits, signed)[1])
  before, gradient = loss(f32(0))
  np.testing.assert_allclose(gradient, -2 * q_p * np.mean(v), rtol=1e-3)
  rate = -0.5 / q_p / gradient  # of one step of descent back into the usable range
  after, gradient = loss(-rate * gradient)
  assert rate > 0 and after < before and gradient != 0


@pytest.mark.parametrize('bits, signed', GRIDS)
def test_a_step_below_zero_counts_by_its_magnitude(bits, signed):
  """It must not shrink the layer: values, codes and gradients are those of -s, the step's own with the other sign."""
  v, g, s = f32(normal(0, 5, 4)), f32(normal(1, 5, 4)), f32([-0.5, 0.5, -2e-6, -1e-9])
  results = []
  for step in (s, jnp.maximum(jnp.abs(s), base.SMALLEST)):
    coded = lsq.quantize(v, step, bits, signed)
    value, pull_back = jax.vjp(lambda v, step: lsq.fake_quantize(v, step, bits, signed), v, step)
    results.append((coded.codes, coded.scale, value, *pull_back(g)))
  *ours, ds = results[0]
  *theirs, wanted = results[1]
  for found, expected in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(ds, wanted * np.array([-1, 1, -1, -1], np.float32))


def test_nan_is_not_hidden():
  """Codes have no NaN; values keep it, so that a network that has diverged shows it in its loss."""
  v = f32([np.nan, 1, np.nan, -2])
  for bits, signed in GRIDS:
    np.testing.assert_array_equal(np.isnan(lsq.fake_quantize(v, f32(0.5), bits, signed)), np.isnan(v))
    assert np.isnan(lsq.fake_quantize(v, f32(np.nan), bits, signed)).all()


DEGENERATE = {
  'zero': np.zeros((3, 3, 2, 4)),
  'constant': np.full((3, 3, 2, 4), 0.7),
  'negative constant': np.full((3, 3, 2, 4), -0.7),  # nothing of it reaches an unsigned quantizer
  'skewed': np.exp(4 * normal(0, 3, 3, 2, 4)),
  'skewed down': -np.exp(4 * normal(0, 3, 3, 2, 4)),
  'tiny': 1e-20 * normal(0, 3, 3, 2, 4),
  'one channel zero': normal(0, 3, 3, 2, 4) * np.array([1, 0, 1, 1]),
  'one weight per channel': normal(0, 1, 1, 1, 4),
}


@pytest.mark.parametrize('name', DEGENERATE)
def test_degenerate_input_stays_finite(name):
  x = f32(DEGENERATE[name])
  for bits in (1, 2, 8):
    for quantizer in (lsq.Activation(bits), lsq.Weight(bits), lsq.Weight(bits, per_channel=True)):
      step = quantizer.init(x)['step']
      assert np.isfinite(step).all() and (np.asarray(step) >= base.SMALLEST).all()
      value, pull_back = jax.vjp(lambda x, s: quantizer.fake_quantize(x, {'step': s}), x, step)
      dx, ds = pull_back(jnp.ones_like(x))
      assert np.isfinite(value).all() and np.isfinite(dx).all() and np.isfinite(ds).all()


def test_a_step_may_be_a_number_of_python():
  gradients = jax.grad(lambda v, s: lsq.fake_quantize(v, s, 2, True), (0, 1))
  np.testing.assert_allclose(gradients(f32(0.4), 0.5), (1, 1 - 0.8), rtol=1e-6)
  np.testing.assert_allclose(gradients(f32(0.4), -0.5), (1, 0.8 - 1), rtol=1e-6)


def test_init_step_where_there_is_nothing_to_measure():
  assert lsq.Weight(2).init(f32(np.zeros((3, 4))))['step'] == 1
  assert lsq.Activation(2).init(f32(-np.ones((3, 4))))['step'] == 1
  step = lsq.Weight(2, per_channel=True).init(f32([[0.0, 0.5], [0.0, 0.5]]))['step']
  np.testing.assert_allclose(step, [1, 1], rtol=1e-6)  # by default, and 2 * 0.5 / sqrt(1)
  step = lsq.Weight(2, per_channel=True).init(f32([[0.0, 0.2], [0.0, 0.2]]))['step']
  np.testing.assert_allclose(step, [1, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: lsq.Weight(0), ('lsq.weight', 'bits=0', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: lsq.Weight(32), ('lsq.weight', 'bits=32', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: lsq.Activation(9), ('lsq.activation', 'bits=9', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: lsq.Activation(2, count='all'), ("count='all'", "'features', 'batch'")),
    (lambda: lsq.Weight(2, per_channel=None), ('per_channel=None', 'True or False')),
    (lambda: BitPolicy(2, 16, quantizer='lsq').activation_quantizer('a'), ('bits=16', '1, 2, 3, 4, 5, 6, 7, 8')),
  ],
)
def test_refusals_name_what_is_allowed(make, words):
  with pytest.raises(ValueError) as refusal:
    make()
  assert all(word in str(refusal.value) for word in words), refusal.value


def test_recipes_of_cmtkd_count_the_batch_as_its_authors_did():
  """In every recipe that trains CMT-KD with LSQ, and in the authors' LSQ row; LSQ's own rows follow LSQ's paper."""
  counts = {}
  for path in sorted(CONFIGS.glob('*.py')):
    get_config = runpy.run_path(str(path))['get_config']
    if path.stem.startswith('imagenet_'):
      counts[f'{path.stem}:lsq'] = get_config('lsq')
    if path.stem.startswith('table'):
      config = get_config('')
      counts |= {
        f'{path.stem}:{run}': config_lib.derive(config, changes.to_dict()) for run, changes in config.table.runs.items()
      }
  counts = {
    name: (config.method.name, config.quantizer.lsq.activation.count)
    for name, config in counts.items()
    if 'lsq' in (config.quantizer.name, config.quantizer.weights, config.quantizer.activations)
  }
  assert counts == {
    'imagenet_alexnet:lsq': ('cmtkd', 'batch'),
    'imagenet_resnet18:lsq': ('cmtkd', 'batch'),
    'imagenet_resnet50:lsq': ('cmtkd', 'batch'),
    'table5_imagenet:cmtkd_lsq': ('cmtkd', 'batch'),
    'table5_imagenet:lsq': ('single', 'batch'),
    'table5_imagenet:kd_lsq': ('kd', 'features'),
  }
  assert lsq.Activation(2).count == 'features'
