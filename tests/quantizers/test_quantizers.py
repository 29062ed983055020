"""All quantizers: the common contract, then values and gradients of each against float64 NumPy, and golden values.

HWGQ and LSQ have files of their own. Newer quantizers have a file with `CASES`, which are tested here. References
search levels, where the code computes codes.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.quantizers import (
  apot,
  base,
  dequantize,
  dorefa,
  ewgs,
  hwgq,
  lq_nets,
  lsq,
  lsq_plus,
  n2uq,
  pact,
  qil,
  sawb,
)
from tests import compiling
from tests.quantizers.cases import all_cases, binary, grid, nearest

pytestmark = pytest.mark.usefixtures('strict_dtypes')

CLASSES = {
  f'{name}-{role}': getattr(module, role)
  for name, module in quantizers.QUANTIZERS.items()
  for role in ('Weight', 'Activation')
  if hasattr(module, role) and getattr(module, role).__module__ == module.__name__  # some have those of another file
}
CASES = all_cases()


def f32(values):
  return jnp.asarray(values, jnp.float32)


def every_width(name):
  """The quantizer at each of its bit-widths."""
  return [CLASSES[name](bits) for bits in CLASSES[name].bit_widths]


# Codes from -2^(b-1), at 1 bit from 0.
SIGNED = ('lsq-Weight', 'lsq_plus-Weight', 'qil-Weight', *(name for name, case in CASES.items() if case.is_signed))
# 2^b - 1 levels, as many below 0 as above.
SYMMETRIC = ('apot-Weight', 'qil-Weight', *(name for name, case in CASES.items() if case.is_symmetric))


def sample(name, seed=0):
  """Weights [3, 3, 4, 5], or activations [4, 3, 3, 5] with every zone of the quantizers in them."""
  rng = np.random.default_rng(seed)
  if name.endswith('Weight'):
    return (0.3 * rng.normal(size=(3, 3, 4, 5)) + 0.02).astype(np.float32)
  return (1.5 * rng.normal(size=(4, 3, 3, 5)) + 0.3).astype(np.float32)


def same_bits(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.int32), b.view(np.int32))


# The contract.


def check_codes(name, widths, compile_all):
  """dequantize(quantize(x)) is fake_quantize(x) bit for bit, and codes are in range."""
  x = f32(np.concatenate([sample(name, seed) for seed in range(4)]))
  parameters = jax.jit(lambda x: [quantizer.init(x) for quantizer in widths])(x)
  every_form = lambda q, x, p: (q.quantize(x, p), q.fake_quantize(x, p), q.with_levels(x, p))
  of_all = compile_all(lambda x, parameters: [every_form(q, x, p) for q, p in zip(widths, parameters, strict=True)])
  found = of_all(x, parameters)
  for quantizer, values, (coded, value, quantized) in zip(widths, parameters, found, strict=True):
    assert set(values) == {*quantizer.learned, *quantizer.fitted}
    assert all(value.dtype == jnp.float32 for value in values.values())
    assert coded.codes.dtype == jnp.int32 and coded.codes.shape == x.shape == value.shape
    assert same_bits(dequantize(coded), value) and same_bits(quantized.value, value), quantizer
    if coded.levels is None and coded.offset is None:
      assert same_bits(quantized.scale * quantized.level, value), quantizer
      assert same_bits(quantized.level.astype(jnp.bfloat16).astype(jnp.float32), quantized.level), quantizer
    else:
      assert quantized.level is quantized.scale is None
    low = -(2 ** (quantizer.bits - 1)) if name in SIGNED and quantizer.bits > 1 else 0
    assert low <= coded.codes.min() and coded.codes.max() < low + 2**quantizer.bits, quantizer


@pytest.mark.parametrize('name', CLASSES)
def test_codes_stand_for_the_values(name):
  """Eager, at both ends."""
  widths = every_width(name)
  check_codes(name, [widths[0], widths[-1]], lambda function: function)


@pytest.mark.integration
@pytest.mark.parametrize('name', CLASSES)
def test_codes_stand_for_the_values_as_training_compiles_them(name):
  check_codes(name, every_width(name), compiling.jit)


@pytest.mark.parametrize('name', [name for name in CLASSES if name.endswith('Activation')])
def test_any_real_input_is_quantized_as_float32(name):
  """Scalars, Python's numbers, lists and other dtypes; the gradient has the dtype of what it belongs to."""
  quantizer = every_width(name)[0]
  parameters = jax.jit(quantizer.init)(f32(sample(name)))
  apply = lambda x: quantizer.fake_quantize(x, parameters)
  values = f32([-1, 0.25, 0.5, 3])
  expected = apply(values)
  assert same_bits(jax.jit(jax.vmap(apply))(values), expected)
  assert same_bits(f32([apply(float(x)) for x in values]), expected)
  assert same_bits(apply(values.tolist()), expected) and same_bits(apply(values.astype(jnp.bfloat16)), expected)
  gradient = jax.jit(jax.grad(lambda x: apply(x).sum()))
  rounded = gradient(values.astype(jnp.bfloat16))
  assert rounded.dtype == jnp.bfloat16 and np.array_equal(rounded, gradient(values).astype(jnp.bfloat16))
  assert same_bits(jax.jit(jax.vmap(jax.grad(apply)))(values), gradient(values))


def test_quantizers_that_lack_a_part_are_named():
  class Empty(base.Quantizer):
    pass

  class Half(Empty):
    def quantize(self, x, parameters=None):
      return quantizers.QTensor(x.astype(jnp.int32), f32(1))

  class Array(Half):
    def surrogate(self, x, parameters):
      return x[:1]

    def quantize(self, x, parameters=None):
      return x

  class Short(Half):
    def surrogate(self, x, parameters):
      return x[:1]

  class Nothing(Half):
    def surrogate(self, x, parameters):
      pass

  class Lost(Half):
    def quantize(self, x, parameters=None):
      return quantizers.QTensor(x.astype(jnp.int32), {}['step'])

  for cls, error, text in (
    (Empty, NotImplementedError, 'test_quantizers.empty defines no quantize'),
    (Half, NotImplementedError, 'test_quantizers.half defines no surrogate; without one, a quantizer'),
    (Array, ValueError, 'test_quantizers.array: quantize.. returned .*Array.*; return a QTensor'),
    (Nothing, ValueError, r'test_quantizers.nothing: surrogate.. returns NoneType for an input of shape \(2, 3\)'),
    (Lost, ValueError, "test_quantizers.lost: there is no value 'step'; return it from init"),
    (Short, ValueError, r'test_quantizers.short: surrogate.. returns \(1, 3\) for an input of shape \(2, 3\)'),
  ):
    with pytest.raises(error, match=text):
      cls(2).fake_quantize(jnp.ones((2, 3)))


