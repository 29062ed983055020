"""The convolution, its gradients, and the forms of it that are taken on a CPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax.models import cpu_convolution
from cmtkd_jax.models.convolution import convolve


def reference(x, kernel, stride, padding):
  """Position by position, in float64."""
  x, kernel = np.float64(x), np.float64(kernel)
  size = len(kernel)
  x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
  y = np.zeros((len(x), height, width, kernel.shape[3]))
  for h, w in itertools.product(range(height), range(width)):
    window = x[:, h * stride : h * stride + size, w * stride : w * stride + size]
    y[:, h, w] = np.tensordot(window, kernel, 3)
  return y


def reference_gradients(x, kernel, g, stride, padding):
  """Of sum(g y), in x and in the kernel: each product of the sum adds to both."""
  size = len(kernel)
  padded = np.pad(np.float64(x), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  of_x, of_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
  for h, w in itertools.product(range(g.shape[1]), range(g.shape[2])):
    at = np.s_[:, h * stride : h * stride + size, w * stride : w * stride + size]
    of_x[at] += np.tensordot(np.float64(g[:, h, w]), np.float64(kernel), (1, 3))
    of_kernel += np.tensordot(padded[at], np.float64(g[:, h, w]), (0, 0))
  end = padded.shape[1] - padding
  return of_x[:, padding:end, padding:end], of_kernel


# (what is special, batch, side, channels, features, kernel, stride, padding)
CASES = [
  ('few features, four neighbors', 2, 8, 1, 8, 3, 1, 1),
  ('few features, two neighbors', 2, 6, 16, 16, 3, 1, 1),
  ('few features, odd width', 2, 7, 4, 4, 3, 1, 1),
  ('few features, no padding', 2, 8, 3, 4, 3, 1, 0),
  ('few features, more padding than kernel', 1, 5, 2, 3, 3, 1, 3),
  ('many features', 2, 6, 20, 24, 3, 1, 1),
  ('many features, whose gradient is a product', 1, 4, 2, 256, 3, 2, 1),
  ('stride 2', 2, 8, 5, 6, 3, 2, 1),
  ('stride 2, last column unused', 2, 9, 3, 18, 3, 2, 0),
  ('stride 2, few channels', 2, 8, 16, 6, 3, 2, 1),
  ('stride 2, few channels, odd side, no padding', 2, 9, 9, 4, 3, 2, 0),
  ('stride 2, few channels, even kernel', 2, 6, 12, 5, 2, 2, 0),
  ('stride 2, few channels, more padding', 2, 7, 10, 3, 5, 2, 3),
  ('stride 3, few channels', 2, 10, 9, 4, 5, 3, 2),
  ('large stride', 2, 13, 3, 17, 5, 4, 2),
  ('1x1', 2, 6, 5, 7, 1, 1, 0),
  ('1x1, stride 2', 2, 5, 5, 7, 1, 2, 0),
  ('1x1, padded', 2, 4, 3, 2, 1, 2, 1),
  ('larger than the map', 3, 2, 5, 6, 3, 1, 1),
  ('larger than the map, stride 2', 3, 2, 5, 6, 3, 2, 1),
  ('larger than what comes out', 3, 4, 5, 6, 3, 2, 1),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case[0])
def test_against_sums_of_products(case):
  _, batch, side, channels, features, size, stride, padding = case
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, side, side, channels)).astype(np.float32)
  kernel = rng.normal(size=(size, size, channels, features)).astype(np.float32)
  y, gradients_of = jax.vjp(functools.partial(convolve, stride=stride, padding=padding), x, kernel)
  wanted = reference(x, kernel, stride, padding)
  assert y.shape == wanted.shape and y.dtype == jnp.float32
  np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
  g = rng.normal(size=y.shape).astype(np.float32)
  for ours, theirs in zip(gradients_of(g), reference_gradients(x, kernel, g, stride, padding), strict=True):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)


def gradient_of_kernel(x, g, size, stride, padding):
  """In x and g, and the text of its program."""
  kernel = np.zeros((size, size, x.shape[3], g.shape[3]), np.float32)
  gradient = jax.jit(lambda x, g: jax.vjp(lambda kernel: convolve(x, kernel, stride, padding), kernel)[1](g)[0]).lower(
    x, g
  )
  return gradient.compile()(x, g), gradient.as_text()


@pytest.mark.parametrize('batch', [8, 6, 7])
def test_gradient_of_the_kernel_in_parts_of_the_batch(batch, monkeypatch):
  """At most as many as are allowed, and none if the batch is a larger prime."""
  monkeypatch.setattr(cpu_convolution, '_IN_CACHE', 2**8)
  monkeypatch.setattr(cpu_convolution, '_MOST_PARTS', 6)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, 6, 6, 3)).astype(np.float32)
  g = rng.normal(size=(batch, 6, 6, 32)).astype(np.float32)
  found, text = gradient_of_kernel(x, g, 3, 1, 1)
  assert text.count('stablehlo.convolution') == {8: 4, 6: 6, 7: 1}[batch]
  np.testing.assert_allclose(found, reference_gradients(x, np.zeros(found.shape), g, 1, 1)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('batch', 'side', 'channels', 'features', 'size', 'padding', 'parts'),
  [(8, 6, 3, 2, 3, 1, 8), (6, 5, 16, 31, 3, 0, 6), (4, 4, 2, 5, 5, 2, 2), (6, 4, 3, 4, 2, 1, 3), (7, 6, 5, 3, 3, 2, 1)],
)
def test_gradient_of_the_kernel_as_rows_by_columns(batch, side, channels, features, size, padding, parts, monkeypatch):
  """One product of parts of the batch in a loop; not where the batch has no parts that fit into the cache."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, side, side, channels)).astype(np.float32)
  out = side + 2 * padding - size + 1
  g = rng.normal(size=(batch, out, out, features)).astype(np.float32)
  monkeypatch.setattr(cpu_convolution, '_IN_CACHE', (x.nbytes + g.nbytes) // (parts if parts > 1 else batch - 1))
  found, text = gradient_of_kernel(x, g, size, 1, padding)
  assert ('stablehlo.while' in text) == (parts > 1) == ('stablehlo.convolution' not in text)
  wanted = reference_gradients(x, np.zeros(found.shape), g, 1, padding)[1]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case[0])
