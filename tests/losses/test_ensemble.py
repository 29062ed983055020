"""Losses of the methods beside CMT-KD: float64 NumPy references, values worked by hand, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import losses

pytestmark = pytest.mark.usefixtures('strict_dtypes')
LABELS = np.array([0, 2, 1, 2, 0, 1], np.int32)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def log_softmax(z):
  z = np.asarray(z, np.float64)
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(z, labels=LABELS):
  return -np.mean(np.take_along_axis(log_softmax(z), labels[..., None], -1))


def check_gradient(loss, x, eps=1e-2, rtol=2e-2):
  """Central differences along random directions."""
  x, loss = jnp.asarray(x), jax.jit(loss)
  gradient = jax.jit(jax.grad(loss))(x)
  for seed in range(3):
    d = jnp.asarray(draw(*x.shape, seed=seed + 10))
    step = jnp.float32(eps)
    numeric = (loss(x + step * d) - loss(x - step * d)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(gradient * d), numeric, rtol=rtol, atol=2e-3)


@pytest.mark.parametrize('reduction, by_hand', [('mean', 2.5), ('sum', 5.0)])
def test_logits_regression(reduction, by_hand):
  # Differences (1, 2) and (-1, 2): squares 5 a sample, 2.5 an element.
  t, z = np.array([[1, 2], [0, 1]], np.float32), np.array([[0, 0], [1, -1]], np.float32)
  assert losses.logits_regression(t, z, reduction) == by_hand
  assert losses.logits_regression(z, z, reduction) == 0
  t, z = draw(6, 3), draw(6, 3, seed=1)
  check_gradient(lambda z: losses.logits_regression(t, z, reduction), z)
  with pytest.raises(ValueError, match='reduction'):
    losses.logits_regression(t, z, 'max')
  with pytest.raises(ValueError, match=r'\[B, C\]'):
    losses.logits_regression(t, z[0])


def test_soft_cross_entropy():
  t, z = draw(6, 3), draw(6, 3, seed=1)
  expected = -np.mean(np.sum(np.exp(log_softmax(t / 2)) * log_softmax(z / 2), -1))
  np.testing.assert_allclose(losses.soft_cross_entropy(t, z, 2.0), expected, rtol=1e-6)
  # p = (1/2, 1/2), q = (1/4, 3/4): (ln 4 + ln 4/3) / 2 = 0.836988.
  half, quarter = np.zeros((1, 2), np.float32), np.log(np.array([[1, 3]], np.float32))
  np.testing.assert_allclose(losses.soft_cross_entropy(half, quarter), 0.836988, atol=1e-6)
  # With a constant target it differs from the KL divergence by a constant.
  np.testing.assert_allclose(
    jax.grad(lambda z: losses.soft_cross_entropy(t, z))(z),
    jax.grad(lambda z: losses.kl_divergence(t, z, 1.0))(z),
    atol=1e-7,
  )
  check_gradient(lambda t: losses.soft_cross_entropy(t, z), t)
  with pytest.raises(ValueError, match=r'\[B, C\]'):
    losses.soft_cross_entropy(t, z[:, :2])


def test_cosine():
  # cos(45 degrees) and cos(180 degrees): mean of 1 - 0.707107 and 2.
  t, x = np.array([[1, 0], [2, 0]], np.float32), np.array([[3, 3], [-1, 0]], np.float32)
  np.testing.assert_allclose(losses.cosine_loss(t, x), (1 - 0.70710678 + 2) / 2, rtol=1e-6)
  t, x = draw(6, 3), draw(6, 3, seed=1)
  np.testing.assert_allclose(losses.cosine_loss(t, x), losses.cosine_loss(3 * t, x / 7), rtol=1e-5)
  np.testing.assert_allclose(losses.cosine_loss(x, x), 0, atol=1e-6)
  check_gradient(lambda x: losses.cosine_loss(t, x), x)
  zero = jnp.zeros((6, 3))
  assert losses.cosine_loss(t, zero) == 1
  np.testing.assert_array_equal(jax.grad(lambda x: losses.cosine_loss(t, x))(zero), 0)
  with pytest.raises(ValueError, match=r'\[B, C\]'):
    losses.cosine_loss(t, x[:2])


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_mean_softmax(temperature):
  z = [draw(6, 3, seed=s) for s in range(3)]
  p = np.mean([np.exp(log_softmax(x / temperature)) for x in z], 0)
  target = losses.mean_softmax(z, temperature)
  np.testing.assert_allclose(np.exp(log_softmax(target / np.float32(temperature))), p, rtol=2e-5)
  np.testing.assert_allclose(
    log_softmax(losses.mean_softmax(z[:1], temperature) / np.float32(temperature)),
    log_softmax(z[0] / temperature),
    atol=1e-5,
  )
  assert np.all(np.isfinite(losses.mean_softmax([1e4 * x for x in z], temperature)))
  with pytest.raises(ValueError, match='n >= 1'):
    losses.mean_softmax([], temperature)
  with pytest.raises(ValueError, match='one shape'):
    losses.mean_softmax([z[0], z[1][:2]], temperature)


def test_naive_target_takes_the_better_network_of_each_sample():
  z = np.array([[[5, 0, 0], [5, 0, 0]], [[0, 5, 0], [0, 0, 5]]], np.float32)
  labels = np.array([0, 2], np.int32)
  np.testing.assert_array_equal(losses.naive_target(z, labels), [[5, 0, 0], [0, 0, 5]])
  tie = np.stack([z[0], z[0][:, [0, 2, 1]]])
  np.testing.assert_array_equal(losses.naive_target(tie, labels[:1].repeat(2)), tie[0])


@pytest.mark.parametrize('scale', [0.3, 3.0, 30.0])
@pytest.mark.parametrize('networks', [2, 3])
def test_linear_weights_reach_the_best_mixture_on_a_grid(networks, scale):
  z = scale * draw(networks, 64, 4, seed=5)
  labels = np.random.default_rng(6).integers(0, 4, 64).astype(np.int32)
  z[0, np.arange(64), labels] += scale  # one network is better than chance, the best mixture is not a corner
  z[1, np.arange(64), labels] += 0.8 * scale
  a = np.linspace(0, 1, 101)
  grid = [(x, 1 - x) for x in a] if networks == 2 else [(x, y, 1 - x - y) for x in a for y in a if x + y <= 1 + 1e-9]
  best = min(cross_entropy(np.tensordot(w, z.astype(np.float64), 1), labels) for w in grid)
  weights = losses.linear_weights(z, labels)
  np.testing.assert_allclose(np.sum(weights), 1, atol=1e-5)
  assert np.all(weights >= 0)
  reached = cross_entropy(np.tensordot(np.asarray(weights, np.float64), z, 1), labels)
  assert reached <= best + 2e-4 * max(1, best)
  np.testing.assert_allclose(losses.linear_target(z, labels), np.tensordot(weights, z, 1), rtol=1e-5, atol=1e-5)


def test_min_logit_target_of_two_is_that_of_cmtkd():
  z = draw(3, 6, 3)
  own = z - np.take_along_axis(z, LABELS[None, :, None], -1)
  np.testing.assert_allclose(losses.min_logit_target(z, LABELS), own.min(0), atol=1e-6)
  np.testing.assert_array_equal(losses.min_logit_target(z[:2], LABELS), losses.min_logit(z[0], z[1], LABELS))


def test_general_ensemble():
  z = draw(3, 6, 3)
  mask = np.array([1, 1, 1, 0, 1, 1], bool)
  f = np.exp(log_softmax(z)) - np.eye(3)[LABELS]
  expected = np.einsum('ibc,jbc->ij', f[:, mask], f[:, mask])
  np.testing.assert_allclose(losses.error_sums(z, LABELS, mask), expected, rtol=1e-5)
  w = np.linalg.solve(expected, np.ones(3))
  np.testing.assert_allclose(losses.general_weights((expected / 5).astype(np.float32)), w / w.sum(), atol=2e-3)
  # Errors of 1 and 3, uncorrelated: weights 3/4 and 1/4.
  np.testing.assert_allclose(losses.general_weights(np.diag([1, 3]).astype(np.float32)), [0.75, 0.25], atol=1e-4)
  same = losses.error_sums(np.stack([z[0]] * 3), LABELS, mask)
  np.testing.assert_allclose(losses.general_weights(same), [1 / 3] * 3, atol=2e-3)
  for errors in (0.0, 1e-30):
    np.testing.assert_allclose(losses.general_weights(np.float32(errors * np.eye(4))), [1 / 4] * 4, rtol=1e-5)

  target = losses.general_target(z, np.array([0.2, 0.3, 0.5], np.float32))
  np.testing.assert_allclose(np.exp(target), np.tensordot([0.2, 0.3, 0.5], np.exp(log_softmax(z)), 1), rtol=1e-5)
  negative = losses.general_target(10 * z, np.array([2, -0.5, -0.5], np.float32))
  assert np.all(np.isfinite(negative))
  np.testing.assert_allclose(np.exp(np.asarray(negative, np.float64)).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('function', [losses.naive_target, losses.linear_target, losses.min_logit_target])
def test_shapes_that_do_not_fit_are_refused(function):
  with pytest.raises(ValueError, match=r'\[M, B, C\]'):
    function(draw(6, 3), LABELS)
  with pytest.raises(ValueError, match='integers'):
    function(draw(2, 6, 3), LABELS.astype(np.float32))