@pytest.mark.parametrize(
  'declared, words',
  [
    (dict(learned='step'), r"Own: learned='step' is not a tuple of names; write .'step',."),
    (dict(learned=('clip',), decayed=('clipp',)), "'clipp' is decayed, but not learned"),
    (dict(update=lambda self, x, parameters: {}), 'has update.., but nothing is fitted'),
    (dict(bit_widths=(2, 16)), r'bit_widths=\(2, 16\) has 16; allowed: 1 to 8'),
  ],
)
def test_declarations_that_cannot_be_meant(declared, words):
  with pytest.raises(TypeError, match=words):
    type('Own', (base.Quantizer,), declared)


@pytest.mark.parametrize('cls', [cls for cls in CLASSES.values() if cls.learned or cls.fitted])
def test_values_start_in_float32_and_are_all_needed(cls):
  quantizer = cls(2)
  start = quantizer.init(np.float16([[0.5, -1.0], [2.0, 0.25]]))
  assert {np.asarray(value).dtype for value in start.values()} == {np.dtype('float32')}
  with pytest.raises(ValueError, match='has values that are learned or fitted'):
    quantizer.quantize(jnp.ones((2, 2)), {'wrong': 1.0})


def test_bits_are_an_int_of_python():
  with pytest.raises(ValueError, match=r'bits=.*2.* is not a Python int; write int.bits.'):
    hwgq.Weight(bits=np.int64(2))


@pytest.mark.parametrize('bits', [0, -1, 9])
def test_functions_refuse_widths_that_there_are_not(bits):
  x = jnp.ones((2, 3))
  for function in (
    lambda: hwgq.fake_quantize_activation(x, bits),
    lambda: hwgq.quantize_activation(x, bits),
    lambda: hwgq.fake_quantize_weight(x, bits),
    lambda: hwgq.quantize_weight(x, bits),
    lambda: lsq.fake_quantize(x, f32(1), bits, True),
  ):
    with pytest.raises(ValueError, match=f'bits={bits} is not supported; allowed: 1'):
      function()


@pytest.mark.parametrize('codes', [lambda x: x[..., :1].astype(jnp.int32), lambda x: x])
def test_codes_of_another_shape_or_dtype_are_refused(codes):
  class Wrong(base.Quantizer):
    def quantize(self, x, parameters=None):
      return quantizers.QTensor(codes(x), f32(1))

    def surrogate(self, x, parameters):
      return x

  with pytest.raises(ValueError, match='for an input of shape \\(2, 3\\); return int32 codes of its shape'):
    Wrong(2).fake_quantize(jnp.ones((2, 3)))


@pytest.mark.parametrize(
  'quantizer, parameters',
  [
    (apot.Weight(8), {'clip': 3.0}),
    (apot.Weight(8), {'clip': 2.7}),
    (qil.Weight(8), {'center': 0.25, 'distance': 0.15}),
    (qil.Activation(8), {'center': 0.3, 'distance': 0.17}),
    (sawb.Weight(8), {}),
    (sawb.Weight(7), {}),
  ],
)
def test_codes_are_the_same_eager_and_compiled(quantizer, parameters):
  """Of 1.2 million values, in 75,000 layers, no compiler's rounding moves one over a threshold."""
  rng = np.random.default_rng(0)
  if parameters.keys() >= {'center'}:
    w = 0.3 * rng.normal(size=(75000, 4, 4)) + 0.02
  else:  # means and mean squares are exact, whatever the order of the sums
    w = rng.integers(-511, 512, (75000, 2, 4)) / 512
    w = np.concatenate([w, -w], axis=1)
  parameters = {k: f32(v) for k, v in parameters.items()}
  quantize = jax.vmap(lambda w: quantizer.quantize(w, parameters))
  eager, compiled = quantize(f32(w)), jax.jit(quantize)(f32(w))
  np.testing.assert_array_equal(eager.codes, compiled.codes)
  assert same_bits(eager.scale, compiled.scale)


@pytest.mark.parametrize('name', [name for name in CLASSES if not name.startswith(('hwgq', 'lsq-'))])
def test_all_levels_are_reached(name):
  """A sweep over the range meets every level that the width has room for."""
  # Per-channel quantizers see the same sweep in each channel.
  x = f32(np.linspace(-12, 12, 12001).repeat(2).reshape(-1, 2))

  def codes_of_every_width(sample, x):
    for quantizer in every_width(name):
      parameters = quantizer.init(sample)
      if 'basis' in parameters and parameters['basis'].ndim == 2:
        parameters = {'basis': parameters['basis'][:2]}
      if name == 'apot-Weight':
        parameters = {'clip': f32(1)}  # the standardized sweep ends at 1.7
      if name == 'lqw_caq-Weight':
        parameters = {'levels': f32(np.linspace(-1.7, 1.7, 2**quantizer.bits))}  # in units of it, too
      yield quantizer.quantize(x, parameters).codes[:, 0]

  found = jax.jit(lambda *arguments: list(codes_of_every_width(*arguments)))(f32(sample(name)), x)
  for bits, codes in zip(CLASSES[name].bit_widths, found, strict=True):
    codes = np.unique(codes)
    if bits < 8:  # there the sweep is too coarse for the finest levels of some
      assert len(codes) == 2**bits - (name in SYMMETRIC), bits
      np.testing.assert_array_equal(np.diff(codes), 1)
    else:
      assert len(codes) > 100


DEGENERATE = {
  'zero': np.zeros((4, 3, 3, 5)),
  'constant': np.full((4, 3, 3, 5), 0.7),
  'negative constant': np.full((4, 3, 3, 5), -0.7),
  'skewed': np.exp(3 * sample('a-Activation')),
  'skewed down': -np.exp(3 * sample('a-Activation')),
  'tiny': 1e-20 * sample('a-Activation'),
  'one channel zero': sample('a-Activation') * np.array([1, 0, 1, 1, 1]),
  'one weight per channel': sample('a-Activation')[:1, :1, :1],
}


