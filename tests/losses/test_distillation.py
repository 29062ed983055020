"""AB, OFD, similarity, DKD, DIST and logit standardization against float64 NumPy, finite differences and by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import losses
from cmtkd_jax.losses.base import FeatureLoss
from cmtkd_jax.losses.dist import pearson

pytestmark = pytest.mark.usefixtures('strict_dtypes')

LABELS = np.array([0, 3, 1, 4, 2, 2], np.int32)


def f32(values):
  return jnp.asarray(values, jnp.float32)


def logit_pair(seed=0):
  rng = np.random.default_rng(seed)
  return [(2 * rng.normal(size=(6, 5))).astype(np.float32) for _ in range(2)]


def map_pair(seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(0.2, 1.3, size=(4, 3, 2, 5)).astype(np.float32) for _ in range(2)]


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def kl(p, q):
  return np.sum(p * np.log(p / q), -1)


# References: of a target and what is compared with it, in float64.


def ab(t, s, margin=1.0):
  total = 0.0
  for a, b in zip(t.ravel(), s.ravel(), strict=True):
    if a <= 0 and b > -margin:
      total += (b + margin) ** 2
    elif a > 0 and b <= margin:
      total += (b - margin) ** 2
  return total / len(t)


def ofd(t, s):
  total = 0.0
  for c in range(t.shape[-1]):
    mean, std = t[..., c].mean(), t[..., c].std()
    mass = 0.5 * math.erfc(mean / std / math.sqrt(2))
    density = math.exp(-0.5 * (mean / std) ** 2) / math.sqrt(2 * math.pi)
    margin = mean - std * density / mass
    for a, b in zip(t[..., c].ravel(), s[..., c].ravel(), strict=True):
      target = max(a, margin)
      if b > target or target > 0:
        total += (b - target) ** 2
  return total / len(t)


def similarity(t, s):
  def matrix(x):
    rows = x.reshape(len(x), -1) @ x.reshape(len(x), -1).T
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

  return np.sum((matrix(t) - matrix(s)) ** 2) / len(t) ** 2


def dkd(t, s, tau, alpha=1.0, beta=8.0):
  total = 0.0
  for z_t, z_s, y in zip(t, s, LABELS, strict=True):
    p, q = softmax(z_t / tau), softmax(z_s / tau)
    binary = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    rest = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
    total += tau**2 * (alpha * binary + beta * rest)
  return total / len(t)


def dist(t, s, tau, beta=1.0, gamma=1.0, epsilon=1e-8):
  def rho(a, b):
    a, b = a - a.mean(), b - b.mean()
    return np.dot(a, b) / (math.sqrt(np.dot(a, a)) * math.sqrt(np.dot(b, b)) + epsilon)

  p, q = softmax(t / tau), softmax(s / tau)
  rows = np.mean([rho(a, b) for a, b in zip(p, q, strict=True)])
  columns = np.mean([rho(a, b) for a, b in zip(p.T, q.T, strict=True)])
  return tau**2 * (beta * (1 - rows) + gamma * (1 - columns))


def standardized(t, s, tau):
  z = lambda x: (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-7)
  return tau**2 * np.mean(kl(softmax(z(t) / tau), softmax(z(s) / tau)))


def fitnet(t, s):
  return np.mean((t - s) ** 2)


def attention(t, s):
  def maps(x):
    q = (x**2).sum(-1).reshape(len(x), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)

  return np.mean((maps(t) - maps(s)) ** 2)


FEATURE = {'ab': ab, 'attention': attention, 'fitnet': fitnet, 'ofd': ofd, 'similarity': similarity}
LOGIT = {
  'dist': dist,
  'dkd': dkd,
  'kl_divergence': lambda t, s, tau: tau**2 * np.mean(kl(softmax(t / tau), softmax(s / tau))),
  'logits_regression': lambda t, s, tau: np.mean((t - s) ** 2),
  'standardized_kd': standardized,
}


def test_every_loss_has_a_reference():
  assert FEATURE.keys() == losses.FEATURE_LOSSES.keys() and LOGIT.keys() == losses.LOGIT_LOSSES.keys()


def check_gradient(loss, *arguments, step=1e-2, tolerance=2e-2):
  """Derivatives along random directions by central differences, of each argument that the gradient reaches."""
  rng, loss = np.random.default_rng(7), jax.jit(loss)
  gradients = jax.jit(jax.grad(lambda a: loss(*a)))(tuple(map(f32, arguments)))
  for i, gradient in enumerate(gradients):
    for _ in range(3):
      d = rng.normal(size=arguments[i].shape).astype(np.float32)
      moved = lambda sign, i=i, d=d: float(
        loss(*(f32(a + sign * step * d) if j == i else f32(a) for j, a in enumerate(arguments)))
      )
      measured = (moved(1) - moved(-1)) / (2 * step)
      found = float(jnp.sum(gradient * d))
      assert abs(found - measured) < tolerance * (abs(measured) + np.linalg.norm(gradient)), (i, found, measured)


@pytest.mark.parametrize('name', FEATURE)
def test_feature_loss(name):
  """Value and gradient; a map is at no distance from itself, but for AB, which wants a margin."""
  loss, (t, s) = jax.jit(losses.FEATURE_LOSSES[name]()), map_pair()
  found = loss(f32(t), f32(s))
  assert found.dtype == jnp.float32 and found.shape == ()
  np.testing.assert_allclose(found, FEATURE[name](t.astype(np.float64), s.astype(np.float64)), rtol=2e-5)
  if name in ('ab', 'ofd'):  # the teacher's side has steps: its sign, its margin
    check_gradient(lambda s: loss(f32(t), s), s, step=1e-3)
  else:
    check_gradient(loss, t, s, step=3e-3)
  if name != 'ab':
    np.testing.assert_allclose(loss(f32(np.maximum(t, 0)), f32(np.maximum(t, 0))), 0, atol=1e-6)
    assert loss(f32(t), f32(t)) < 0.2 * found  # OFD: what lies under the margin


@pytest.mark.parametrize('name', LOGIT)
@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_logit_loss(name, tau):
  """Value and gradient; logits are at no distance from themselves."""
  loss, (t, s) = jax.jit(functools.partial(losses.LOGIT_LOSSES[name](), temperature=tau)), logit_pair()
  found = loss(f32(t), f32(s), jnp.asarray(LABELS))
  assert found.dtype == jnp.float32 and found.shape == ()
  np.testing.assert_allclose(found, LOGIT[name](t.astype(np.float64), s.astype(np.float64), tau), rtol=2e-5)
  check_gradient(lambda t, s: loss(t, s, jnp.asarray(LABELS)), t, s)
  np.testing.assert_allclose(loss(f32(t), f32(t), jnp.asarray(LABELS)), 0, atol=2e-5)
  zero = jax.jit(jax.grad(lambda s: loss(f32(t), s, jnp.asarray(LABELS))))(f32(t))
  np.testing.assert_allclose(zero, 0, atol=2e-5)


def test_ab_by_hand():
  """One example; m = 1. (t, s) = (1, 3): beyond the margin, 0; (1, 0.5): 0.25; (-1, 0): 1; (0, -2): 0."""
  t, s = (f32(x).reshape(1, 1, 1, 4) for x in ([1, 1, -1, 0], [3, 0.5, 0, -2]))
  np.testing.assert_allclose(losses.activation_boundary_loss(t, s), 1.25)


def test_ab_looks_at_the_sign_of_the_teacher_alone():
  t, s = map_pair()
  loss = losses.activation_boundary_loss
  np.testing.assert_allclose(loss(f32(t), f32(s)), loss(f32(7 * t), f32(s)), rtol=1e-6)
  assert not np.any(jax.grad(loss)(f32(t), f32(s)))


def test_overhaul_margin_by_hand():
  """N(0, 1): -phi(0) / (1/2) = -0.797885. Mean 4: the negative part has mass 3e-5 <= 0.001, so -3 sigma."""
  margin = losses.overhaul_margin(f32([0, 0, 4]), f32([1, 2, 1]))
  np.testing.assert_allclose(margin, [-0.797885, -1.595769, -3], rtol=1e-5)


@pytest.mark.parametrize(
  'function, shapes, match',
  [
    (losses.overhaul_margin, ((2,), (3,)), r'both be \[C\]'),
    (losses.overhaul_margin, ((2, 2), (2, 2)), r'both be \[C\]'),
    (losses.similarity_matrix, ((2, 3),), r'\[B, H, W, C\]; got \(2, 3\)'),
    (losses.similarity_loss, ((2, 1, 1, 3), (2, 3)), r'\[B, H, W, C\]; got \(2, 3\)'),
    (losses.similarity_loss, ((2, 1, 1, 3), (3, 1, 1, 3)), 'equal B'),
    (losses.standardize, ((3,),), 'C >= 2'),
    (losses.standardize, ((3, 1),), 'C >= 2'),
  ],
)
def test_wrong_shapes_are_refused(function, shapes, match):
  with pytest.raises(ValueError, match=match):
    function(*map(jnp.ones, shapes))


def test_overhaul_margin_is_the_mean_of_what_is_negative():
  x = np.random.default_rng(0).normal(0.4, 1.7, 400000)
  margin = losses.overhaul_margin(f32([0.4]), f32([1.7]))
  np.testing.assert_allclose(margin, x[x < 0].mean(), rtol=5e-3)


def test_overhaul_by_hand():
  """m = -1; (t, s): (2, 1) -> 1; (-3, -2): t' = -1, both off -> 0; (-3, 0): s above -> 1; (-0.5, -0.8) -> 0."""
  t, s = (f32(x).reshape(1, 1, 1, 4) for x in ([2, -3, -3, -0.5], [1, -2, 0, -0.8]))
  np.testing.assert_allclose(losses.overhaul_loss(t, s, f32([-1] * 4)), 2)