def test_sums_of_levels_are_exact_with_operands_in_bfloat16(case):
  _, batch, side, channels, features, size, stride, padding = case
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (batch, side, side, channels))
  kernel = rng.integers(-127, 128, (size, size, channels, features)) + 0.5
  y = convolve(jnp.bfloat16(x), jnp.bfloat16(kernel), stride, padding, jnp.float32)
  assert y.dtype == jnp.float32
  np.testing.assert_array_equal(y, reference(x, kernel, stride, padding))


# (what is special, side, channels, features, groups, kernel, stride, padding)
GROUPED = [
  ('depthwise', 6, 5, 5, 5, 3, 1, 1),
  ('depthwise, stride 2', 6, 4, 4, 4, 3, 2, 1),
  ('depthwise, last column unused', 8, 3, 3, 3, 3, 2, 0),
  ('depthwise, larger than the map', 2, 4, 4, 4, 5, 1, 2),
  ('depthwise, more padding', 5, 3, 3, 3, 3, 2, 4),
  ('depthwise, 1x1', 5, 3, 3, 3, 1, 2, 0),
  ('two features per channel', 6, 3, 6, 3, 3, 1, 1),
  ('two groups', 6, 8, 6, 2, 3, 2, 1),
]


def by_group(function, groups, x, kernel, *g):
  """`function` of each group's channels and features; its results, channels or features last, next to each other."""
  parts = [np.split(x, groups, -1), np.split(kernel, groups, -1), *(np.split(array, groups, -1) for array in g)]
  return [function(*part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize('case', GROUPED, ids=lambda case: case[0])
def test_groups_against_one_convolution_a_group(case):
  _, side, channels, features, groups, size, stride, padding = case
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, side, side, channels)).astype(np.float32)
  kernel = rng.normal(size=(size, size, channels // groups, features)).astype(np.float32)
  grouped = jax.jit(functools.partial(convolve, stride=stride, padding=padding, groups=groups))
  wanted = np.concatenate(by_group(lambda *a: reference(*a, stride, padding), groups, x, kernel), -1)
  np.testing.assert_allclose(grouped(x, kernel), wanted, rtol=1e-5, atol=1e-5)
  g = rng.normal(size=wanted.shape).astype(np.float32)
  found = jax.jit(lambda x, kernel, g: jax.vjp(grouped, x, kernel)[1](g))(x, kernel, g)
  parts = by_group(lambda x, kernel, g: reference_gradients(x, kernel, g, stride, padding), groups, x, kernel, g)
  for ours, theirs in zip(found, zip(*parts, strict=True), strict=True):
    np.testing.assert_allclose(ours, np.concatenate(theirs, -1), rtol=1e-4, atol=1e-4)

  levels = rng.integers(0, 256, x.shape), rng.integers(-127, 128, kernel.shape) + 0.5
  exact = np.concatenate(by_group(lambda *a: reference(*a, stride, padding), groups, *levels), -1)
  sums = functools.partial(convolve, stride=stride, padding=padding, groups=groups, preferred_element_type=jnp.float32)
  np.testing.assert_array_equal(jax.jit(sums)(*map(jnp.bfloat16, levels)), exact)


def test_depthwise_gradients_against_differences():
  """Of a smooth function of the sums, by central differences in float64 of the reference."""
  rng, step = np.random.default_rng(0), 1e-4
  x, kernel = rng.normal(size=(1, 4, 4, 2)), rng.normal(size=(3, 3, 1, 2))

  def loss(x, kernel):
    y = np.concatenate(by_group(lambda *a: reference(*a, 2, 1), 2, x, kernel), -1)
    return np.sum(y**3)

  def differences(i, arrays):
    found = np.zeros_like(arrays[i])
    for at in np.ndindex(found.shape):
      move = np.zeros_like(found)
      move[at] = step
      ends = [loss(*(a + sign * move if j == i else a for j, a in enumerate(arrays))) for sign in (1, -1)]
      found[at] = (ends[0] - ends[1]) / (2 * step)
    return found

  ours = jax.jit(jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel, 2, 1, None, 2) ** 3), (0, 1)))
  for i, found in enumerate(ours(np.float32(x), np.float32(kernel))):
    np.testing.assert_allclose(found, differences(i, (x, kernel)), rtol=1e-3, atol=1e-3)


def test_forms_of_groups_are_for_the_cpu():
  x, kernel = jnp.zeros((2, 4, 4, 4)), jnp.zeros((3, 3, 1, 4))
  both = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(convolve(x, kernel, 1, 1, None, 4) ** 2), argnums=(0, 1)))
  text = both.trace(x, kernel).lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('stablehlo.convolution') == 3
  assert 'stablehlo.convolution' not in both.lower(x, kernel).as_text()


def test_other_platforms_have_the_convolution_alone():
  """Lowered for a TPU, which need not be there: a convolution forward, and one for each gradient."""
  x, kernel = jnp.zeros((2, 2, 2, 4)), jnp.zeros((3, 3, 4, 4))
  both = jax.value_and_grad(lambda x, kernel: jnp.sum(convolve(x, kernel, 1, 1) ** 2), argnums=(0, 1))
  text = jax.jit(both).trace(x, kernel).lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('stablehlo.convolution') == 3 and 'stablehlo.dot_general' not in text
  assert 'stablehlo.dot_general' in jax.jit(both).lower(x, kernel).as_text()