@pytest.mark.parametrize('name', CLASSES)
def test_degenerate_input_stays_finite(name):
  """Values, gradients and refitted values of a network whose first batch is not Gaussian."""
  widths = every_width(name)

  def everything(quantizer, x):
    parameters = quantizer.init(x)
    value, pull_back = jax.vjp(quantizer.fake_quantize, x, parameters)
    return parameters, value, pull_back(jnp.ones_like(x)), quantizer.update(x, parameters)

  at_both_ends = jax.jit(lambda x: [everything(quantizer, x) for quantizer in (widths[0], widths[-1])])
  for case, x in DEGENERATE.items():
    for leaf in jax.tree.leaves(at_both_ends(f32(x))):
      assert np.isfinite(leaf).all(), case


@pytest.mark.parametrize('name', CLASSES)
def test_nan_is_not_hidden(name):
  """Codes have no NaN; values keep it, so that a network that has diverged shows it in its loss."""
  quantizer = CLASSES[name](CLASSES[name].bit_widths[-1])
  x = sample(name)
  parameters = jax.jit(quantizer.init)(f32(x))
  x[0, 0, 0, 0] = np.nan
  assert np.isnan(jax.jit(quantizer.fake_quantize)(f32(x), parameters)[0, 0, 0, 0])


@pytest.mark.parametrize('name', CLASSES)
def test_other_widths_are_refused_by_name(name):
  cls = CLASSES[name]
  for bits in {0, 1, 6, 9, 32} - set(cls.bit_widths):
    with pytest.raises(
      ValueError, match=f'bits={bits} is not supported; allowed: {", ".join(map(str, cls.bit_widths))}'
    ):
      cls(bits)


def test_policy_refuses_what_a_quantizer_does_not_have():
  with pytest.raises(UserError, match="^config.quantizer.activations: twn quantizes no activations; .*'hwgq'"):
    BitPolicy(2, 2, quantizer='twn').activation_quantizer('student/a')
  with pytest.raises(UserError, match='^config.quantizer: sawb.weight: bits=6 is not supported; allowed: 2, 3, 4, 5'):
    BitPolicy(6, 2, quantizer='sawb').weight_quantizer('student/a', 'body')
  policy = BitPolicy(2, 3, quantizer='twn', activations='hwgq')
  assert isinstance(policy.activation_quantizer('student/a'), quantizers.hwgq.Activation)
  assert isinstance(policy.weight_quantizer('student/a', 'body'), quantizers.twn.Weight)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: apot.Weight(2, init_clip=-1.0), ('apot.weight: init_clip=-1.0', 'positive')),
    (lambda: lq_nets.Weight(2, momentum=1.0), ('lq_nets.weight: momentum=1.0', '[0, 1)')),
    (lambda: ewgs.Activation(2, delta=-1.0), ('ewgs.activation: delta=-1.0', 'negative')),
    (lambda: n2uq.Weight(2, gradient='ste'), ("gradient='ste'", "'identity', 'published'")),
    (lambda: lsq_plus.Activation(2, function='gelu'), ("function='gelu'", "'relu', 'swish', 'identity'")),
    (lambda: qil.Weight(3, learn_gamma=1.5), ('learn_gamma=1.5', 'True or False')),
    *(
      (functools.partial(CLASSES[name], **options), words)
      for name, case in CASES.items()
      for options, words in case.refused
    ),
  ],
)
def test_refusals_name_what_is_allowed(make, words):
  with pytest.raises(ValueError) as refusal:
    make()
  assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize('name', sorted(name for name, cls in CLASSES.items() if cls.learned or cls.fitted))
def test_values_that_are_missing_are_named(name):
  quantizer = CLASSES[name](max(2, min(CLASSES[name].bit_widths)))
  x = jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(3, 4)
  first = (*quantizer.learned, *quantizer.fitted)[0]
  role = name.partition('-')[2].lower()  # some have the activations of another file
  said = rf'^\w+\.{role} has .* {first}\b.*\(x, q\.init\(x\)\)'
  for call in (quantizer.quantize, quantizer.fake_quantize, quantizer.with_levels):
    with pytest.raises(ValueError, match=said):
      call(x)
  assert np.isfinite(jax.jit(lambda x: quantizer.fake_quantize(x, quantizer.init(x)))(x)).all()


# References: f(v, parameters, bits, g) -> (value, whether clear of thresholds, gradients by name, 'x' that of v).


def dorefa_weight(v, p, bits, g):
  if bits == 1:
    return binary(lambda v: np.abs(v).mean())(v, p, bits, g)
  t = np.tanh(v)
  top = np.abs(t).max()
  level, clear = nearest(t / top, grid(bits, -1))
  # d(t / top): every value moves, and the largest also moves the others.
  dx = g * (1 - t**2) / top - (np.abs(t) == top) * np.sign(t) * (1 - t**2) * (g * t).sum() / top**2
  return level, clear, {'x': dx}


def dorefa_activation(v, p, bits, g):
  level, clear = nearest(v, grid(bits))
  return level, clear, {'x': g * ((v > 0) & (v < 1))}


def sawb_weight(v, p, bits, g):
  c1, c2 = {
    2: (3.12, 2.064),
    3: (7.509, 6.892),
    4: (12.68, 12.80),
    5: (17.74, 18.64),
    7: (28.24, 30.81),
    8: (31.76, 35.04),
  }[bits]
  a = c1 * np.sqrt((v**2).mean()) - c2 * np.abs(v).mean()
  return *nearest(v, grid(bits, -a, a)), {'x': g}


def interval(magnitude, sign, levels, p, g):
  """QIL's transformer by zones, with the slopes of (|x| - c) / (2 d) + 1/2."""
  c, d = p['center'], p['distance']
  inside = (magnitude > c - d) & (magnitude < c + d)
  t = np.where(magnitude >= c + d, 1.0, np.where(inside, (magnitude - c) / (2 * d) + 0.5, 0.0))
  level, clear = nearest(t, levels)
  slope = g * inside / (2 * d)
  return (
    sign * level,
    clear,
    {
      'x': slope * sign**2,
      'center': -0.01 * (slope * sign).sum(),
      'distance': -0.01 * (slope * sign * (magnitude - c) / d).sum(),
    },
  )


def qil_weight(v, p, bits, g):
  return interval(np.abs(v), np.sign(v), np.arange(2 ** (bits - 1)) / (2 ** (bits - 1) - 1), p, g)