def test_no_gradient_reaches_the_margin_of_overhaul():
  t, s = map(f32, map_pair())
  margin = losses.overhaul_margin(t.mean((0, 1, 2)), t.std((0, 1, 2)))
  expected = jax.grad(losses.overhaul_loss)(t, s, margin)
  np.testing.assert_allclose(jax.grad(losses.FEATURE_LOSSES['ofd']())(t, s), expected, rtol=1e-5, atol=1e-7)


def test_similarity_does_not_see_orthogonal_maps_or_scale():
  """The matrix of inner products is the same under a rotation of all features, and its rows have length 1."""
  t, s = map_pair()
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
  turned = (t.reshape(4, 30) @ rotation).reshape(t.shape)
  np.testing.assert_allclose(losses.similarity_loss(f32(t), f32(3 * turned)), 0, atol=1e-6)
  assert losses.similarity_loss(f32(t), f32(s)) > 1e-3
  np.testing.assert_array_equal(losses.similarity_matrix(f32(np.zeros((2, 1, 1, 3)))), 0)
  wider = np.concatenate([s, s], -1)  # channels may differ
  np.testing.assert_allclose(
    losses.similarity_loss(f32(t), f32(wider)), losses.similarity_loss(f32(t), f32(s)), rtol=1e-4
  )


