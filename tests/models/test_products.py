"""Products of levels against int64 and float64 NumPy: exact sums, gradients of the values, and what has no levels."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import quantizers
from cmtkd_jax.models import inspect, layers, products
from cmtkd_jax.models.bit_policy import BitPolicy, Rule
from cmtkd_jax.quantizers import Quantized

CONVOLVE = functools.partial(
  jax.lax.conv_general_dilated,
  window_strides=(2, 2),
  padding=((1, 1), (1, 1)),
  dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
)


def quantized(level, scale):
  level, scale = np.asarray(level, np.float32), np.asarray(scale, np.float32)
  return Quantized(jnp.asarray(level * scale), jnp.asarray(level), jnp.asarray(scale))


def levels_of_every_width(rng, rows, signed):
  """[9, rows] levels, row b - 1 of b bits and with both ends of its grid; mid-rise half numbers where signed.

  The last row has the largest level of 8 bits throughout.
  """
  table = np.stack([rng.integers(0, 2**bits, rows) - signed * (2**bits - 1) / 2 for bits in range(1, 9)])
  table[:, 0], table[:, 1] = table.max(1), [-(2**bits - 1) / 2 if signed else 0 for bits in range(1, 9)]
  return np.concatenate([table, np.full_like(table[-1:], table.max())])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_sums_of_every_pair_of_widths_are_exact(dtype):
  """All pairs in one product of 256 terms, below 2^24: no digit is lost, whatever the operands' type."""
  rng = np.random.default_rng(0)
  x, kernel = levels_of_every_width(rng, 256, False), levels_of_every_width(rng, 256, True).T
  found = jax.jit(functools.partial(products._product_of_levels, jnp.matmul, dtype))(
    quantized(x, 1), quantized(kernel, 1)
  )
  exact = (x.astype(np.int64) @ (2 * kernel).astype(np.int64)) / 2
  assert found.dtype == jnp.float32 and 2**22 < np.abs(exact).max() < 2**24
  np.testing.assert_array_equal(found, exact)


def test_bfloat16_merges_values_but_not_levels():
  """Why levels are multiplied: of the 256 values of HWGQ's 8-bit grid, bfloat16 tells fewer apart."""
  x = quantizers.hwgq.Activation(8).with_levels(jnp.linspace(-1, 5, 10001, dtype=jnp.float32))
  distinct = lambda array: len(np.unique(np.asarray(array.astype(jnp.bfloat16), np.float32)))
  assert distinct(x.level) == 256 > distinct(x.value)


SCALES = {'a tensor': 0.7, 'a channel': np.linspace(0.1, 0.5, 5), 'a dead channel': [0.3, 0, 0.2, 0, 0.1]}


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
@pytest.mark.parametrize('multiply', [jnp.matmul, CONVOLVE], ids=['dense', 'convolution'])
@pytest.mark.parametrize('dtype, rtol', [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_values_and_gradients_are_those_of_the_values(scale, multiply, dtype, rtol):
  """Against float64; the gradient of a value does not know its scale, so that channels of zeros come back."""
  rng = np.random.default_rng(0)
  shapes = ((2, 7), (7, 5)) if multiply is jnp.matmul else ((2, 4, 4, 3), (3, 3, 3, 5))
  x = quantized(rng.integers(0, 64, shapes[0]), 0.05)
  kernel = quantized(rng.integers(0, 16, shapes[1]) - 7.5, np.reshape(scale, (1,) * (len(shapes[1]) - 1) + (-1,)))
  if np.ndim(scale) == 0:
    kernel = dataclasses.replace(kernel, scale=jnp.float32(scale))
  found, pull_back = jax.vjp(jax.jit(lambda x, kernel: products.product(multiply, x, kernel, dtype)), x, kernel)
  g = rng.normal(size=found.shape)
  of_x, of_kernel = pull_back(jnp.asarray(g, dtype))
  expected, x_gradient, kernel_gradient = reference(np.float64(x.value), np.float64(kernel.value), g)
  close = lambda a, b: np.testing.assert_allclose(np.float64(a), b, rtol=rtol, atol=rtol * np.abs(b).max())
  assert found.dtype == dtype
  close(found, expected)
  close(of_x.value, x_gradient)
  close(of_kernel.value, kernel_gradient)
  assert np.abs(np.float64(of_kernel.value)).min((*range(of_kernel.value.ndim - 1),)).max() > 0
  for part in (of_x.level, of_x.scale, of_kernel.level, of_kernel.scale):
    assert not np.any(np.asarray(part))


def reference(x, kernel, g):
  """(product, gradient of x, gradient of the kernel) in float64; a convolution is 3x3, stride 2, padding 1."""
  if x.ndim == 2:
    return x @ kernel, g @ kernel.T, x.T @ g
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out, dx, dk = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
  for b, i, j in np.ndindex(g.shape[:3]):
    at = (b, slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3))
    out[b, i, j] = np.tensordot(padded[at], kernel, 3)
    dx[at] += kernel @ g[b, i, j]
    dk += padded[at][..., None] * g[b, i, j]
  return out, dx[:, 1:-1, 1:-1], dk


class Layers(nn.Module):
  """An activation between two convolutions, and a dense layer."""

  policy: BitPolicy
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train):
    make = layers.LayerFactory(self.policy, self.dtype)
    x = make.activation('activation1')(
      make.norm('norm1')(make.conv(4, 3, role='first', name='conv1')(x, train), train), train
    )
    x = make.activation('activation2')(make.norm('norm2')(make.conv(4, 3, name='conv2')(x, train), train), train)
    return make.dense(3, name='dense')(x, train)