def qil_activation(v, p, bits, g):
  return interval(np.maximum(v, 0), (v > 0).astype(float), grid(bits), p, g)


def lsq_plus_weight(v, p, bits, g):
  s, low, high = p['step'], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  level, clear = nearest(v / s, np.arange(low, high + 1.0))
  inside = (v / s > low) & (v / s < high)
  return (
    s * level,
    clear,
    {'x': g * inside, 'step': (g * np.where(inside, level - v / s, level)).sum() / np.sqrt(v.size * high)},
  )


def lsq_plus_activation(v, p, bits, g):
  s, o, n = p['step'], p['offset'], 2**bits - 1
  ratio = (np.maximum(v, 0) - o) / s
  level, clear = nearest(ratio, np.arange(n + 1.0))
  inside, scale = (ratio > 0) & (ratio < n), 1 / np.sqrt(45 * n)
  return (
    s * level + o,
    clear,
    {
      'x': g * inside * (v > 0),
      'offset': scale * g[~inside].sum(),
      'step': scale * (g * np.where(inside, level - ratio, level)).sum(),
    },
  )


def ewgs_gradients(v, p, g, g_level, inside, normal, level, scale):
  """Through x_q: g (1 + delta sign(g) (x - x_q)); then into v, l and u of (v - l) / (u - l)."""
  width = p['upper'] - p['lower']
  through = g_level * (1 + 1e-3 * np.sign(g_level) * (normal - level)) * inside
  return {
    'x': through / width,
    'lower': scale * (through * (v - p['upper']) / width**2).sum(),
    'upper': scale * (-through * (v - p['lower']) / width**2).sum(),
  }


def ewgs_weight(v, p, bits, g):
  normal = np.clip((v - p['lower']) / (p['upper'] - p['lower']), 0, 1)
  level, clear = nearest(normal, grid(bits))
  a = np.abs(p['scale'])
  gradients = ewgs_gradients(
    v, p, g, 2 * a * g, (normal > 0) & (normal < 1), normal, level, 1 / np.sqrt(v.size * (2**bits - 1))
  )
  return a * (2 * level - 1), clear, gradients | {'scale': np.sign(p['scale']) * (g * (2 * level - 1)).sum()}


def ewgs_activation(v, p, bits, g):
  x = np.maximum(v, 0)
  normal = np.clip((x - p['lower']) / (p['upper'] - p['lower']), 0, 1)
  level, clear = nearest(normal, grid(bits))
  gradients = ewgs_gradients(x, p, g, g, (normal > 0) & (normal < 1), normal, level, 1 / np.sqrt(45 * (2**bits - 1)))
  return level, clear, gradients | {'x': gradients['x'] * (v > 0)}


def n2uq_weight(v, p, bits, g):
  alpha = (2**bits - 1) / 2 ** (bits - 1) * np.abs(v).mean((0, 1, 2))
  level, clear = nearest(np.clip(v / alpha, -1, 1), grid(bits, -1))
  return alpha * level, clear, {'x': g}


def n2uq_activation(v, p, bits, g):
  n, a, x = 2**bits - 1, p['segments'], p['input_scale'] * v
  edges = p['start'] + np.concatenate([[0], np.cumsum(a)])
  thresholds = (edges[1:] + edges[:-1]) / 2
  count = (x[..., None] > thresholds).sum(-1)
  clear = np.abs(x[..., None] - thresholds).min(-1) > 1e-5
  where = np.digitize(x, edges) - 1  # segment of each value, -1 and n outside
  slope, scale = np.zeros_like(v), 1 / np.sqrt(45 * n)
  segments = np.zeros(n)
  for i in range(n):
    here = where == i
    slope[here] = p['output_scale'] * 2 / n / a[i]
    segments[i] = (-(g * slope)[here] * (x[here] - edges[i]) / a[i]).sum() - (g * slope)[where > i].sum() * 0
  for i in range(n):  # widths to the left of a value's segment move it, too
    segments[i] -= (g * slope)[(where > i) & (where < n)].sum()
  return (
    p['output_scale'] * 2 / n * count,
    clear,
    {
      'x': g * slope * p['input_scale'],
      'start': -scale * (g * slope).sum(),
      'segments': scale * segments,
      'input_scale': scale * (g * slope * v).sum(),
      'output_scale': scale * (g * 2 / n * count).sum(),
    },
  )