def test_dkd_is_kd_where_its_weights_say_so():
  """alpha = 1, and beta the teacher's probability of the other classes: the two parts of the KL divergence."""
  t, s = logit_pair()
  for z_t, z_s, y in zip(t, s, LABELS, strict=True):
    beta = float(1 - softmax(z_t / 2)[y])
    pair = f32(z_t[None]), f32(z_s[None])
    np.testing.assert_allclose(
      losses.decoupled_loss(*pair, jnp.asarray([y]), 2.0, 1.0, beta),
      losses.kl_divergence(*pair, 2.0),
      rtol=1e-4,
      atol=1e-6,
    )


def test_dkd_with_a_certain_teacher_is_finite():
  t = f32([[100, -100, 0], [0, 0, 0]])
  loss = lambda t, s: losses.decoupled_loss(t, s, jnp.asarray([0, 1], jnp.int32), 1.0)
  value, gradient = jax.jit(jax.value_and_grad(loss, 1))(t, -t)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_dkd_takes_no_labels_but_classes():
  with pytest.raises(ValueError, match='labels must be integers'):
    losses.decoupled_loss(*map(f32, logit_pair()), f32(LABELS), 2.0)


def test_pearson():
  a, b = logit_pair()
  expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
  np.testing.assert_allclose(pearson(f32(a), f32(b), 1), expected, rtol=1e-5)
  np.testing.assert_allclose(pearson(f32(a), f32(3 * a + 7), 1), 1, rtol=1e-5)  # no shift, no scale
  np.testing.assert_allclose(pearson(f32(a), f32(-a), 0), -1, rtol=1e-5)
  np.testing.assert_array_equal(pearson(f32(a), f32(np.ones_like(b)), 1), 0)


@pytest.mark.parametrize('epsilon', [1e-8, 0.0])
def test_dist_of_constant_predictions_is_finite(epsilon):
  """A new network says the same of every example, and all classes are alike."""
  t, _ = logit_pair()
  loss = jax.jit(lambda s: losses.LOGIT_LOSSES['dist'](epsilon=epsilon)(f32(t), s, jnp.asarray(LABELS), 2.0))
  value, gradient = jax.value_and_grad(loss)(jnp.zeros((6, 5), jnp.float32))
  np.testing.assert_allclose(value, 8)  # tau^2 (1 + 1)
  assert np.isfinite(gradient).all()
  for scale in (1e-20, 30, 300):  # predictions that hardly vary, and classes that nothing is predicted to be
    assert np.isfinite(jax.grad(loss)(f32(scale * t))).all()