def uniform(name):
  """Whether both roles of a quantizer are there and have levels."""
  module, x = quantizers.QUANTIZERS[name], jax.ShapeDtypeStruct((3, 4), jnp.float32)
  classes = [getattr(module, role, None) for role in ('Weight', 'Activation')]
  made = [cls(cls.bit_widths[0]) for cls in classes if cls]
  with_levels = lambda q: jax.eval_shape(lambda x: q.with_levels(x, q.init(x)), x)
  return len(made) == 2 and all(with_levels(q).level is not None for q in made)


@pytest.mark.integration
@pytest.mark.parametrize('name', [name for name in quantizers.QUANTIZERS if uniform(name)])
def test_layers_multiply_levels_and_train_as_with_values(name, monkeypatch):
  """Outputs and all gradients, those of learned scales included, in float32; most and fewest bits meet."""
  weight, activation = (getattr(quantizers.QUANTIZERS[name], role).bit_widths for role in ('Weight', 'Activation'))
  rules = (Rule('dense', weight[-1], 32),)
  network = Layers(BitPolicy(weight[0], activation[-1], rules=rules, quantizer=name), jnp.float32)
  rng = np.random.default_rng(0)
  images, g = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6, 6, 2), (4, 3)))
  variables = jax.jit(network.init, static_argnums=2)(jax.random.key(0), images, True)

  def output_and_gradients():
    def loss(params):
      output, _ = network.apply(
        variables | {'params': params}, images, True, mutable=['batch_stats', 'quantizer_state']
      )
      return jnp.sum(output * g), output

    return jax.jit(jax.grad(loss, has_aux=True))(variables['params'])

  calls = []
  product_of_levels = products._product_of_levels
  monkeypatch.setattr(products, '_product_of_levels', lambda *args: calls.append(1) or product_of_levels(*args))
  found = output_and_gradients()
  assert len(calls) == 2  # the first convolution reads images
  monkeypatch.setattr(layers, '_with_levels', lambda quantizer, x, p: Quantized(quantizer.fake_quantize(x, p)))
  expected = output_and_gradients()
  assert len(calls) == 2
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))  # scales before a normalization have none
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6 * largest), found, expected)


def test_a_bfloat16_network_multiplies_as_many_levels_as_its_bits_make():
  """What reaches the second convolution of a 6/6-bit network has 64 levels, after the cast as well."""
  network = Layers(BitPolicy(6, 6), jnp.bfloat16)
  images = np.random.default_rng(0).normal(size=(256, 8, 8, 2)).astype(np.float32)
  variables = network.init(jax.random.key(0), images[:1], True)
  seen = {}
  with inspect.visit_layers(lambda call: seen.update({call.path: call.input}), layers.Conv):
    network.apply(variables, images, True, mutable=['batch_stats'])
  x = seen['conv2']
  assert len(np.unique(np.asarray(x.level.astype(jnp.bfloat16), np.float32))) == 64


def test_tables_offsets_and_mixtures_are_multiplied_as_values():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
  kernel = quantizers.hwgq.Weight(2).with_levels(jnp.asarray(rng.normal(size=(6, 3)), jnp.float32))
  for quantizer in (quantizers.lq_nets.Activation(2), quantizers.lsq_plus.Activation(2), quantizers.apot.Activation(2)):
    coded = jax.jit(lambda x, q=quantizer: q.with_levels(x, q.init(x)))(x)
    assert coded.level is None
    np.testing.assert_array_equal(
      products.product(jnp.matmul, coded, kernel, jnp.float32), jnp.matmul(coded.value, kernel.value)
    )
  mixture = 0.5 * products.values(coded) + 0.25
  np.testing.assert_array_equal(products.product(jnp.matmul, mixture, kernel, jnp.float32), mixture @ kernel.value)
  channels = Quantized(x, jnp.ones_like(x), jnp.ones((1, 6)))  # a scale a feature cannot follow the sum
  np.testing.assert_array_equal(products.product(jnp.matmul, channels, kernel, jnp.float32), x @ kernel.value)


def test_nan_gets_through():
  x = quantizers.hwgq.Activation(4).with_levels(jnp.asarray([[1.0, jnp.nan, 2.0]], jnp.float32))
  kernel = quantizers.hwgq.Weight(2).with_levels(jnp.asarray([[1.0], [-1.0], [0.5]], jnp.float32))
  assert np.isnan(products.product(jnp.matmul, x, kernel, jnp.float32)).all()
