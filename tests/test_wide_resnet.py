"""Wide residual networks: parameters by hand, taps, and the whole forward pass against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax.bit_policy import BitPolicy
from cmtkd_jax.errors import UserError
from cmtkd_jax.layers import LayerFactory
from cmtkd_jax.models import MODELS, wide_resnet

KEY = jax.random.key(0)


def build(name, bits=32, classes=10, **settings):
  return MODELS[name](num_classes=classes, layers=LayerFactory(BitPolicy(bits, bits)), **settings)


@pytest.mark.parametrize('name, classes, parameters', [('wrn16_1', 10, 175066), ('wrn16_2', 100, 696980 + 6304)])
def test_parameter_counts(name, classes, parameters):
  """WRN-16-1, by hand. A block of c channels from c: two 9 c^2 convolutions, two norms of 2 c.

  stem 9*3*16 = 432; group 1: 2 * (2*2304 + 2*32) = 9344
  group 2: first 9*16*32 + 9*32*32 + 16*32 + 64 = 14400 (its opening norm, 2*16, closes group 1);
           second 2*9216 + 2*64 = 18560; together 32960 + 32
  group 3: first 9*32*64 + 9*64*64 + 32*64 + 128 = 57472 (and 2*32); second 2*36864 + 2*128 = 73984; 131456 + 64
  closing norm 128; head 64*10 + 10 = 650. Sum 175066.

  WRN-16-2: stem 432; group 1: norm 32, 9*16*32 + 9*32*32 + 16*32 + 64 = 14400, 18560, closing norm 64;
  group 2: 57472, 73984, closing norm 128; group 3: 9*64*128 + 9*128*128 + 64*128 + 256 = 229632,
  2*147456 + 512 = 295424, closing norm 256; head 128*100 + 100 = 12900. Sum 703284.
  """
  variables = jax.eval_shape(lambda: build(name, classes=classes).init(KEY, jnp.zeros((1, 32, 32, 3)), True))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == parameters


@pytest.mark.parametrize('name, taps, widen', [('wrn16_1', (5, 9, 13), 1), ('wrn40_2', (13, 25, 37), 2)])
def test_taps_and_their_shapes(name, taps, widen):
  net = build(name)
  assert net.taps == taps

  def maps(module, x):
    x, shapes = module.embed(x, True), []
    for k in range(3):
      x = module.stage(k, x, True)
      shapes.append(x)
      x = module.activate(k, x, True)
    return shapes

  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: net.init_with_output(KEY, x, method=maps)[0], images)
  assert [s.shape for s in shapes] == [(2, 32, 32, 16 * widen), (2, 16, 16, 32 * widen), (2, 8, 8, 64 * widen)]


def conv(x, kernel, stride=1):
  pad = (kernel.shape[0] - 1) // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  size = (x.shape[1] - kernel.shape[0]) // stride + 1
  out = np.zeros((len(x), size, size, kernel.shape[3]))
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      view = x[:, i:i + (size - 1) * stride + 1:stride, j:j + (size - 1) * stride + 1:stride]
      out += view @ kernel[i, j]
  return out


def reference(x, variables, blocks, widen):
  """Block by block, in float64, in the words of the paper: BN - ReLU - conv - BN - ReLU - conv, identity on the raw map."""
  params, stats = variables['params'], variables['batch_stats']
  def norm(x, *path):
    p, s = params, stats
    for name in (*path, 'norm'):
      p, s = p[name], s[name]
    return np.maximum((x - s['mean']) / np.sqrt(s['var'] + 1e-5) * p['scale'] + p['bias'], 0)

  x = conv(x.astype(np.float64), params['stem']['conv']['kernel'])
  taps = []
  for group in (1, 2, 3):
    of = params[f'stage{group}']
    for b in range(1, blocks + 1):
      first = b == 1
      o = norm(x, f'stage{group - 1}_activation') if first and group > 1 else norm(x, f'stage{group}', f'block{b}_input')
      stride = 2 if first and group > 1 else 1
      y = norm(conv(o, of[f'block{b}_conv1']['kernel'], stride), f'stage{group}', f'block{b}_middle')
      y = conv(y, of[f'block{b}_conv2']['kernel'])
      changes = first and (group > 1 or widen > 1)
      assert changes == (f'block{b}_shortcut' in of)
      x = y + (conv(o, of[f'block{b}_shortcut']['kernel'], stride) if changes else x)
    taps.append(x)
  x = norm(x, 'stage3_activation').mean((1, 2))
  head = params['head']['classifier']
  return taps, x @ head['kernel'] + head['bias']


@pytest.mark.parametrize('widen', [1, 2])
def test_forward_pass(widen, quick_compile):
  net = wide_resnet.wide_resnet(16, widen, num_classes=5, layers=LayerFactory(BitPolicy(32, 32)), width=0.25)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  abstract = jax.eval_shape(lambda: net.init(KEY, images, True))
  rng = np.random.default_rng(1)
  variables = jax.tree_util.tree_map_with_path(
      lambda path, leaf: (rng.uniform(0.5, 1.5, leaf.shape) if path[-1].key in ('var', 'scale')
                          else 0.3 * rng.normal(size=leaf.shape)).astype(np.float32), abstract)
  taps, expected = reference(images, variables, 2, widen)
  np.testing.assert_allclose(net.apply(variables, images, False), expected, rtol=1e-4, atol=1e-4)

  def first_tap(module, x):
    return module.stage(0, module.embed(x, False), False)

  np.testing.assert_allclose(net.apply(variables, images, method=first_tap), taps[0], rtol=1e-4, atol=1e-4)


def test_two_bit_activations_lie_on_the_grid(quick_compile):
  net = wide_resnet.wide_resnet(10, 1, num_classes=5, layers=LayerFactory(BitPolicy(2, 2)), width=0.25)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  _, state = net.init_with_output(KEY, images, True, capture_intermediates=True, mutable=True)
  maps = {'/'.join(str(key.key) for key in path[1:-2]): leaf for path, leaf in
          jax.tree_util.tree_flatten_with_path({'': state['intermediates']})[0] if 'activation_quantizer' in str(path)}
  assert len(maps) == 7  # input of the first block, middle of three, closing of three
  for name, x in maps.items():
    codes = np.asarray(x) / 0.538
    assert np.abs(codes - codes.round()).max() < 1e-5 and codes.min() >= 0 and codes.max() <= 3 + 1e-5, name


@pytest.mark.parametrize('field, value', [('stem', 'imagenet'), ('block_order', 'post')])
def test_what_it_does_not_have_is_refused(field, value):
  with pytest.raises(UserError, match=f"config.model.{field}='{value}'"):
    build('wrn16_1', **{field: value})
