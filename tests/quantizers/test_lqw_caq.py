"""LQW and CAQ: values, gradients and fits against references, by finite differences, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import models
from cmtkd_jax.quantizers import dequantize, hwgq, lqw_caq
from cmtkd_jax.training import build, optimizer
from cmtkd_jax.training.step import initial_state, train_step
from tests import networks
from tests.quantizers.cases import Case, grid, nearest

ONE = dict(bits=2, unit='one')


def f32(values):
  return jnp.asarray(values, jnp.float32)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lqw_weight(v, p, bits, g):
  s, order = v.std(), np.argsort(p['levels'])
  value, clear = nearest(v / s, p['levels'][order])
  means = np.array([g[value == level].sum() / max((value == level).sum(), 1) for level in p['levels']])
  return s * value, clear, {'x': g, 'levels': s * means}


def caq_activation(v, p, bits, g):
  top = p['step'] * (2**bits - 1)
  return *nearest(v, top * grid(bits)), {'x': g * ((v > 0) & (v < top))}


CASES = {
  'Weight': Case(
    lqw_weight,
    # uneven, and in no order
    parameters=lambda bits: {'levels': np.random.default_rng(bits).permutation(np.linspace(-1.9, 2.2, 2**bits) ** 3)},
    masks=((ONE, {'levels': [-1.0, -0.25, 0.25, 1.0]}, [1] * 11),),
    by_hand=(
      # levels -2, 0, 1, 3: halfway, at 2, the lower one
      (ONE, {'levels': [0, 3, 1, -2]}, [-5, -1.1, -0.9, 0.4, 0.6, 2, 2.1], [-2, -2, 0, 0, 1, 1, 3]),
      # std = 2: levels -1 and 2
      (dict(bits=1), {'levels': [1, -0.5]}, [2, -2, 2, -2], [2, -1, 2, -1]),
      # columns are channels
      (
        dict(bits=1, unit='one', per_channel=True),
        {'levels': [[-1, 1], [4, -2]]},
        [[-3, -3], [0.1, 0.9], [9, 1.1]],
        [[-1, -2], [1, -2], [1, 4]],
      ),
      # two levels that have met
      (ONE, {'levels': [1, 1, -1, -1]}, [-3, -0.1, 0.1, 1, 2], [-1, -1, 1, 1, 1]),
    ),
    refused=(
      (dict(bits=2, unit='max'), ("lqw_caq.weight: unit='max'", "'std', 'one'")),
      (dict(bits=2, gradient='none'), ("lqw_caq.weight: gradient='none'", "'mean', 'sum'")),
    ),
  ),
  'Activation': Case(
    caq_activation,
    parameters=lambda bits: {'step': 1.7 / (2**bits - 1), 'updates': 3},
    masks=((dict(bits=2), {'step': 1 / 3, 'updates': 1}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),),
    # 0.25 / 0.5 goes to even
    by_hand=((dict(bits=2), {'step': 0.5, 'updates': 0}, [-1, 0.25, 0.3, 0.8, 9], [0, 0, 0.5, 1, 1.5]),),
    refused=(
      (dict(bits=2, weighting='median'), ("weighting='median'", "'relative', 'clipped', 'equal'")),
      (dict(bits=2, momentum=1.0), ('lqw_caq.activation: momentum=1.0', '[0, 1)')),
    ),
  ),
}


# LQW.


@pytest.mark.usefixtures('strict_dtypes')
@pytest.mark.parametrize(
  'options', [dict(), dict(unit='one'), dict(per_channel=True), dict(unit='one', bits=1)], ids=str
)
def test_gradient_of_levels_by_finite_differences(options):
  """Away from thresholds the values are linear in the levels, so that differences are exact."""
  quantizer = lqw_caq.Weight(**{'bits': 2, 'gradient': 'sum'} | options)
  w, g = f32(normal(0, 3, 3, 4, 2)), f32(normal(1, 3, 3, 4, 2))
  start = quantizer.init(w)['levels']
  loss = jax.jit(lambda levels: jnp.sum(g * quantizer.fake_quantize(w, {'levels': levels})))
  found, codes = jax.grad(loss)(start), quantizer.quantize(w, {'levels': start}).codes
  h, compared = 2.0**-10, 0
  codes_of = jax.jit(lambda levels: quantizer.quantize(w, {'levels': levels}).codes)
  for i in np.ndindex(start.shape):
    moved = [start.at[i].add(sign * h) for sign in (1, -1)]
    if all((codes_of(levels) == codes).all() for levels in moved):
      np.testing.assert_allclose(found[i], (loss(moved[0]) - loss(moved[1])) / (2 * h), rtol=1e-2, atol=5e-3)
      compared += 1
  assert compared >= start.size / 2
  scale = np.asarray(w).std() if quantizer.unit == 'std' else 1
  own = np.asarray(codes)[..., None] == np.arange(2**quantizer.bits)
  axes = (0, 1, 2) if quantizer.per_channel else (0, 1, 2, 3)
  np.testing.assert_allclose(found, scale * (own * np.asarray(g)[..., None]).sum(axes), rtol=1e-4, atol=1e-5)


def test_gradient_of_levels_by_hand():
  """Codes by value: -2: 1st; 1: 2nd, 3rd; 3: 4th; 0: none. Levels keep the order in which they were given."""
  w, g, levels = f32([-9, 1, 1.2, 9]), f32([1, 2, 4, 8]), f32([0, 3, 1, -2])
  for gradient, expected in (('sum', [0, 8, 6, 1]), ('mean', [0, 8, 3, 1])):
    quantizer = lqw_caq.Weight(**ONE, gradient=gradient)
    found = jax.jit(jax.grad(lambda p, q=quantizer: jnp.sum(g * q.fake_quantize(w, p))))({'levels': levels})
    np.testing.assert_allclose(found['levels'], expected, rtol=1e-6)


def test_levels_start_on_the_grid_of_gaussian_weights():
  w = f32(0.1 * normal(0, 3, 3, 16, 32))
  quantizer = lqw_caq.Weight(2)
  np.testing.assert_allclose(quantizer.init(w)['levels'], np.array([-1.5, -0.5, 0.5, 1.5]) * 0.995687, rtol=1e-6)
  one = lqw_caq.Weight(2, unit='one')
  np.testing.assert_allclose(one.init(w)['levels'], quantizer.init(w)['levels'] * jnp.std(w), rtol=1e-6)
  assert lqw_caq.Weight(3, per_channel=True).init(w)['levels'].shape == (32, 8)
  same = [dequantize(q.quantize(w, q.init(w))) for q in (quantizer, one, lqw_caq.Weight(2, per_channel=True))]
  np.testing.assert_allclose(same[1], same[0], rtol=1e-5)
  np.testing.assert_array_equal(same[2], same[0])
  # The same values as HWGQ's grid, but for its deviation, which is the unbiased one.
  np.testing.assert_allclose(same[0], hwgq.fake_quantize_weight(w, 2), rtol=1e-3)


def test_descent_moves_levels_to_the_means_of_their_weights():
  """Averaged gradients of the squared error are 2 (l_k - mean of its weights): a rate of 1/2 gets there at once."""
  quantizer, w = lqw_caq.Weight(2, unit='one'), f32(normal(0, 400))
  levels = f32([-1.2, -0.3, 0.5, 1.4])
  loss = lambda levels: jnp.sum((quantizer.fake_quantize(w, {'levels': levels}) - w) ** 2)
  moved = levels - 0.5 * jax.grad(loss)(levels)
  codes = np.asarray(quantizer.quantize(w, {'levels': levels}).codes)
  np.testing.assert_allclose(moved, [np.asarray(w)[codes == k].mean() for k in range(4)], rtol=1e-4)


# CAQ.


def by_channel(r, weighting):
  """Float64 twin of `channel_weights`, of positive values [N, C]."""
  m = (r**2).mean(0)
  reference = {'relative': m, 'clipped': np.maximum(m, np.median(m)), 'equal': np.full(m.shape, m.mean())}[weighting]
  return np.divide(1, reference, out=np.zeros_like(m), where=m > 0)


@pytest.mark.usefixtures('strict_dtypes')
@pytest.mark.parametrize('weighting', ['relative', 'clipped', 'equal'])
def test_fits_against_a_reference(weighting):
  """Three steps of the zero-debiased average: biased <- 0.9 biased + 0.1 d, step = biased / (1 - 0.9^t)."""
  for bits in (1, 2, 3, 8):
    quantizer = lqw_caq.Activation(bits, weighting=weighting)
    step, biased, n = 1.3 / (2**bits - 1), 0.0, 2**bits - 1
    state, update = {'step': f32(step), 'updates': f32(0)}, jax.jit(quantizer.update)
    for t in (1, 2, 3):
      x = normal(t, 4, 5, 5, 6) * np.array([0.1, 0.5, 1, 1, 2, 8], np.float32)
      x[..., 0] = -np.abs(x[..., 0])  # a channel that a ReLU leaves at 0
      r = np.maximum(x, 0).reshape(-1, 6).astype(np.float64)
      codes, a = np.round(np.clip(r / step, 0, n)), by_channel(r, weighting)
      biased = 0.9 * biased + 0.1 * (a * (r * codes).mean(0)).sum() / (a * (codes**2).mean(0)).sum()
      state = update(f32(x), state)
      step = biased / (1 - 0.9**t)
      np.testing.assert_allclose(state['step'], step, rtol=1e-4)
      assert state['updates'] == t
      step = float(state['step'])  # so that no rounding decides a code


def test_fits_by_hand():
  """Codes 1, 1 and 0, 1 at step 1; m = 5 and 0.2, median 2.6. d = (2 a + 0.3 b) / (a + 0.5 b)."""
  x, state = f32([[1, 0.2], [3, 0.6]]), {'step': f32(1), 'updates': f32(0)}
  for weighting, a, b in (('relative', 1 / 5, 5), ('clipped', 1 / 5, 1 / 2.6), ('equal', 1, 1)):
    found = lqw_caq.Activation(1, weighting=weighting).update(x, state)
    np.testing.assert_allclose(found['step'], (2 * a + 0.3 * b) / (a + 0.5 * b), rtol=1e-5)
    assert found['updates'] == 1


def test_most_channels_rule_and_not_the_large_one():
  """One channel of 16 has 20 times the deviation: near the best step for the others, relative to their variance."""
  x = f32(normal(0, 512, 16) * np.array([20] + [1] * 15))
  fits = {}
  for weighting in ('relative', 'clipped', 'equal'):
    quantizer = lqw_caq.Activation(2, weighting=weighting, momentum=0.0)
    state, update = quantizer.init(x), jax.jit(quantizer.update)
    for _ in range(40):
      state = update(x, state)
    fits[weighting] = float(state['step'])
  best = hwgq.activation_step(2, step='optimal')  # 0.65, of a Gaussian with deviation 1
  assert abs(fits['relative'] / best - 1) < 0.25 and abs(fits['clipped'] / best - 1) < 0.25
  assert fits['equal'] > 10 * best  # the squared error of the large channel is all that counts
  # And it is a minimum of the sum, as a search finds it.
  r = np.maximum(np.asarray(x, np.float64), 0)
  error = lambda d: (by_channel(r, 'relative') * ((r - d * np.round(np.clip(r / d, 0, 3))) ** 2).mean(0)).sum()
  assert error(fits['relative']) <= 1.01 * min(error(d) for d in fits['relative'] * np.linspace(0.8, 1.25, 46))


def test_a_step_that_codes_everything_as_0_starts_again():
  quantizer, x = lqw_caq.Activation(2), f32(0.01 * normal(0, 64, 8))
  found = quantizer.update(x, {'step': f32(100), 'updates': f32(0)})
  np.testing.assert_allclose(found['step'], quantizer.init(x)['step'], rtol=1e-6)
  nothing = quantizer.update(-jnp.abs(x), {'step': f32(0.5), 'updates': f32(0)})
  assert nothing['step'] == 1


@pytest.mark.integration
def test_digits_are_learned(monkeypatch):
  """120 steps at 2/2 bits: the loss falls by a half, whatever the seed, and the levels move."""
  from sklearn.datasets import load_digits  # a second at the start of every other test

  monkeypatch.setitem(models.MODELS, 'tiny', networks.tiny((16, 2, 'body'), stem=8))
  config = config_lib.default()
  config.method.name, config.quantizer.name = 'single', 'lqw_caq'
  config.student.weight_bits = config.student.activation_bits = 2
  config_lib.check(config)
  config.model.name = 'tiny'
  method = build.create_method(config, 10)
  parts = dict(
    method=method,
    optimizer=optimizer.create(config, method, lambda step: 0.1),
    augment=lambda key, images: images / 6 - 0.8,
  )
  digits = load_digits()
  images, labels = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int32)
  batch = lambda i: {'image': images[64 * (i % 20) :][:64], 'label': labels[64 * (i % 20) :][:64]}
  state = start = jax.jit(functools.partial(initial_state, {}, **parts, seed=0))(batch(0))
  step, losses = jax.jit(functools.partial(train_step, **parts)), []
  for i in range(120):
    state, metrics = step(state, batch(i))
    losses.append(float(metrics['loss']))
  assert np.isfinite(losses).all() and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5]), losses
  moved = jax.tree.map(lambda old, new: float(np.max(np.abs(old - new))), start.params, state.params)
  levels = [value for path, value in jax.tree_util.tree_leaves_with_path(moved) if 'levels' in str(path)]
  assert len(levels) == 1 and levels[0] > 1e-4