def apot_levels(bits):
  """The sets of the paper (k = 2) and of its code for odd widths, written out."""
  sets = {
    1: [[1]],
    2: [[1, 2, 3]],
    3: [[1, 2, 4], [3]],
    4: [[1, 3, 5], [2, 4, 6]],
    5: [[1, 3, 6], [2, 4, 7], [5]],
    6: [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
    7: [[1, 4, 8], [2, 5, 9], [3, 6, 10], [7]],
    8: [[1, 5, 9], [2, 6, 10], [3, 7, 11], [4, 8, 12]],
  }[bits]
  sums = np.array(sorted({sum(c) for c in itertools.product(*([0, *(2.0**-e for e in s)] for s in sets))}))
  return sums / sums.max()


def apot_weight(v, p, bits, g):
  std = v.std(ddof=1)
  z = (v - v.mean()) / std
  a, positive = p['clip'], apot_levels(bits - 1)
  level, clear = nearest(np.clip(z / a, -1, 1), np.concatenate([-positive[:0:-1], positive]))
  inside = np.abs(z) < a
  gz = g * (inside if bits > 2 else 1)
  # Back through the standardization with the unbiased deviation.
  dx = (gz - gz.mean() - z * (gz * z).sum() / (v.size - 1)) / std
  return a * level, clear, {'x': dx, 'clip': (g * np.where(inside, level - z / a, level)).sum()}


def apot_activation(v, p, bits, g):
  a = p['clip']
  level, clear = nearest(np.clip(v / a, 0, 1), apot_levels(bits))
  inside = (v > 0) & (v < a)
  return a * level, clear, {'x': g * inside, 'clip': (g * np.where(inside, level - v / a, level)).sum()}


def lq_levels(basis, low):
  return np.sort([np.dot(e, basis) for e in itertools.product([low, 1], repeat=len(basis))])


def lq_weight(v, p, bits, g):
  pairs = [nearest(v[..., c], lq_levels(p['basis'][c], -1)) for c in range(v.shape[-1])]
  return *(np.stack(part, -1) for part in zip(*pairs, strict=True)), {'x': g}


def lq_activation(v, p, bits, g):
  levels = lq_levels(p['basis'], 0)
  return *nearest(np.maximum(v, 0), levels), {'x': g * ((v > 0) & (v <= levels[-1]))}


# Reference, and parameters that put values into every zone; a function of bits where they depend on it.
REFERENCES = {
  'apot-Weight': (apot_weight, lambda bits: {'clip': 1.4}),
  'apot-Activation': (apot_activation, lambda bits: {'clip': 1.7}),
  'dorefa-Weight': (dorefa_weight, None),
  'dorefa-Activation': (dorefa_activation, None),
  'ewgs-Weight': (ewgs_weight, lambda bits: {'lower': -0.35, 'upper': 0.42, 'scale': -0.3}),
  'ewgs-Activation': (ewgs_activation, lambda bits: {'lower': 0.1, 'upper': 2.1}),
  'lq_nets-Weight': (
    lq_weight,
    lambda bits: {'basis': np.random.default_rng(bits).uniform(0.02, 0.2, (5, bits)), 'updates': 3},
  ),
  'lq_nets-Activation': (
    lq_activation,
    lambda bits: {'basis': np.random.default_rng(bits).uniform(0.1, 0.9, bits), 'updates': 3},
  ),
  'lsq_plus-Weight': (lsq_plus_weight, lambda bits: {'step': 0.7 / 2**bits}),
  'lsq_plus-Activation': (lsq_plus_activation, lambda bits: {'step': 1.6 / 2**bits, 'offset': 0.2}),
  'n2uq-Weight': (n2uq_weight, None),
  'n2uq-Activation': (
    n2uq_activation,
    lambda bits: {
      'start': 0.1,
      'segments': np.linspace(0.5, 1.5, 2**bits - 1) * 2 / (2**bits - 1),
      'input_scale': 0.9,
      'output_scale': 1.3,
    },
  ),
  'qil-Weight': (qil_weight, lambda bits: {'center': 0.25, 'distance': 0.15}),
  'qil-Activation': (qil_activation, lambda bits: {'center': 1.0, 'distance': 1.2}),  # reaches left of 0
  'sawb-Weight': (sawb_weight, None),
  **{name: case[:2] for name, case in CASES.items()},
}


def test_parts_of_another_file():
  """PACT's weights are DoReFa's and SAWB's activations PACT's, and are tested as those."""
  assert pact.Weight is dorefa.Weight and sawb.Activation is pact.Activation


def test_every_quantizer_has_a_reference():
  assert set(REFERENCES) == {name for name in CLASSES if not name.startswith(('hwgq', 'lsq-'))}


@pytest.mark.parametrize('name', REFERENCES)
def test_value_and_gradients(name):
  """Against the reference in float64: values, straight-through masks, and the gradient of each learned value."""
  reference, parameters_of = REFERENCES[name]
  widths, arguments, expected = every_width(name), [], []
  for quantizer in widths:
    bits = quantizer.bits
    parameters = {k: np.float64(np.float32(v)) for k, v in (parameters_of(bits) if parameters_of else {}).items()}
    assert set(parameters) == {*quantizer.learned, *quantizer.fitted}
    for seed in range(20):  # the first sample without a value on a threshold
      v = sample(name, 100 * bits + seed)
      g = np.random.default_rng(seed).normal(size=v.shape).astype(np.float32)
      value, clear, gradients = reference(v.astype(np.float64), parameters, bits, g.astype(np.float64))
      if clear.all():
        break
    assert clear.all()
    arguments.append((f32(v), jax.tree.map(f32, parameters), f32(g)))
    expected.append((value, gradients))

  def value_and_gradients(arguments):
    for quantizer, (v, parameters, g) in zip(widths, arguments, strict=True):
      found, pull_back = jax.vjp(quantizer.fake_quantize, v, parameters)
      yield found, *pull_back(g)

  found_of_widths = jax.jit(lambda arguments: list(value_and_gradients(arguments)))(arguments)
  for quantizer, (found, dx, dp), (value, gradients) in zip(widths, found_of_widths, expected, strict=True):
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=quantizer)
    np.testing.assert_allclose(dx, gradients['x'], rtol=2e-4, atol=1e-5, err_msg=quantizer)
    assert np.abs(gradients['x']).max() > 0
    for k in quantizer.learned:
      np.testing.assert_allclose(dp[k], gradients[k], rtol=1e-3, atol=1e-4, err_msg=f'{quantizer} {k}')
      assert np.abs(gradients[k]).max() > 0


# Edges of the masks, on numbers that are exact.


