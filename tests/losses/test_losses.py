"""Losses and eq. (1) against float64 NumPy references, values worked by hand, and finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import losses
from cmtkd_jax.methods.shared_knowledge import importance, shared_knowledge

pytestmark = pytest.mark.usefixtures('strict_dtypes')

ATTENTION_NORMS = ['mean_square', 'sum_square', 'l2', 'l1']
FITNET_NORMS = ['mean_square', 'mean_abs', 'l2', 'l1']

# Compiled, as in training.
attention_loss = jax.jit(losses.attention_loss, static_argnames=('p', 'norm'))
attention_map = jax.jit(losses.attention_map, static_argnames='p')
cross_entropy = jax.jit(losses.cross_entropy, static_argnames=('temperature', 'smoothing'))
fitnet_loss = jax.jit(losses.fitnet_loss, static_argnames='norm')
kl_divergence = jax.jit(losses.kl_divergence, static_argnames='temperature')
min_logit = jax.jit(losses.min_logit)
importance = jax.jit(importance)
shared_knowledge = jax.jit(shared_knowledge)


def normal(seed, *shape, scale=1.0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def f32(values):
  return jnp.asarray(values, jnp.float32)


def f64(x):
  return np.asarray(x).astype(np.float64)


def assert_close(actual, expected, rtol=2e-5, atol=1e-6):
  np.testing.assert_allclose(f64(actual), expected, rtol=rtol, atol=atol)


def finite_difference(reference, arguments, index, step=1e-6):
  """Central differences of a float64 reference in one of its arguments."""
  arguments = [f64(a) for a in arguments]
  x = arguments[index]
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    original = x[i]
    x[i] = original + step
    above = reference(*arguments)
    x[i] = original - step
    below = reference(*arguments)
    x[i] = original
    gradient[i] = (above - below) / (2 * step)
  return gradient


def assert_gradients(loss, reference, *arguments):
  """The gradient of `loss` in every argument agrees with the finite differences of `reference`."""
  gradients = jax.jit(jax.grad(loss, argnums=tuple(range(len(arguments)))))(*arguments)
  for index, gradient in enumerate(gradients):
    expected = finite_difference(reference, arguments, index)
    assert np.abs(expected).max() > 1e-4  # an expectation of zero would prove nothing
    assert_close(gradient, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


# References: float64, loops over the batch, no shared code with the library.


def reference_softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def reference_cross_entropy(logits, labels, temperature):
  return np.mean([-np.log(reference_softmax(z / temperature)[c]) for z, c in zip(logits, labels)])


def reference_kl(target_logits, logits, temperature):
  total = 0.0
  for t, z in zip(target_logits, logits):
    p, q = reference_softmax(t / temperature), reference_softmax(z / temperature)
    total += sum(p_j * math.log(p_j / q_j) for p_j, q_j in zip(p, q))
  return temperature * temperature * total / len(logits)


def reference_min_logit(teacher_logits, student_logits, labels):
  rows = zip(teacher_logits, student_logits, labels)
  return np.array([[min(t_j - t[c], s_j - s[c]) for t_j, s_j in zip(t, s)] for t, s, c in rows])


def reference_attention_map(features, p):
  rows = []
  for sample in features:
    q = np.array([np.sum(np.abs(pixel) ** p) for row in sample for pixel in row])
    rows.append(q / np.linalg.norm(q))
  return np.array(rows)


def reference_attention_loss(teacher, student, p, norm):
  difference = reference_attention_map(teacher, p) - reference_attention_map(student, p)
  per_sample = {
    'mean_square': lambda d: np.sum(d * d) / d.size,
    'sum_square': lambda d: np.sum(d * d),
    'l2': np.linalg.norm,
    'l1': lambda d: np.sum(np.abs(d)),
  }[norm]
  return np.mean([per_sample(d) for d in difference])


def reference_fitnet_loss(teacher, student, norm):
  per_sample = {
    'mean_square': lambda d: np.sum(d * d) / d.size,
    'mean_abs': lambda d: np.sum(np.abs(d)) / d.size,
    'l2': np.linalg.norm,
    'l1': lambda d: np.sum(np.abs(d)),
  }[norm]
  return np.mean([per_sample((t - s).ravel()) for t, s in zip(teacher, student)])


# Cross entropy.


def test_cross_entropy_worked_by_hand():
  # softmax(0, log 3) = (1/4, 3/4): label 0 costs log 4, label 1 costs log 4/3, the mean is log(16/3) / 2.
  logits = f32([[0, math.log(3)], [0, math.log(3)]])
  assert_close(cross_entropy(logits, jnp.array([0, 1])), 0.836988)
  # Logits twice as large at tau = 2 are the same distribution, and no tau^2 is applied.
  assert_close(cross_entropy(logits + logits, jnp.array([0, 1]), 2.0), 0.836988)


@pytest.mark.parametrize('temperature', [1.0, 0.5, 3])
def test_cross_entropy_against_reference(temperature):
  logits, labels = normal(0, 5, 7, scale=3.0), np.array([6, 0, 3, 3, 1])
  expected = reference_cross_entropy(f64(logits), labels, temperature)
  assert_close(cross_entropy(logits, jnp.asarray(labels), temperature), expected)
  assert_gradients(
    lambda z: cross_entropy(z, jnp.asarray(labels), temperature),
    lambda z: reference_cross_entropy(z, labels, temperature),
    logits,
  )


def test_label_smoothing_worked_by_hand():
  # p = (1/4, 3/4), label 1, target (0.1, 0.9): 0.1 log 4 + 0.9 log 4/3.
  assert_close(cross_entropy(f32([[0, math.log(3)]]), jnp.array([1]), smoothing=0.2), 0.397543)


def test_label_smoothing_against_a_soft_target():
  logits, labels = normal(3, 5, 7, scale=3.0), np.array([6, 0, 3, 3, 1])

  def reference(z):
    target = 0.7 * np.eye(7)[labels] + 0.3 / 7
    return np.mean(np.log(np.sum(np.exp(z / 2), 1)) - np.sum(target * z / 2, 1))

  assert_close(cross_entropy(logits, jnp.asarray(labels), 2.0, 0.3), reference(f64(logits)))
  assert_gradients(lambda z: cross_entropy(z, jnp.asarray(labels), 2.0, 0.3), reference, logits)


def test_cross_entropy_ignores_a_constant_added_to_the_logits():
  logits, labels = normal(1, 4, 6), jnp.array([0, 5, 2, 2])
  shift = f32([[50], [-80], [3], [0]])
  assert_close(cross_entropy(logits + shift, labels, 2.0), f64(cross_entropy(logits, labels, 2.0)), rtol=1e-5)


def test_cross_entropy_of_extreme_logits_is_finite():
  logits, labels = f32([[0, 1000]]), jnp.array([0])
  assert_close(cross_entropy(logits, labels), 1000)
  assert_close(jax.grad(cross_entropy)(logits, labels), [[-1, 1]])


def test_cross_entropy_of_a_label_out_of_range_is_zero():
  logits = f32([[0, 0], [0, 0], [0, 0]])
  assert_close(cross_entropy(logits, jnp.array([-1, 2, 1])), math.log(2) / 3)


@pytest.mark.parametrize(
  'logits_shape, labels, match',
  [
    ((2, 3, 4), [0, 1], 'must be'),
    ((2, 3), [0, 1, 2], 'must be'),
    ((2, 3), [[0], [1]], 'must be'),
    ((2, 3), [0.0, 1.0], 'integers'),
  ],
)
def test_cross_entropy_rejects(logits_shape, labels, match):
  with pytest.raises(ValueError, match=match):
    cross_entropy(jnp.zeros(logits_shape), jnp.asarray(labels))


# KL divergence.


def test_kl_divergence_worked_by_hand():
  # p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = log(2)/2 + log(2/3)/2 = log(4/3)/2 = 0.143841.
  # The other direction is log(1/2)/4 + 3 log(3/2)/4 = 0.130812.
  even, skewed = f32([[0, 0]]), f32([[0, math.log(3)]])
  assert_close(kl_divergence(even, skewed, 1.0), 0.143841)
  assert_close(kl_divergence(skewed, even, 1.0), 0.130812)
  # At tau = 2 logits twice as large are the same q; tau^2 = 4 multiplies the divergence.
  assert_close(kl_divergence(even, skewed + skewed, 2.0), 0.575364)
  # The batch is averaged: a second sample without divergence halves the value.
  assert_close(kl_divergence(jnp.zeros((2, 2)), jnp.concatenate([skewed, even]), 1.0), 0.143841 / 2)


@pytest.mark.parametrize('temperature', [1.0, 0.5, 4])
def test_kl_divergence_against_reference(temperature):
  target, logits = normal(2, 4, 6, scale=2.0), normal(3, 4, 6, scale=2.0)
  expected = reference_kl(f64(target), f64(logits), temperature)
  assert_close(kl_divergence(target, logits, temperature), expected)
  assert_gradients(
    lambda t, z: kl_divergence(t, z, temperature),
    lambda t, z: reference_kl(t, z, temperature),
    target,
    logits,
  )


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_kl_divergence_gradient_in_closed_form(temperature):
  # d/dz_b of tau^2 mean_b KL(p || q) is tau (q_b - p_b) / B.
  target, logits = normal(4, 3, 5), normal(5, 3, 5)
  p = np.array([reference_softmax(t / temperature) for t in f64(target)])
  q = np.array([reference_softmax(z / temperature) for z in f64(logits)])
  gradient = jax.grad(kl_divergence, argnums=1)(target, logits, temperature)
  assert_close(gradient, temperature * (q - p) / 3, atol=1e-7)


def test_kl_divergence_is_zero_at_equality_and_positive_elsewhere():
  logits = normal(6, 4, 6, scale=3.0)
  shifted = logits + f32([[4], [-2], [0], [9]])
  assert_close(kl_divergence(logits, logits, 2.0), 0, atol=1e-7)
  assert_close(kl_divergence(shifted, logits, 2.0), 0, atol=1e-6)
  assert_close(jax.grad(kl_divergence, argnums=1)(logits, logits, 2.0), np.zeros((4, 6)), atol=1e-7)
  for seed in range(10, 15):
    assert kl_divergence(normal(seed, 4, 6), logits, 2.0) > 0.1


def test_kl_divergence_ignores_a_constant_added_to_either_logits():
  target, logits, shift = normal(7, 3, 5), normal(8, 3, 5), f32([[20], [-30], [5]])
  expected = f64(kl_divergence(target, logits, 2.0))
  assert_close(kl_divergence(target + shift, logits, 2.0), expected, rtol=1e-4)
  assert_close(kl_divergence(target, logits + shift, 2.0), expected, rtol=1e-4)


def test_kl_divergence_of_extreme_logits_is_finite():
  # p = (1/2, 1/2), log q = (-1000, 0): KL = -log 2 + 1000/2. q_0 itself underflows.
  target, logits = f32([[0, 0]]), f32([[0, 1000]])
  assert_close(kl_divergence(target, logits, 1.0), 500 - math.log(2))
  assert_close(jax.grad(kl_divergence, argnums=1)(target, logits, 1.0), [[-0.5, 0.5]])
  # With the roles exchanged p_0 underflows: 0 * log 0 counts as 0, and KL = log 2.
  assert_close(kl_divergence(logits, target, 1.0), math.log(2))
  assert np.isfinite(jax.grad(kl_divergence)(logits, target, 1.0)).all()


@pytest.mark.parametrize('shapes', [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,))])
def test_kl_divergence_rejects(shapes):
  with pytest.raises(ValueError, match=r'\[B, C\]'):
    kl_divergence(jnp.zeros(shapes[0]), jnp.zeros(shapes[1]), 1.0)


# Minimum logits.


def test_min_logit_worked_by_hand():
  # c = 0: (1, 3, 2) - 1 = (0, 2, 1) and (2, 1, 5) - 2 = (0, -1, 3); their minimum is (0, -1, 1).
  # c = 2: (1, 3, 2) - 2 = (-1, 1, 0) and (2, 1, 5) - 5 = (-3, -4, 0); their minimum is (-3, -4, 0).
  teacher, student = f32([[1, 3, 2], [1, 3, 2]]), f32([[2, 1, 5], [2, 1, 5]])
  expected = [[0, -1, 1], [-3, -4, 0]]
  np.testing.assert_array_equal(min_logit(teacher, student, jnp.array([0, 2])), expected)


def test_min_logit_against_reference():
  teacher, student, labels = normal(20, 6, 5), normal(21, 6, 5), np.array([0, 1, 2, 3, 4, 4])
  z = min_logit(teacher, student, jnp.asarray(labels))
  assert_close(z, reference_min_logit(f64(teacher), f64(student), labels))
  np.testing.assert_array_equal(np.asarray(z)[np.arange(6), labels], 0)
  weight = normal(22, 6, 5)
  assert_gradients(
    lambda t, s: jnp.sum(weight * min_logit(t, s, jnp.asarray(labels))),
    lambda t, s: np.sum(f64(weight) * reference_min_logit(t, s, labels)),
    teacher,
    student,
  )


def test_min_logit_ignores_a_shift_of_either_logits():
  teacher, student, labels = normal(23, 3, 5), normal(24, 3, 5), jnp.array([4, 0, 2])
  shift = f32([[7], [-11], [2]])
  expected = f64(min_logit(teacher, student, labels))
  assert_close(min_logit(teacher + shift, student, labels), expected, atol=1e-5)
  assert_close(min_logit(teacher, student + shift, labels), expected, atol=1e-5)


def test_min_logit_splits_the_gradient_in_half_at_a_tie():
  # Each network gets half of (G - [j = c] sum G): G = (1, 2, 4), c = 1 gives (1, -5, 4) / 2.
  logits, labels, g = normal(25, 1, 3), jnp.array([1]), f32([[1, 2, 4]])
  gradients = jax.grad(lambda t, s: jnp.sum(g * min_logit(t, s, labels)), argnums=(0, 1))(logits, logits)
  for gradient in gradients:
    assert_close(gradient, [[0.5, -2.5, 2.0]])


def test_gradients_of_the_logit_losses_hold_no_scatter():
  labels = jnp.array([0, 1])

  def loss(t, s):
    z = min_logit(t, s, labels)
    return cross_entropy(s, labels) + kl_divergence(z, s, 2.0) + kl_divergence(z, t, 2.0)

  program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(normal(26, 2, 3), normal(27, 2, 3)))
  assert 'reduce_sum' in program  # the text is the program
  assert 'scatter' not in program


@pytest.mark.parametrize(
  'teacher_shape, student_shape, labels, match',
  [
    ((2, 3), (2, 4), [0, 1], r'both be \[B, C\]; got \(2, 3\) and \(2, 4\)'),
    ((2, 3), (1, 3), [0, 1], r'both be \[B, C\]'),
    ((3,), (3,), [0, 1, 2], r'both be \[B, C\]'),
    ((2, 3), (2, 3), [0], 'labels'),
    ((2, 3), (2, 3), [0.0, 1.0], 'integers'),
  ],
)
def test_min_logit_rejects(teacher_shape, student_shape, labels, match):
  with pytest.raises(ValueError, match=match):
    min_logit(jnp.zeros(teacher_shape), jnp.zeros(student_shape), jnp.asarray(labels))


# Attention.


def test_attention_map_worked_by_hand():
  # One channel, p = 2: squares (1, 4, 4, 4) have norm sqrt(1 + 16 + 16 + 16) = 7. Order is row by row.
  features = f32([1, -2, 2, -2]).reshape(1, 2, 2, 1)
  assert_close(attention_map(features), [[1 / 7, 4 / 7, 4 / 7, 4 / 7]])
  # Two channels, p = 1: |1| + |-2| = 3 and |-4| + |0| = 4 have norm 5.
  features = f32([[1, -2], [-4, 0]]).reshape(1, 1, 2, 2)
  assert_close(attention_map(features, p=1), [[0.6, 0.8]])
  # The same with p = 2: 1 + 4 = 5 and 16, norm sqrt(281).
  assert_close(attention_map(features, p=2), [[5 / math.sqrt(281), 16 / math.sqrt(281)]])


@pytest.mark.parametrize('norm, expected', [('mean_square', 0.4), ('sum_square', 0.8), ('l2', 0.894427), ('l1', 1.2)])
def test_attention_loss_worked_by_hand(norm, expected):
  # Maps (0.6, 0.8) and (1, 0) differ by (-0.4, 0.8): squares 0.16 + 0.64.
  teacher = f32([math.sqrt(3), 2]).reshape(1, 1, 2, 1)
  student = f32([5, 0]).reshape(1, 1, 2, 1)
  assert_close(attention_loss(teacher, student, norm=norm), expected)
  # The batch is averaged: a second sample without a difference halves the value.
  teacher = jnp.concatenate([teacher, student])
  student = jnp.concatenate([student, student])
  assert_close(attention_loss(teacher, student, norm=norm), expected / 2)


def test_attention_defaults_are_p_2_and_mean_square():
  teacher, student = normal(30, 2, 3, 2, 4), normal(31, 2, 3, 2, 4)
  expected = reference_attention_loss(f64(teacher), f64(student), 2, 'mean_square')
  assert_close(attention_loss(teacher, student), expected)


@pytest.mark.parametrize('p', [0.5, 1, 2, 3, 2.5])
def test_attention_map_against_reference(p):
  features = normal(32, 2, 3, 2, 4)
  assert_close(attention_map(features, p), reference_attention_map(f64(features), p))


@pytest.mark.parametrize('p, norm', [(2, norm) for norm in ATTENTION_NORMS] + [(1, 'l1'), (3, 'l2')])
def test_attention_loss_against_reference(p, norm):
  # Channel counts differ, and H differs from W.
  teacher, student = normal(33, 2, 3, 2, 4), normal(34, 2, 3, 2, 3)
  expected = reference_attention_loss(f64(teacher), f64(student), p, norm)
  assert_close(attention_loss(teacher, student, p, norm), expected)
  assert_gradients(
    lambda t, s: attention_loss(t, s, p, norm),
    lambda t, s: reference_attention_loss(t, s, p, norm),
    teacher,
    student,
  )


@pytest.mark.parametrize('norm', ATTENTION_NORMS)
def test_attention_loss_ignores_the_scale_of_either_map(norm):
  teacher, student = normal(35, 2, 3, 2, 4), normal(36, 2, 3, 2, 3)
  expected = f64(attention_loss(teacher, student, norm=norm))
  assert expected > 1e-3
  for scale in (1e-6, 3.0, 1e6):
    assert_close(attention_loss(teacher * scale, student, norm=norm), expected, rtol=1e-4)
    assert_close(attention_loss(teacher, student * -scale, norm=norm), expected, rtol=1e-4)


@pytest.mark.parametrize('norm', ATTENTION_NORMS)
def test_attention_loss_and_its_gradient_are_zero_at_equality(norm):
  features = normal(37, 2, 3, 2, 3)
  # Not compiled: the compiler may round the two maps apart.
  value, gradient = jax.value_and_grad(losses.attention_loss, argnums=(0, 1))(features, features, norm=norm)
  assert value == 0
  for g in gradient:
    np.testing.assert_array_equal(g, np.zeros(features.shape))


@pytest.mark.parametrize('p, norm', [(2, 'mean_square'), (2, 'l2'), (2, 'l1'), (1, 'l1'), (0.5, 'l2')])
def test_attention_of_an_all_zero_map(p, norm):
  # Sample 0 of the teacher is all zero; sample 1 is not, and must be served as if it were alone.
  teacher, student = np.array(normal(38, 2, 3, 2, 4)), normal(39, 2, 3, 2, 3)
  teacher[0] = 0
  teacher = jnp.asarray(teacher)

  @jax.jit
  def compute(teacher, student):
    gradient = jax.grad(lambda t, s: attention_loss(t, s, p, norm), argnums=(0, 1))
    return attention_map(teacher, p), *gradient(teacher, student), gradient(teacher[1:], student[1:])[0]

  a, to_teacher, to_student, alone = map(np.asarray, compute(teacher, student))
  np.testing.assert_array_equal(a[0], np.zeros(6))
  np.testing.assert_array_equal(to_teacher[0], np.zeros((3, 2, 4)))
  assert np.isfinite(to_student).all()
  assert np.abs(alone).max() > 1e-3
  assert_close(to_teacher[1], f64(alone[0]) / 2)


@pytest.mark.parametrize('norm', ATTENTION_NORMS)
def test_attention_of_two_all_zero_maps(norm):
  zeros = jnp.zeros((2, 3, 2, 3))
  value, gradient = jax.value_and_grad(attention_loss, argnums=(0, 1))(zeros, zeros, norm=norm)
  assert value == 0
  for g in gradient:
    np.testing.assert_array_equal(g, np.zeros(zeros.shape))


@pytest.mark.parametrize('p', [0.5, 1, 1.5, 2, 3])
def test_attention_gradient_is_zero_where_an_element_is_zero(p):
  features = np.array(normal(40, 2, 3, 2, 4))
  features[0, 0, 1, 2] = 0
  features[1, 1, 0] = 0
  student = normal(41, 2, 3, 2, 3)
  gradient = jax.jit(jax.grad(lambda f: attention_loss(f, student, p)))(jnp.asarray(features))
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(np.asarray(gradient) != 0, features != 0)


@pytest.mark.parametrize('scale', [1e-9, 1e-10, 1e-11, 1e-12, 1e-20])
def test_attention_gradient_stays_finite_where_the_norm_underflows(scale):
  features = normal(42, 2, 3, 2, 3)
  value, gradient = jax.value_and_grad(attention_loss)(features * scale, features)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('student_shape', [(2, 4, 3, 5), (2, 3, 2, 5), (1, 3, 4, 5), (2, 12, 5)])
def test_attention_loss_rejects_shapes(student_shape):
  with pytest.raises(ValueError, match='equal B, H and W'):
    attention_loss(jnp.ones((2, 3, 4, 5)), jnp.ones(student_shape))


@pytest.mark.parametrize('p', [0, -1, -0.5, math.nan])
def test_attention_rejects_p(p):
  with pytest.raises(ValueError, match='p must be > 0'):
    attention_map(jnp.ones((1, 2, 2, 1)), p)
  with pytest.raises(ValueError, match='p must be > 0'):
    attention_loss(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)), p)


def test_attention_rejects_rank_and_norm():
  with pytest.raises(ValueError, match=r'\[B, H, W, C\]'):
    attention_map(jnp.ones((2, 2, 1)))
  with pytest.raises(ValueError, match="mean_square, sum_square, l2, l1; got 'L2'"):
    attention_loss(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)), norm='L2')


# FitNets.


@pytest.mark.parametrize('norm, expected', [('mean_square', 25 / 8), ('mean_abs', 7 / 8), ('l2', 5 / 2), ('l1', 7 / 2)])
def test_fitnet_loss_worked_by_hand(norm, expected):
  # Sample 0 differs by (3, -4, 0, 0), sample 1 not at all; there are 8 elements and 2 samples.
  teacher = f32([[4, -3, 1, 1], [1, 1, 1, 1]]).reshape(2, 1, 2, 2)
  assert_close(fitnet_loss(teacher, jnp.ones((2, 1, 2, 2)), norm=norm), expected)


@pytest.mark.parametrize('norm', FITNET_NORMS)
def test_fitnet_loss_against_reference(norm):
  teacher, student = normal(50, 2, 3, 2, 4), normal(51, 2, 3, 2, 4)
  assert_close(fitnet_loss(teacher, student, norm), reference_fitnet_loss(f64(teacher), f64(student), norm))
  assert_gradients(
    lambda t, s: fitnet_loss(t, s, norm), lambda t, s: reference_fitnet_loss(t, s, norm), teacher, student
  )


def test_fitnet_default_is_mean_square():
  teacher, student = normal(52, 2, 3, 2, 4), normal(53, 2, 3, 2, 4)
  assert_close(fitnet_loss(teacher, student), np.mean((f64(teacher) - f64(student)) ** 2))


@pytest.mark.parametrize('norm', FITNET_NORMS)
def test_fitnet_loss_and_its_gradient_are_zero_at_equality(norm):
  features = normal(54, 2, 3, 2, 4)
  value, gradient = jax.value_and_grad(fitnet_loss, argnums=(0, 1))(features, features, norm)
  assert value == 0
  for g in gradient:
    np.testing.assert_array_equal(g, np.zeros(features.shape))


@pytest.mark.parametrize('student_shape', [(2, 3, 4, 6), (2, 4, 3, 5), (1, 3, 4, 5), (2, 3, 4, 1)])
def test_fitnet_loss_rejects_shapes(student_shape):
  with pytest.raises(ValueError, match=r'both be \[B, H, W, C\]'):
    fitnet_loss(jnp.ones((2, 3, 4, 5)), jnp.ones(student_shape))


def test_fitnet_loss_rejects_rank_and_norm():
  with pytest.raises(ValueError, match=r'\[B, H, W, C\]'):
    fitnet_loss(jnp.ones((2, 3)), jnp.ones((2, 3)))
  with pytest.raises(ValueError, match="mean_square, mean_abs, l2, l1; got 'sum_square'"):
    fitnet_loss(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)), 'sum_square')


# Shared knowledge, eq. (1).


def reference_shared(theta, *activations):
  return sum(pi * a for pi, a in zip(reference_softmax(theta), activations))


def test_shared_knowledge_worked_by_hand():
  # softmax(0, log 3) = (1/4, 3/4): 4/4 + 3 * 8/4 = 7.
  theta = f32([0, math.log(3)])
  activations = [jnp.full((1, 1, 1, 1), 4.0), jnp.full((1, 1, 1, 1), 8.0)]
  assert_close(importance(theta), [0.25, 0.75])
  assert_close(shared_knowledge(activations, theta), [[[[7]]]])
  # With G = 1: dL/dtheta = (1/4 (4 - 7), 3/4 (8 - 7)), dL/dA = (1/4, 3/4).
  gradient = jax.grad(lambda a, t: shared_knowledge(a, t).sum(), argnums=(0, 1))
  to_activations, to_theta = gradient(activations, theta)
  assert_close(to_theta, [-0.75, 0.75])
  assert_close([float(g[0, 0, 0, 0]) for g in to_activations], [0.25, 0.75])


def test_shared_knowledge_against_reference_and_closed_form():
  theta, g = normal(60, 3), normal(61, 2, 3, 2, 4)
  activations = [normal(62 + i, 2, 3, 2, 4) for i in range(3)]
  shared = shared_knowledge(activations, theta)
  assert_close(shared, reference_shared(f64(theta), *map(f64, activations)))

  def loss(theta, *activations):
    return jnp.sum(g * shared_knowledge(activations, theta))

  assert_gradients(loss, lambda t, *a: np.sum(f64(g) * reference_shared(t, *a)), theta, *activations)
  # dL/dtheta_i = pi_i (<G, A_i> - <G, F>).
  pi = reference_softmax(f64(theta))
  inner = np.array([np.sum(f64(g) * f64(a)) for a in activations])
  expected = pi * (inner - np.sum(f64(g) * f64(shared)))
  assert_close(jax.grad(loss)(theta, *activations), expected, atol=1e-5)


def test_importance_lies_on_the_simplex_and_ignores_a_shift():
  theta = normal(66, 4, scale=20.0)
  pi = importance(theta)
  assert_close(pi.sum(), 1)
  assert (np.asarray(pi) >= 0).all()
  assert_close(importance(theta + 100.0), f64(pi), rtol=1e-4)
  assert_close(importance(jnp.zeros(4)), [0.25] * 4)


def test_shared_knowledge_of_one_teacher_is_its_activation():
  activation = normal(67, 1, 2, 2, 3)
  np.testing.assert_array_equal(shared_knowledge([activation], f32([0.7])), activation)


def test_shared_knowledge_sums_in_float32_and_returns_the_dtype_of_the_activations():
  # 2048/8 + 7 * 8/8 = 263, which rounds to 264. Added up in bfloat16, each 256 + 1 would round back to 256.
  activations = [jnp.full((1, 1, 1, 1), value, jnp.bfloat16) for value in [2048.0] + [8.0] * 7]
  shared = shared_knowledge(activations, jnp.zeros(8))
  assert shared.dtype == jnp.bfloat16
  assert float(shared[0, 0, 0, 0]) == 264
  assert importance(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.float32


def test_shared_knowledge_rejects():
  a = jnp.ones((1, 2, 2, 3))
  for activations, theta in (([], jnp.zeros(0)), ([a, a], jnp.zeros(3)), ([a, a], jnp.zeros((2, 1)))):
    with pytest.raises(ValueError, match='theta'):
      shared_knowledge(activations, theta)
  for other in (jnp.ones((1, 2, 2, 1)), a.astype(jnp.bfloat16)):
    with pytest.raises(ValueError, match='one shape and one dtype'):
      shared_knowledge([a, other], jnp.zeros(2))
  with pytest.raises(ValueError, match='theta'):
    importance(jnp.zeros((2, 2)))


# What holds for all of them.

LABELS = np.array([2, 0], np.int32)
two = lambda z: jnp.stack([z, z[::-1]])  # logits of two networks
constant = jax.lax.stop_gradient
# Functions of two arrays, teacher and student, by the shape of the arrays.
ON_SHAPE = {
  (2, 5): {
    'correlation_loss': lambda t, s: losses.correlation_loss(t, s, 2.0),
    'cosine_loss': losses.cosine_loss,
    'cross_entropy': lambda t, s: losses.cross_entropy(s, jnp.asarray(LABELS), 2.0),
    'decoupled_loss': lambda t, s: losses.decoupled_loss(t, s, jnp.asarray(LABELS), 2.0),
    'error_sums': lambda t, s: losses.error_sums(two(s), jnp.asarray(LABELS), jnp.array([True, True])),
    'from_true_class': lambda t, s: losses.from_true_class(s, jnp.asarray(LABELS)),
    'general_target': lambda t, s: losses.general_target(two(s), f32([0.3, 0.7])),
    'kl_divergence': lambda t, s: losses.kl_divergence(t, s, 2.0),
    'linear_target': lambda t, s: losses.linear_target(constant(two(s)), jnp.asarray(LABELS)),
    'linear_weights': lambda t, s: losses.linear_weights(constant(two(s)), jnp.asarray(LABELS)),
    'logits_regression': losses.logits_regression,
    'mean_softmax': lambda t, s: losses.mean_softmax([t, s], 2.0),
    'min_logit': lambda t, s: losses.min_logit(t, s, jnp.asarray(LABELS)),
    'min_logit_target': lambda t, s: losses.min_logit_target(two(s), jnp.asarray(LABELS)),
    'naive_target': lambda t, s: losses.naive_target(two(s), jnp.asarray(LABELS)),
    'soft_cross_entropy': losses.soft_cross_entropy,
    'standardize': lambda t, s: losses.standardize(s),
    'standardized_kl': lambda t, s: losses.standardized_kl(t, s, 2.0),
    **{
      f'LOGIT_LOSSES {name}': lambda t, s, of=of: of()(t, s, jnp.asarray(LABELS), 2.0)
      for name, of in losses.LOGIT_LOSSES.items()
    },
  },
  (2, 3, 2, 4): {
    'activation_boundary_loss': losses.activation_boundary_loss,
    'attention_map': lambda t, s: losses.attention_map(s),
    'attention_map p=3': lambda t, s: losses.attention_map(s, p=3),
    **{f'attention_loss {n}': lambda t, s, n=n: losses.attention_loss(t, s, norm=n) for n in ATTENTION_NORMS},
    **{f'fitnet_loss {n}': lambda t, s, n=n: losses.fitnet_loss(t, s, norm=n) for n in FITNET_NORMS},
    'overhaul_loss': lambda t, s: losses.overhaul_loss(t, s, f32([-1, -0.5, -2, -1])),
    'similarity_loss': losses.similarity_loss,
    'similarity_matrix': lambda t, s: losses.similarity_matrix(s),
    **{f'FEATURE_LOSSES {name}': lambda t, s, of=of: of()(t, s) for name, of in losses.FEATURE_LOSSES.items()},
  },
  (2, 2): {'general_weights': lambda t, s: losses.general_weights(s)},
  (3,): {'overhaul_margin': lambda t, s: losses.overhaul_margin(t, jnp.abs(s))},
}


def test_every_loss_is_tried_with_bfloat16():
  tried = {name.split()[0] for group in ON_SHAPE.values() for name in group}
  without_arrays = {'FeatureLoss', 'LogitLoss', 'BEFORE_THE_QUANTIZER', 'WITHOUT_TEMPERATURE'}
  assert tried == set(losses.__all__) - without_arrays


@pytest.mark.parametrize('shape, name', [(shape, name) for shape, group in ON_SHAPE.items() for name in group])
def test_computes_in_float32_from_bfloat16(shape, name):
  loss = ON_SHAPE[shape][name]
  teacher, student = (normal(seed, *shape).astype(jnp.bfloat16) for seed in (70, 71))

  @jax.jit
  def compute(teacher, student):
    in_float32 = loss(teacher.astype(jnp.float32), student.astype(jnp.float32))
    values = [loss(teacher, student), loss(teacher.astype(jnp.float32), student)]
    return in_float32, values, jax.grad(lambda s: jnp.sum(jnp.square(loss(teacher, s))))(student)

  expected, values, gradient = compute(teacher, student)
  for value in values:
    assert value.dtype == jnp.float32
    assert_close(value, f64(expected), rtol=1e-5)
  assert gradient.dtype == jnp.bfloat16
  assert np.isfinite(f64(gradient)).all()
