"""Batch normalization against NumPy in float64: statistics, gradients, large means, groups of rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax.models.batch_norm import BatchNorm, normalize

EPSILON = 1e-5


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(x, scale, bias, groups=1):
  """y, mean [groups, C] and variance [groups, C] in float64."""
  parts = np.asarray(x, np.float64).reshape(groups, -1, x.shape[-1])
  mean, var = parts.mean(1), parts.var(1)
  y = (parts - mean[:, None]) / np.sqrt(var[:, None] + EPSILON) * scale + bias
  return y.reshape(x.shape), mean, var


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('mean, tolerance', [(0, 1e-5), (10, 5e-5), (1000, 5e-3)])
def test_feature_maps_whose_mean_is_large(mean, tolerance, groups):
  """mean(x^2) - mean^2 of float32 is off by 4e-4 at mean / deviation 10, and by more than 1 at 1000."""
  x = normal(0, 16, 8, 8, 4) + np.float32(mean)
  norm = BatchNorm(groups)
  variables = norm.init(jax.random.key(0), x, True)
  y, state = norm.apply(variables, x, True, mutable=['batch_stats'])
  expected, _, var = reference(x, np.ones(4), np.zeros(4), groups)
  np.testing.assert_allclose(y, expected, atol=tolerance)
  np.testing.assert_allclose(state['batch_stats']['var'], 0.9 + 0.1 * var.mean(0), rtol=tolerance)


@pytest.mark.parametrize('shape', [(4, 3, 2, 5), (6, 3)])
@pytest.mark.parametrize('mean', [0, 1000])
def test_gradients_are_the_slopes_of_finite_differences(shape, mean):
  x, weight = normal(0, *shape) + np.float32(mean), normal(1, *shape)
  arguments = [x, normal(2, shape[-1]), normal(3, shape[-1])]
  gradients = jax.grad(lambda *a: jnp.sum(normalize(*a, EPSILON)[0] * weight), (0, 1, 2))(*arguments)
  for k, gradient in enumerate(gradients):
    for index in np.ndindex(arguments[k].shape):
      ends = []
      for side in (-1e-4, 1e-4):
        moved = [np.array(a, np.float64) for a in arguments]
        moved[k][index] += side
        ends.append(np.sum(reference(*moved)[0] * weight))
      assert gradient[index] == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=2e-3, abs=2e-3)


def test_value_and_gradient_by_hand():
  """x = 1, 3: mean 2, variance 1, so y = -5 + 7, 5 + 7. One of two rows: nothing of its gradient is left."""
  x, scale, bias = jnp.float32([[1], [3]]), jnp.float32([5]), jnp.float32([7])
  (y, mean, var), gradient = (
    normalize(x, scale, bias, 0.0),
    jax.grad(lambda *a: normalize(*a, 0.0)[0][1, 0], (0, 1, 2))(x, scale, bias),
  )
  np.testing.assert_allclose(y, [[2], [12]])
  assert (mean[0], var[0]) == (2, 1)
  # g = 0, 1; mean(g) = 1/2; n = -1, 1; mean(g n) = 1/2: 5 (g - 1/2 - n/2) = 0, 0.
  np.testing.assert_allclose(gradient[0], [[0], [0]], atol=1e-6)
  assert (gradient[1][0], gradient[2][0]) == (1, 1)


def test_types():
  """float32 whatever comes in; the gradient has the type of its input."""
  x = jnp.asarray(normal(0, 8, 3), jnp.bfloat16)
  norm = BatchNorm()
  variables = norm.init(jax.random.key(0), x, True)
  for train in (True, False):
    y, _ = norm.apply(variables, x, train, mutable=['batch_stats'])
    assert y.dtype == jnp.float32
  assert jax.grad(lambda x: normalize(x, jnp.ones(3), jnp.zeros(3), EPSILON)[0].sum())(x).dtype == jnp.bfloat16


def test_without_scale_and_bias():
  x = normal(0, 8, 3)
  norm = BatchNorm(affine=False)
  variables = norm.init(jax.random.key(0), x, True)
  assert 'params' not in variables
  y, state = norm.apply(variables, x, True, mutable=['batch_stats'])
  expected, mean, var = reference(x, np.ones(3), np.zeros(3))
  np.testing.assert_allclose(y, expected, atol=1e-5)
  expected = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var + EPSILON)
  np.testing.assert_allclose(norm.apply(state, x, False), expected, atol=1e-5)


@pytest.mark.parametrize('shape', [(8, 3, 2, 5), (8, 6)])
def test_groups_of_rows(shape):
  """Consecutive rows share statistics; the running ones follow the mean of the groups; evaluation uses those."""
  x = normal(0, *shape) * 3 + 1
  norm = BatchNorm(groups=4, momentum=0.75)
  variables = norm.init(jax.random.key(0), x[:1], True)  # one row, as where layers are only counted
  plain = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
  assert jax.tree.map(np.shape, variables['params']) == jax.tree.map(np.shape, plain['params'])
  scale, bias = normal(1, shape[-1]), normal(2, shape[-1])
  variables = {**variables, 'params': {'scale': scale, 'bias': bias}}
  y, state = norm.apply(variables, x, True, mutable=['batch_stats'])
  expected, mean, var = reference(x, scale, bias, 4)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
  running = jax.tree.map(np.asarray, state['batch_stats'])
  np.testing.assert_allclose(running['mean'], 0.25 * mean.mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(running['var'], 0.75 + 0.25 * var.mean(0), rtol=1e-5)
  again = norm.apply({**variables, **state}, x, False)
  np.testing.assert_allclose(
    again, (x - running['mean']) / np.sqrt(running['var'] + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5
  )