@pytest.mark.parametrize(
  'quantizer, parameters, passes',
  [
    # at -1, 0, 1, one step beside each, and far out: -9, -1-, -1, -1+, 0-, 0, 0+, 1-, 1, 1+, 9
    (quantizers.dorefa.Activation(2), {}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
    (apot.Activation(2), {'clip': 1.0}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
    (ewgs.Activation(2, delta=0.0), {'lower': 0.0, 'upper': 1.0}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
    (ewgs.Weight(2, delta=0.0), {'lower': -1.0, 'upper': 1.0, 'scale': 1.0}, [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0]),
    (lq_nets.Activation(1), {'basis': [1.0]}, [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0]),
    (lsq_plus.Activation(1), {'step': 1.0, 'offset': 0.0}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
    (lsq_plus.Weight(2), {'step': 1.0}, [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
    (
      n2uq.Activation(1),
      {'start': 0.0, 'segments': [1.0], 'input_scale': 1.0, 'output_scale': 0.5},
      [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0],
    ),
    (qil.Activation(2), {'center': 0.5, 'distance': 0.5}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
    (qil.Weight(2), {'center': 0.5, 'distance': 0.5}, [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0]),
    (sawb.Weight(2), {}, [1] * 11),
    (n2uq.Weight(2), {}, [1] * 11),
    (lq_nets.Weight(1), {'basis': [[1.0]]}, [1] * 11),
    *(
      (CLASSES[name](**options), parameters, passes)
      for name, case in CASES.items()
      for options, parameters, passes in case.masks
    ),
  ],
)
def test_masks_beside_their_edges(quantizer, parameters, passes):
  e = 2.0**-12
  x = f32([-9, -1 - e, -1, -1 + e, -e, 0, e, 1 - e, 1, 1 + e, 9]).reshape(-1, 1)
  parameters = {k: f32(v) for k, v in parameters.items()}
  gradient = jax.jit(jax.grad(lambda x: quantizer.fake_quantize(x, parameters).sum()))(x)
  np.testing.assert_allclose(np.asarray(gradient).ravel(), passes, rtol=1e-6)


def test_two_bit_apot_weights_have_no_mask_even_at_the_clip():
  w = f32([1, -1, 1, -1, 0]).reshape(-1, 1)  # mean 0, standard deviation sqrt(4 / (5 - 1)) = 1
  gradient = jax.jit(jax.grad(lambda w, clip: apot.Weight(2).fake_quantize(w, {'clip': clip})[0, 0]))
  for clip in (0.5, 1.0, 2.0):  # g - mean g - w sum(g w) / (5 - 1) with g = 1, 0, 0, 0, 0
    np.testing.assert_allclose(gradient(w, clip).ravel(), [0.55, 0.05, -0.45, 0.05, -0.2], rtol=1e-5)


# Values worked by hand.


@pytest.mark.parametrize(
  'quantizer, parameters, x, expected',
  [
    # tanh(+-100) = +-1 = max: r = 1, 0, 1/2; 3 r = 3, 0, 1.5 -> 2 (to even); 2 * 2 / 3 - 1 = 1/3
    (quantizers.dorefa.Weight(2), {}, [100, -100, 0], [1, -1, 1 / 3]),
    # E|w| = (1 + 2 + 3) / 3
    (quantizers.dorefa.Weight(1), {}, [1, -2, 3], [2, -2, 2]),
    (quantizers.dorefa.Activation(2), {}, [-1, 0.1, 0.2, 0.6, 2], [0, 0, 1 / 3, 2 / 3, 1]),
    # sqrt(E w^2) = E|w| = 1: a = 3.12 - 2.064 = 1.056; levels +-1.056, +-0.352
    (sawb.Weight(2), {}, [1, -1, 1, -1], [1.056, -1.056, 1.056, -1.056]),
    # c = d = 1: t = clip(|w| / 2, 0, 1), q = 3; w = 0.9: 3 * 0.45 = 1.35 -> 1/3; -1.5: 2.25 -> -2/3
    (qil.Weight(3), {'center': 1, 'distance': 1}, [0.9, -1.5, 5, 0.2], [1 / 3, -2 / 3, 1, 0]),
    # s = 1/2, o = 1/4: (x - o) / s = 0 -> -0.5, 0.9 -> 1.3, 1.1 -> 1.7, 9 -> 17.5
    (lsq_plus.Activation(2), {'step': 0.5, 'offset': 0.25}, [0, 0.9, 1.1, 9], [0.25, 0.75, 1.25, 1.75]),
    # (w + 1) / 2 = 0.7, 0.1: 3 * 0.7 = 2.1 -> 2/3 -> 2 * 2/3 - 1 = 1/3; 0.3 -> 0 -> -1; times |-3|
    (ewgs.Weight(2), {'lower': -1, 'upper': 1, 'scale': -3}, [0.4, -0.8], [1, -3]),
    # thresholds 0.5, 2, 4 (widths 1, 2, 2 from 0); outputs 2/3 apart
    (
      n2uq.Activation(2),
      {'start': 0, 'segments': [1, 2, 2], 'input_scale': 1, 'output_scale': 1},
      [0.4, 0.6, 2.1, 3.9, 4.1],
      [0, 2 / 3, 4 / 3, 4 / 3, 2],
    ),
    # mean|w| = 2, gamma = 3/2, alpha = 3: levels -3, -1, 1, 3
    (n2uq.Weight(2), {}, [[2.5], [-1.5], [-0.5], [3.5]], [[3], [-1], [-1], [3]]),
    # 2 bits: 1/8, 1/4, 1/2 over 1/2: levels 0, 1/4, 1/2, 1 times 4
    (apot.Activation(2), {'clip': 4}, [0.4, 0.6, 1.4, 2.9, 3.1, 9], [0, 1, 1, 2, 4, 4]),
    # v = 1, 2: levels -3, -1, 1, 3 of the channel
    (lq_nets.Weight(2), {'basis': [[1, 2]]}, [[0.1], [-0.1], [2.1], [-9]], [[1], [-1], [3], [-3]]),
    (lq_nets.Activation(2), {'basis': [2, 1]}, [-5, 0.4, 1.6, 9], [0, 0, 2, 3]),
    *(
      (CLASSES[name](**options), parameters, x, expected)
      for name, case in CASES.items()
      for options, parameters, x, expected in case.by_hand
    ),
  ],
)
def test_by_hand(quantizer, parameters, x, expected):
  parameters = {k: f32(v) for k, v in parameters.items()}
  found = jax.jit(quantizer.fake_quantize)(f32(x), parameters)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sawb_clip_of_gaussian_weights():
  """c1 - c2 sqrt(2 / pi): 1.473, 2.010, 2.467 at 2, 3, 4 bits, near the optima 1.4935, 2.051, 2.514."""
  w = np.random.default_rng(0).normal(size=200000)
  w = f32((w - w.mean()) / w.std())
  for bits, expected in ((2, 1.473), (3, 2.010), (4, 2.467)):
    np.testing.assert_allclose(sawb.weight_clip(w, bits), expected, atol=0.02)


@pytest.mark.parametrize('bits', range(1, 9))
def test_apot_magnitudes(bits):
  levels = apot.magnitudes(bits)
  assert len(levels) == 2**bits and levels[0] == 0 and levels[-1] == 1 and (np.diff(levels) > 0).all()
  np.testing.assert_allclose(levels, apot_levels(bits), rtol=1e-6)


def test_apot_levels_of_3_bits_by_hand():
  """{0, 1/2, 1/4, 1/16} + {0, 1/8}, the largest sum 5/8."""
  np.testing.assert_allclose(apot.magnitudes(3), np.array([0, 1, 2, 3, 4, 6, 8, 10]) / 10, rtol=1e-6)


# LQ-Nets' fit.


@pytest.mark.parametrize('role, low', [('Weight', -1), ('Activation', 0)])
@pytest.mark.parametrize('bits', [1, 2, 3, 8])
def test_lq_nets_refits_its_basis(role, low, bits):
  """Three steps of TensorFlow's zero-debiased average, a channel at a time: from 0, biased <- 0.9 biased + 0.1 v_new,
  and v = biased / (1 - 0.9^t); v_new is the ridge solution for the codes that the basis before assigns."""
  name = f'lq_nets-{role}'
  quantizer, data = CLASSES[name](bits), [sample(name, seed) for seed in (3, 4, 5)]
  state = {'basis': f32(REFERENCES[name][1](bits)['basis']), 'updates': f32(0)}
  basis, update = np.atleast_2d(np.asarray(state['basis'], np.float64)), jax.jit(quantizer.update)
  biased, e = np.zeros_like(basis), np.array(list(itertools.product([low, 1], repeat=bits)), float)
  for t, x in enumerate(data, 1):
    state = update(f32(x), state)
    values = x.reshape(-1, 5).T if role == 'Weight' else np.maximum(x, 0).reshape(1, -1)
    for c, (v, of_channel) in enumerate(zip(basis.copy(), values, strict=True)):
      b = e[np.abs(of_channel[:, None] - e @ v).argmin(1)]
      new = np.linalg.solve(b.T @ b / len(b) + 1e-4 * np.eye(bits), b.T @ of_channel / len(b) + 1e-4 * v)
      biased[c] = 0.9 * biased[c] + 0.1 * new
      basis[c] = biased[c] / (1 - 0.9**t)
    np.testing.assert_allclose(np.atleast_2d(state['basis']), basis, rtol=1e-3, atol=1e-4)
    assert state['updates'] == t
    basis = np.atleast_2d(np.asarray(state['basis'], np.float64))  # so that no rounding decides a code


def test_first_fit_of_lq_nets_replaces_the_basis_by_hand():
  """1 bit: v = 2 codes 1.5, 4 and 6 as 1, mean 11.5 / 3, and 0.5 as 0. Then 3.83 codes 2 and 4 as 1: 3 is fitted."""
  quantizer = lq_nets.Activation(1)
  first = quantizer.update(f32([[1.5, 4, 6, 0.5]]), {'basis': f32([2]), 'updates': f32(0)})
  np.testing.assert_allclose(first['basis'], [11.5 / 3], rtol=1e-3)
  second = quantizer.update(f32([[2, 4, 0, -3]]), first)  # (0.9 * 0.1 * 3.83 + 0.1 * 3) / (1 - 0.81)
  np.testing.assert_allclose(second['basis'], [(0.09 * 11.5 / 3 + 0.1 * 3) / 0.19], rtol=1e-3)
  later = quantizer.update(f32([[2, 4, 0, -3]]), {'basis': f32([3.5]), 'updates': f32(1e6)})
  np.testing.assert_allclose(later['basis'], [0.9 * 3.5 + 0.1 * 3], rtol=1e-3)


def test_lq_nets_fits_millions_of_values():
  """A float32 sum of products over 4 million values is off by 4e-4."""
  x = np.random.default_rng(0).normal(size=2**22).astype(np.float32)
  quantizer = lq_nets.Activation(2)
  state = {name: jnp.asarray(value) for name, value in quantizer.init(x).items()}
  codes = np.asarray(jax.jit(quantizer.quantize)(x, state).codes)
  e = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], float)  # the basis rises, so codes do in this order
  count, total = np.bincount(codes, minlength=4), np.bincount(codes, np.maximum(x, 0, dtype=float), 4)
  basis = np.asarray(state['basis'], float)
  gram = (e.T * count) @ e / len(x) + 1e-4 * np.eye(2)
  wanted = np.linalg.solve(gram, e.T @ total / len(x) + 1e-4 * basis)
  np.testing.assert_allclose(jax.jit(quantizer.update)(x, state)['basis'], wanted, rtol=1e-5)


def test_lq_nets_fit_lowers_the_error():
  quantizer, x = lq_nets.Weight(3), f32(sample('lq_nets-Weight'))
  parameters, update = quantizer.init(x), jax.jit(quantizer.update)
  error = jax.jit(lambda p: jnp.mean((quantizer.fake_quantize(x, p) - x) ** 2))
  before = error(parameters)
  for _ in range(50):
    parameters = update(x, parameters)
  assert error(parameters) < 0.8 * before


def test_levels_of_channels_under_constant_weights():
  """Weights that a program holds, which XLA folds, give the codes of weights that it is given."""
  x = sample('a-Weight')
  levels = np.sort(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
  expected = (x[..., None] > (levels[:, 1:] + levels[:, :-1]) / 2).sum(-1)
  constant = f32(x)
  found = compiling.jit(lambda levels: base.nearest_level_by_channel(constant, levels))(levels)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(jax.jit(base.nearest_level_by_channel)(x, levels), expected)


# Starts.


def test_starts_by_hand():
  w = f32([-1, 1, -1, 1])  # mean 0, standard deviation 1
  np.testing.assert_allclose(lsq_plus.Weight(2).init(w)['step'], 1.5)  # 3 / 2^1
  start = ewgs.Weight(2).init(w)  # bounds +-3: w_n = 1/3, 2/3, w_hat = -+1/3, so that the scale is 3
  np.testing.assert_allclose([start['lower'], start['upper'], start['scale']], [-3, 3, 3], rtol=1e-5)
  np.testing.assert_allclose(lq_nets.Weight(2).init(w[:, None])['basis'], [[0.6745 / 2, 0.6745]], rtol=1e-6)
  np.testing.assert_allclose(lq_nets.Activation(2).init(w)['basis'], [2 * 0.6745 / 3, 4 * 0.6745 / 3], rtol=1e-6)
  start = qil.Weight(2).init(w)  # from 0 to 1 * 0.995687
  np.testing.assert_allclose([start['center'], start['distance']], [0.995687 / 2] * 2, rtol=1e-5)
  start = qil.Activation(1).init(w)  # mean of max(x, 0)^2 = 1/2: from 0 to 1.224006
  np.testing.assert_allclose([start['center'], start['distance']], [1.224006 / 2] * 2, rtol=1e-5)
  start = ewgs.Activation(2).init(
    w
  )  # max(w, 0) = 0, 1, 0, 1 has deviation 1/2, |N(0, 1)| has sqrt(1 - 2 / pi) = 0.602810
  np.testing.assert_allclose([start['lower'], start['upper']], [0, 1.5 / 0.602810], rtol=1e-5)
  start = ewgs.Activation(2).init(w + 9)  # from 8 to 3 deviations of 1 / 0.602810, which is less: one more than 8
  np.testing.assert_allclose([start['lower'], start['upper']], [8, 9], rtol=1e-5)
  start = n2uq.Activation(2).init(w)  # three equal segments of the range 0 to 2
  np.testing.assert_allclose(start.pop('segments'), [2 / 3] * 3, rtol=1e-6)
  assert start == {'start': 0, 'input_scale': 1, 'output_scale': 1}
  assert (apot.Weight(2).init(w), apot.Activation(2).init(w)) == ({'clip': 3}, {'clip': 6})


@pytest.mark.parametrize('function, low', [('relu', 0.0), ('identity', -1.0), ('swish', -0.2)])
def test_lsq_plus_starts_where_the_error_is_small(function, low):
  """Close to the best of a fine search; an offset below 0 only where there are values."""
  x = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
  quantizer = lsq_plus.Activation(2, function=function)
  start = quantizer.init(f32(x))
  f = {'relu': np.maximum(x, 0), 'identity': x, 'swish': x / (1 + np.exp(-x))}[function]
  error = lambda s, o: ((s * np.round(np.clip((f - o) / s, 0, 3)) + o - f) ** 2).mean()
  best = min(error(s, o) for s in np.linspace(0.1, 1.5, 57) for o in np.linspace(-3, 0, 61))
  assert error(float(start['step']), float(start['offset'])) < 1.15 * best
  assert start['offset'] <= 0 and (start['offset'] <= low / 2 if low else start['offset'] == 0)


@pytest.mark.parametrize('channels', [16, 64])
def test_lsq_plus_starts_from_all_channels(channels):
  """A channel of large values beside small ones, whichever it is: the grid reaches them."""
  for large in (0, channels // 2, channels - 1):
    x = np.random.default_rng(0).uniform(0, 0.1, size=(16, 32, 32, channels)).astype(np.float32)
    x[..., large] *= 100  # to 10
    start = lsq_plus.Activation(4).init(f32(x))
    assert 8 < start['offset'] + 15 * start['step'] < 12, large


def test_qil_gamma_below_zero():
  """It counts as just above 0: codes stay in their range, and a gradient brings it back."""
  quantizer, w = qil.Weight(3, learn_gamma=True), f32([-0.9, -0.3, 0.11, 0.3, 0.9])
  parameters = {'center': f32(0.5), 'distance': f32(0.4), 'gamma': f32(-0.5)}
  np.testing.assert_array_equal(quantizer.quantize(w, parameters).codes, [-3, -3, 3, 3, 3])
  loss = lambda p: jnp.mean((quantizer.fake_quantize(w, p) - w) ** 2)
  assert jax.jit(jax.grad(loss))(parameters)['gamma'] < 0


def test_scales_below_zero_count_by_their_magnitude():
  """A clip or step: values are those of the scale without its sign, and so is the gradient but for the sign."""
  x = f32(2 * sample('a-Activation'))
  for quantizer, name, rest in [
    (pact.Activation(2), 'clip', {}),
    (apot.Activation(2), 'clip', {}),
    (apot.Weight(2), 'clip', {}),
    (apot.Weight(3), 'clip', {}),
    (lsq_plus.Weight(2), 'step', {}),
    (lsq_plus.Activation(2), 'step', {'offset': f32(0.1)}),
  ]:
    loss = jax.jit(jax.value_and_grad(lambda p, q=quantizer: jnp.mean((q.fake_quantize(x, p) - x) ** 2)))
    (value, gradient), (wanted, of_magnitude) = (loss({name: f32(scale)} | rest) for scale in (-0.3, 0.3))
    assert value == wanted and gradient[name] == -of_magnitude[name] != 0, quantizer
    coded, wanted = (base.dequantize(quantizer.quantize(x, {name: f32(scale)} | rest)) for scale in (-0.3, 0.3))
    np.testing.assert_array_equal(coded, wanted)
    assert np.isfinite(loss({name: f32(0)} | rest)[0])


def test_n2uq_published_gradient():
  w = f32(sample('n2uq-Weight'))
  gradient = jax.grad(lambda w: n2uq.Weight(2, gradient='published').fake_quantize(w).sum())(w)
  alpha = 1.5 * np.abs(np.asarray(w)).mean((0, 1, 2))
  np.testing.assert_allclose(gradient, np.broadcast_to(1 / alpha, w.shape), rtol=1e-5)


@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_qil_gamma(gamma):
  """t^gamma inside, and its slopes by finite differences."""
  quantizer = qil.Weight(4, learn_gamma=True)
  assert quantizer.learned == ('center', 'distance', 'gamma')
  assert quantizer.init(f32(sample('qil-Weight')))['gamma'] == 1
  magnitude = f32([0.05, 0.2, 0.3, 0.35, 0.6])
  value = lambda p: qil.transform(magnitude, p[0], p[1], p[2])
  p = f32([0.25, 0.15, gamma])
  t = np.clip((np.asarray(magnitude, np.float64) - 0.25) / 0.3 + 0.5, 0, 1)
  np.testing.assert_allclose(value(p), t**gamma, rtol=1e-5)
  jacobian = jax.jacobian(value)(p)
  for i, h in itertools.product(range(3), [1e-3]):
    step = f32(h * np.eye(3)[i])
    np.testing.assert_allclose(jacobian[:, i], (value(p + step) - value(p - step)) / (2 * h), rtol=2e-2, atol=1e-3)
  np.testing.assert_allclose(qil.transform(magnitude, 0.25, 0.15, gamma), t**gamma, rtol=1e-5)  # a Python number
  np.testing.assert_allclose(qil.transform(magnitude, 0.25, 0.15), t, rtol=1e-5)


def test_ewgs_rounding():
  """A gradient that pushes over the next threshold grows, one that holds back shrinks; delta 0 is straight through."""
  x, g = f32([0.30, 0.36, 0.30, 0.36]), f32([1, 1, -1, -1])  # level 1/3
  value, pull_back = jax.vjp(lambda x: ewgs.discretize(x, 3, 0.5), x)
  np.testing.assert_allclose(value, [1 / 3] * 4, rtol=1e-6)
  error = np.asarray(x) - 1 / 3
  np.testing.assert_allclose(pull_back(g)[0], np.asarray(g) * (1 + 0.5 * np.sign(g) * error), rtol=1e-6)
  np.testing.assert_array_equal(jax.vjp(lambda x: ewgs.discretize(x, 3, 0.0), x)[1](g)[0], g)
  assert math.isclose(float(pull_back(g)[0][0]), 1 - 0.5 / 30, rel_tol=1e-5)