@pytest.mark.parametrize('epsilon, value', [(1e-8, 1 / 3), (0.0, 0.0)])
def test_dist_of_confident_predictions(epsilon, value):
  """Three examples, surely of class 0, 1 and 1: class 2 has less than 1e-6, so its ||a|| ||b|| is about 4e-13.

  Of equal networks, rho of the examples and of classes 0 and 1 is 1; that of class 2 is 4e-13 / (4e-13 + epsilon).
  """
  loss = jax.jit(lambda t, s: losses.LOGIT_LOSSES['dist'](epsilon=epsilon)(t, s, jnp.asarray([0, 1, 1]), 1.0))
  t = np.array([[15.0, 0, -1], [0, 15, 1], [0, 15, 0]])
  np.testing.assert_allclose(loss(f32(t), f32(t)), value, atol=1e-4)
  s = t + np.array([[-9, 1, 0.5], [2, -8, 0.3], [3, -4, 1]])  # a student that is less sure
  reference = lambda s: dist(t, s, 1.0, epsilon=epsilon)
  assert abs(reference(s) - dist(t, s, 1.0, epsilon=1e-8 - epsilon)) > 0.05
  np.testing.assert_allclose(loss(f32(t), f32(s)), reference(s), rtol=1e-4)
  slopes = np.zeros_like(s)
  for i in np.ndindex(s.shape):
    step = np.zeros_like(s)
    step[i] = 1e-6
    slopes[i] = (reference(s + step) - reference(s - step)) / 2e-6
  np.testing.assert_allclose(jax.grad(loss, 1)(f32(t), f32(s)), slopes, rtol=1e-3, atol=1e-3 * np.abs(slopes).max())


@pytest.mark.parametrize('change', [lambda z: z + 5, lambda z: 0.1 * z, lambda z: 30 * z - 2])
def test_standardization_sees_neither_shift_nor_scale(change):
  t, s = logit_pair()
  np.testing.assert_allclose(losses.standardize(f32(change(s))), losses.standardize(f32(s)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    losses.standardized_kl(f32(change(t)), f32(s), 2.0), losses.standardized_kl(f32(t), f32(s), 2.0), rtol=1e-4
  )


def test_standardization_by_hand():
  """Of 1, 2, 3: mean 2, unbiased deviation 1. Of equal logits: zeros, without a gradient."""
  np.testing.assert_allclose(losses.standardize(f32([[1, 2, 3]])), [[-1, 0, 1]], atol=1e-6)
  loss = jax.jit(jax.value_and_grad(losses.standardized_kl, 1))
  value, gradient = loss(f32([[1, 2, 3]]), f32([[4, 4, 4]]), 1.0)
  assert np.isfinite(value) and not np.any(gradient)


@pytest.mark.parametrize('name', FEATURE)
def test_shapes_are_checked_of_maps(name):
  t, s = map_pair()
  with pytest.raises(ValueError, match=r'\(4, 3, 2, 5\)'):
    losses.FEATURE_LOSSES[name]()(f32(t), f32(s[:3]))


@pytest.mark.parametrize('name', LOGIT)
def test_shapes_are_checked_of_logits(name):
  t, s = logit_pair()
  with pytest.raises(ValueError, match=r'\(6, 5\)'):
    losses.LOGIT_LOSSES[name]()(f32(t), f32(s[:, :4]), jnp.asarray(LABELS), 2.0)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: losses.FEATURE_LOSSES['ab'](margin=0.0), 'margin=0.0 must be positive'),
    (lambda: losses.FEATURE_LOSSES['ofd'](weight=-1.0), 'weight=-1.0 must not be negative'),
    (lambda: losses.FEATURE_LOSSES['fitnet'](adaptor='linear'), "adaptor='linear' is not one of 'identity', 'conv'"),
    (lambda: losses.LOGIT_LOSSES['logits_regression'](reduction='max'), "reduction='max' is not one of 'mean', 'sum'"),
    (lambda: losses.LOGIT_LOSSES['dkd'](beta=-8.0), 'beta=-8.0 must not be negative'),
  ],
)
def test_options_are_checked(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_maps_that_there_are_not():
  with pytest.raises(TypeError, match="maps='prequantizer' is not one of quantized, pre_quantizer"):
    type('Own', (FeatureLoss,), {'maps': 'prequantizer'})
