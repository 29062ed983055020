"""HWGQ against float64 NumPy references (levels by search, not by formula) and values worked by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.quantizers import dequantize, hwgq
from tests import compiling

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BITS = range(1, 9)
SCHEMES = ('nearest', 'zero_threshold')
STEPS = ('published', 'optimal')
WEIGHT_OPTIONS = list(itertools.product((False, True), ('std', 'mean_abs')))  # per_channel, binary_scale

# The published table, and the minimizers of E (x - q(x))^2 with that error (activations: over x > 0 only).
PUBLISHED_STEP = (0.799, 0.538, 0.3217, 0.185)
WEIGHT_STEP = (1.595769, 0.995687, 0.586019, 0.335201, 0.188139, 0.104063, 0.056868, 0.030762)
WEIGHT_ERROR = (0.363380, 0.118846, 0.037440, 0.011543, 0.003495, 0.001040, 0.000304, 0.0000877)
OPTIMAL_STEP = {
  'nearest': (1.224006, 0.650770, 0.353411, 0.193249, 0.105488, 0.057261, 0.030870, 0.016528),
  'zero_threshold': (0.797885, 0.538812, 0.321729, 0.184243, 0.102984, 0.056584, 0.030691, 0.016482),
}
OPTIMAL_ERROR = {
  'nearest': (0.095087, 0.023430, 0.006445, 0.001847, 0.000535, 0.000154, 0.0000442, 0.0000125),
  'zero_threshold': (0.181690, 0.043221, 0.010203, 0.002513, 0.000647, 0.000173, 0.0000471, 0.0000130),
}


def f32(values):
  return jnp.asarray(values, jnp.float32)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same_bits(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.int32), b.view(np.int32))


def weight_quantizers(bits):
  """Returns one quantizer for each combination of options; `binary_scale` matters at 1 bit only."""
  options = [(c, s) for c, s in WEIGHT_OPTIONS if s == 'std' or bits == 1]
  return [hwgq.Weight(bits, per_channel=c, binary_scale=s) for c, s in options]


def step_of(bits, scheme, step):
  if step == 'published' and bits <= 4:
    return PUBLISHED_STEP[bits - 1]
  # Beyond the published table both take the computed values.
  return OPTIMAL_STEP[scheme][bits - 1]


def search(x, thresholds, step):
  """Returns the number of thresholds below each x, and which x lie clear of every threshold."""
  x, thresholds = np.asarray(x, np.float64), np.asarray(thresholds, np.float64)
  above = np.searchsorted(thresholds, x, side='left')
  padded = np.concatenate([[-np.inf], thresholds, [np.inf]])
  return above, np.minimum(x - padded[above], padded[above + 1] - x) > 1e-4 * step


def reference_activation(x, bits, scheme='nearest', step='published'):
  """Returns (codes, values, clear of thresholds); thresholds at D/2 (or 0), 3D/2, .., (n - 1/2) D."""
  d = step_of(bits, scheme, step)
  thresholds = (np.arange(2**bits - 1) + 0.5) * d
  if scheme == 'zero_threshold':
    thresholds[0] = 0
  codes, clear = search(x, thresholds, d)
  return codes, codes * d, clear


def reference_scale(w, bits, per_channel=False, binary_scale='std'):
  w = np.asarray(w, np.float64)
  w = w.reshape(-1, w.shape[-1]) if per_channel else w.reshape(-1, 1)
  if bits == 1 and binary_scale == 'mean_abs':
    scale = 2 * np.abs(w).sum(0) / w.shape[0]
  else:
    centered = w - w.sum(0) / w.shape[0]
    scale = WEIGHT_STEP[bits - 1] * np.sqrt((centered**2).sum(0) / (w.shape[0] - 1))
  return scale if per_channel else scale[0]


def reference_weight(w, bits, per_channel=False, binary_scale='std'):
  """Returns (codes, values, clear): levels +-s/2, +-3s/2, .., thresholds at the multiples of s."""
  s = reference_scale(w, bits, per_channel, binary_scale)
  half = 2 ** (bits - 1)
  codes, clear = search(np.asarray(w, np.float64) / s, np.arange(1 - half, half), 1)
  return codes, s * (codes - half + 0.5), clear


@pytest.mark.parametrize('weight_bits, activation_bits', list(itertools.product((*BITS, 32), (*BITS, 32))))
def test_every_pair_of_widths(weight_bits, activation_bits):
  """A dense layer under every (weight, activation) width: value and both straight-through gradients."""
  policy = BitPolicy(weight_bits, activation_bits, quantizer='hwgq')
  weight = policy.weight_quantizer('net/stage1/block1/conv1', 'body')
  activation = policy.activation_quantizer('net/stage1/block1/activation1')
  assert (weight is None, activation is None) == (weight_bits == 32, activation_bits == 32)
  x, w, g = normal(0, 4, 6), 0.3 * normal(1, 6, 5), normal(2, 4, 5)

  x_hat, w_hat, passes = np.maximum(x, 0), w, x > 0
  if activation:
    _, x_hat, clear = reference_activation(x, activation_bits)
    assert clear.all()
    passes = (x >= 0) & (x <= (2**activation_bits - 1) * step_of(activation_bits, 'nearest', 'published'))
  if weight:
    _, w_hat, clear = reference_weight(w, weight_bits)
    assert clear.all()

  def layer(x, w):
    return (activation.fake_quantize(x) if activation else jax.nn.relu(x)) @ (weight.fake_quantize(w) if weight else w)

  y, pull_back = jax.vjp(layer, f32(x), f32(w))
  dx, dw = pull_back(f32(g))
  np.testing.assert_allclose(y, x_hat @ w_hat, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, (g @ w_hat.T) * passes, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dw, x_hat.T @ g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bits, scheme, step', list(itertools.product(BITS, SCHEMES, STEPS)))
def test_activation_values_and_codes(bits, scheme, step):
  x = np.concatenate([2 * normal(bits, 1500), [0, -0.0, 100, -100]]).astype(np.float32)
  codes, values, clear = reference_activation(x, bits, scheme, step)
  clear |= x == 0  # exact in both schemes
  assert clear.mean() > 0.98
  quantizer = hwgq.Activation(bits, scheme=scheme, step=step)
  coded, quantized = quantizer.quantize(f32(x)), quantizer.fake_quantize(f32(x))
  assert coded.codes.dtype == jnp.int32 and coded.scale.dtype == quantized.dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(coded.codes)[clear], codes[clear])
  np.testing.assert_allclose(np.asarray(quantized)[clear], values[clear], rtol=1e-6)


@pytest.mark.parametrize(
  'scheme, expected',
  [
    # D = 0.538; x / D = -1.86, 0, 0.37, 0.56, 1.49, 1.86, 2.60, 9.3
    ('nearest', [0, 0, 0, 1, 1, 2, 3, 3]),
    # everything positive goes to at least level 1
    ('zero_threshold', [0, 0, 1, 1, 1, 2, 3, 3]),
  ],
)
def test_activation_by_hand(scheme, expected):
  x = f32([-1, 0, 0.2, 0.3, 0.8, 1.0, 1.4, 5.0])
  np.testing.assert_array_equal(hwgq.quantize_activation(x, 2, scheme).codes, expected)
  np.testing.assert_allclose(hwgq.fake_quantize_activation(x, 2, scheme), 0.538 * np.array(expected), rtol=1e-6)


@pytest.mark.parametrize(
  'bits, per_channel, binary_scale', list(itertools.product(BITS, (False, True), ('std', 'mean_abs')))
)
def test_weight_values_and_codes(bits, per_channel, binary_scale):
  w = (normal(bits, 3, 3, 20, 6) + 0.1) * np.float32([0.01, 0.1, 1, 1, 2, 5])
  codes, values, clear = reference_weight(w, bits, per_channel, binary_scale)
  assert clear.mean() > 0.98
  quantizer = hwgq.Weight(bits, per_channel=per_channel, binary_scale=binary_scale)
  coded, quantized = quantizer.quantize(f32(w)), quantizer.fake_quantize(f32(w))
  assert coded.codes.dtype == jnp.int32 and coded.scale.dtype == quantized.dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(coded.codes)[clear], codes[clear])
  np.testing.assert_allclose(np.asarray(quantized)[clear], values[clear], rtol=1e-5)
  # The scale does not depend on where a weight falls, so that it is exact to rounding everywhere.
  scale = np.atleast_1d(reference_scale(w, bits, per_channel, binary_scale))
  np.testing.assert_allclose(coded.scale.reshape(-1), scale, rtol=1e-5)


def test_weight_by_hand():
  # Mean 0, unbiased variance 20/3, s = 0.995687 * 2.581989 = 2.570853; w / s = +-0.389, +-1.167: four levels.
  w = f32([[-3.0], [-1.0], [1.0], [3.0]])
  np.testing.assert_array_equal(hwgq.quantize_weight(w, 2).codes, [[0], [1], [2], [3]])
  expected = 2.570853 * np.array([-1.5, -0.5, 0.5, 1.5])
  np.testing.assert_allclose(hwgq.fake_quantize_weight(w, 2)[:, 0], expected, rtol=1e-6)
  # 1 bit: +-1.595769 / 2 = 0.7978845 std, so 2.060129; or the mean magnitude, 2.
  expected = 2.060129 * np.array([-1, -1, 1, 1])
  np.testing.assert_allclose(hwgq.fake_quantize_weight(w, 1)[:, 0], expected, rtol=1e-6)
  np.testing.assert_allclose(hwgq.fake_quantize_weight(w, 1, False, 'mean_abs')[:, 0], [-2, -2, 2, 2], rtol=1e-6)


def test_weight_scale_is_unbiased():
  # Tensor: mean 2.5, squares 9/4 + 1/4 + 1/4 + 9/4 = 5, std sqrt(5/3). Channels (1, 3), (2, 4): std sqrt(2).
  w = f32([[1, 2], [3, 4]])
  for bits in BITS:
    step = WEIGHT_STEP[bits - 1]
    np.testing.assert_allclose(hwgq.weight_scale(w, bits), step * 1.290994, rtol=1e-6)
    np.testing.assert_allclose(hwgq.weight_scale(w, bits, per_channel=True), [step * 1.414214] * 2, rtol=1e-6)
  # mean_abs: 2 * 2.5, or 2 * 2 and 2 * 3 by channel; read at 1 bit only.
  np.testing.assert_allclose(hwgq.weight_scale(w, 1, False, 'mean_abs'), 5, rtol=1e-6)
  np.testing.assert_allclose(hwgq.weight_scale(w, 1, True, 'mean_abs'), [4, 6], rtol=1e-6)
  assert same_bits(hwgq.weight_scale(w, 2, False, 'mean_abs'), hwgq.weight_scale(w, 2))


@pytest.mark.parametrize('bits', BITS)
def test_number_of_levels(bits):
  """Each grid has 2^b levels, all of them reached; activations have a zero, weights have none."""
  sweep = np.linspace(-1, 12, 6001)
  for scheme, step in itertools.product(SCHEMES, STEPS):
    quantizer = hwgq.Activation(bits, scheme=scheme, step=step)
    np.testing.assert_array_equal(np.unique(quantizer.quantize(f32(sweep)).codes), np.arange(2**bits))
    assert len(np.unique(quantizer.fake_quantize(f32(sweep)))) == 2**bits
  # Many zeros keep the deviation, hence the step, small: the sweep passes the outermost level at 8 bits too.
  w = f32(np.concatenate([np.linspace(-5, 5, 2000), np.zeros(20000)])[:, None])
  for per_channel in (False, True):
    quantizer = hwgq.Weight(bits, per_channel=per_channel)
    coded, quantized = quantizer.quantize(w), np.asarray(quantizer.fake_quantize(w))
    np.testing.assert_array_equal(np.unique(coded.codes), np.arange(2**bits))
    levels = np.unique(quantized)
    assert len(levels) == 2**bits
    np.testing.assert_array_equal(levels, -levels[::-1])
    np.testing.assert_allclose(np.abs(quantized).min(), np.asarray(coded.scale).item() / 2, rtol=1e-6)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_activations_on_thresholds_have_the_codes_of_the_rounded_product(bits):
  """x (1 / D), in float32, whether compiled or not."""
  d, n = hwgq.activation_step(bits, 'zero_threshold'), 2**bits - 1
  near = np.float32((np.arange(1, n + 2) - 0.5) * d)
  x = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1e9)), [0.0, 1e-30, -d]])
  x = np.float32(x)
  wanted = np.where(x > 0, np.clip(np.ceil(np.float64(x * np.float32(1 / d)) - 0.5), 1, n), 0)
  codes = lambda x: hwgq.quantize_activation(x, bits, 'zero_threshold').codes
  np.testing.assert_array_equal(codes(jnp.asarray(x)), wanted)
  np.testing.assert_array_equal(compiling.jit(codes)(x), wanted)


@pytest.mark.parametrize('bits', (2, 3))
def test_weights_on_thresholds_have_the_same_codes_in_every_program(bits):
  """A sum after the product w (1 / s) would be fused with it in some programs, and the codes would differ."""
  compiled = compiling.jit(lambda w: hwgq.quantize_weight(w, bits))
  multiples = np.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1))
  bulk, s = normal(0, 100_000), np.float32(1)
  for _ in range(5):  # the weights near the thresholds change the scale a little
    near = np.float32(multiples[:, None] * s * (1 + np.arange(-40, 41) * 2.0**-25)).ravel()
    coded = compiled(w := np.concatenate([near, bulk])[:, None].astype(np.float32))
    s = np.asarray(coded.scale).item()
  ratio = w * (np.float32(1) / np.float32(s))
  assert np.isclose(ratio, np.round(ratio), rtol=1e-6, atol=1e-8).sum() > 40 * len(multiples)
  half = 2 ** (bits - 1)
  np.testing.assert_array_equal(coded.codes, np.clip(np.ceil(ratio), 1 - half, half) + half - 1)


@pytest.mark.integration  # compiled as training does
@pytest.mark.parametrize('bits', BITS)
def test_codes_stand_for_the_values(bits):
  """dequantize(quantize(x)) is fake_quantize(x) bit for bit: eager, compiled, and with only the encoder compiled."""
  weights = weight_quantizers(bits)
  activations = [hwgq.Activation(bits, scheme=a) for a in SCHEMES]
  quantize = lambda x, w: [q.quantize(x) for q in activations] + [q.quantize(w) for q in weights]
  fake_quantize = lambda x, w: [q.fake_quantize(x) for q in activations] + [q.fake_quantize(w) for q in weights]
  # Thresholds and levels themselves among the points: there the last bit of a division would show.
  d = np.arange(0, 2**8 + 1, 0.5)[:, None] * np.array([step_of(bits, a, 'published') for a in SCHEMES])
  x, w = f32(np.concatenate([d.ravel(), normal(0, 3000)])), f32(normal(1, 3, 3, 32, 8))

  def both(x, w):
    coded = quantize(x, w)
    return coded, [dequantize(c) for c in coded]

  coded, (coded_by_jit, decoded_by_jit) = quantize(x, w), compiling.jit(both)(x, w)
  results = zip(
    coded, fake_quantize(x, w), coded_by_jit, decoded_by_jit, compiling.jit(fake_quantize)(x, w), strict=True
  )
  for i, (eager, value, compiled, decoded, value_by_jit) in enumerate(results):
    assert same_bits(dequantize(eager), value)
    assert same_bits(dequantize(compiled), value_by_jit)
    assert same_bits(decoded, value_by_jit)
    if i < len(activations):  # a weight's scale is a sum, whose order a compiler may change
      np.testing.assert_array_equal(eager.codes, compiled.codes)
      assert same_bits(value, value_by_jit)


@pytest.mark.parametrize('bits, scheme, step', list(itertools.product(BITS, SCHEMES, STEPS)))
def test_activation_gradient_mask(bits, scheme, step):
  d = step_of(bits, scheme, step)
  top = (2**bits - 1) * d
  x = f32([-5, -1e-6, 0, 1e-6, d / 2, top * (1 - 1e-6), top, top * (1 + 1e-6), top + 5])
  at_zero = 1 if scheme == 'nearest' else 0
  g = f32([2, 3, 5, 7, 11, 13, 17, 19, 23])
  value, pull_back = jax.vjp(lambda x: hwgq.fake_quantize_activation(x, bits, scheme, step), x)
  np.testing.assert_array_equal(pull_back(g)[0], g * f32([0, 0, at_zero, 1, 1, 1, 1, 0, 0]))
  assert same_bits(value, hwgq.fake_quantize_activation(x, bits, scheme, step))


@pytest.mark.parametrize('per_channel, binary_scale', WEIGHT_OPTIONS)
def test_weight_gradient_is_the_identity(per_channel, binary_scale):
  """Also far outside the grid, and with nothing through the scale."""
  w, g = f32(normal(0, 3, 3, 4, 5)).at[0, 0, 0].set(50.0), f32(normal(1, 3, 3, 4, 5))
  for bits in BITS:
    quantizer = hwgq.Weight(bits, per_channel=per_channel, binary_scale=binary_scale)
    value, pull_back = jax.vjp(quantizer.fake_quantize, w)
    assert same_bits(pull_back(g)[0], g)
    assert same_bits(value, quantizer.fake_quantize(w))


# Midpoints of 160000 cells of (0, 8) and the normal density there, for the integrals of the next two tests.
CELL = 8 / 160000
POINTS = (np.arange(160000) + 0.5) * CELL
DENSITY = np.exp(-(POINTS**2) / 2) / np.sqrt(2 * np.pi)


def error_of(values):
  return ((POINTS - values) ** 2 * DENSITY).sum() * CELL


@pytest.mark.parametrize('bits, scheme', list(itertools.product(BITS, SCHEMES)))
def test_optimal_activation_step_is_a_minimum(bits, scheme):
  def error(d):
    thresholds = (np.arange(2**bits - 1) + 0.5) * d
    if scheme == 'zero_threshold':
      thresholds[0] = 0
    return error_of(np.searchsorted(thresholds, POINTS) * d)

  d = hwgq.activation_step(bits, scheme, 'optimal')
  assert error(d) < min(error(0.99 * d), error(1.01 * d))
  attained = error_of(np.asarray(hwgq.fake_quantize_activation(f32(POINTS), bits, scheme, 'optimal'), np.float64))
  np.testing.assert_allclose(attained, OPTIMAL_ERROR[scheme][bits - 1], rtol=2e-3, atol=6e-7)
  np.testing.assert_allclose(attained, error(d), rtol=1e-4)


@pytest.mark.parametrize('bits', BITS)
def test_weight_step_is_a_minimum(bits):
  def error(s):
    half = 2 ** (bits - 1)
    return 2 * error_of((np.minimum(np.floor(POINTS / s), half - 1) + 0.5) * s)

  s = hwgq.WEIGHT_STEP[bits - 1]
  assert error(s) < min(error(0.99 * s), error(1.01 * s))
  np.testing.assert_allclose(error(s), WEIGHT_ERROR[bits - 1], rtol=2e-3, atol=6e-7)


def test_step_tables():
  for bits, scheme, step in itertools.product(BITS, SCHEMES, STEPS):
    assert hwgq.activation_step(bits, scheme, step) == step_of(bits, scheme, step)
    assert hwgq.Activation(bits, scheme=scheme, step=step).quantize(f32([1.0])).scale == np.float32(
      step_of(bits, scheme, step)
    )
  assert hwgq.activation_step(2) == hwgq.activation_step(2, 'nearest', 'published') == 0.538
  assert hwgq.WEIGHT_STEP == WEIGHT_STEP


def test_nan_is_not_hidden():
  """Codes have no NaN; values keep it, so that a network that has diverged shows it in its loss."""
  x = f32([[np.nan, 1], [2, np.nan], [0.5, 1]])
  for bits, scheme in itertools.product(BITS, SCHEMES):
    np.testing.assert_array_equal(np.isnan(hwgq.fake_quantize_activation(x, bits, scheme)), np.isnan(x))
    assert np.isnan(hwgq.fake_quantize_weight(x, bits)).all()  # one scale for all


DEGENERATE = {
  'zero': np.zeros((3, 3, 2, 4)),
  'constant': np.full((3, 3, 2, 4), -0.7),
  'skewed': np.exp(4 * normal(0, 3, 3, 2, 4)),
  'tiny': 1e-20 * normal(0, 3, 3, 2, 4),
  'one channel zero': normal(0, 3, 3, 2, 4) * np.array([1, 0, 1, 1]),
  'one weight per channel': normal(0, 1, 1, 1, 4),
  'one weight': normal(0, 1, 1, 1, 1),
}


@pytest.mark.parametrize('name', DEGENERATE)
def test_degenerate_input_stays_finite(name):
  quantizers, x = [], f32(DEGENERATE[name])
  for bits in (1, 2, 8):
    quantizers += weight_quantizers(bits) + [hwgq.Activation(bits, scheme=s) for s in SCHEMES]

  def everything(quantizer, x):
    value, pull_back = jax.vjp(quantizer.fake_quantize, x)
    return quantizer.quantize(x), value, pull_back(jnp.ones_like(x))[0]

  found = jax.jit(lambda x: [everything(quantizer, x) for quantizer in quantizers])(x)
  for quantizer, (coded, value, gradient) in zip(quantizers, found, strict=True):
    assert quantizer.init(x) == {}
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert (np.asarray(coded.scale) > 0).all()
    assert coded.codes.min() >= 0 and coded.codes.max() < 2**quantizer.bits


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: hwgq.Weight(0), ('hwgq.weight', 'bits=0', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: hwgq.Weight(9), ('hwgq.weight', 'bits=9', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: hwgq.Activation(32), ('hwgq.activation', 'bits=32', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: hwgq.Activation(-1), ('hwgq.activation', 'bits=-1', '1, 2, 3, 4, 5, 6, 7, 8')),
    (lambda: hwgq.Activation(2, scheme='floor'), ("scheme='floor'", "'nearest', 'zero_threshold'")),
    (lambda: hwgq.Activation(2, step='best'), ("step='best'", "'published', 'optimal'")),
    (lambda: hwgq.Weight(2, per_channel='yes'), ("per_channel='yes'", 'True or False')),
    (lambda: hwgq.Weight(1, binary_scale='max'), ("binary_scale='max'", "'std', 'mean_abs'")),
    (lambda: BitPolicy(9, 2).weight_quantizer('conv', 'body'), ('bits=9', '1, 2, 3, 4, 5, 6, 7, 8')),
    (
      lambda: BitPolicy(2, 2, activation_options=(('step', 'best'),)).activation_quantizer('a'),
      ("step='best'", "'published', 'optimal'"),
    ),
  ],
)
def test_refusals_name_what_is_allowed(make, words):
  with pytest.raises(ValueError) as refusal:
    make()
  assert all(word in str(refusal.value) for word in words), refusal.value
