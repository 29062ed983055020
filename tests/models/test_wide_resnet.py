"""Wide residual networks: parameters by hand, taps, the forward pass against NumPy, bits, the shared stem."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import MODELS, bit_table, wide_resnet
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.models.layers import Activation, LayerFactory
from cmtkd_jax.models.products import values

pytestmark = pytest.mark.integration  # whole networks
KEY = jax.random.key(0)


def build(name, bits=32, classes=10, **settings):
  return MODELS[name](num_classes=classes, layers=LayerFactory(BitPolicy(bits, bits)), **settings)


def tiny(depth, widen, bits=32):
  layers = LayerFactory(BitPolicy(bits, bits))
  return wide_resnet.wide_resnet(depth, widen, num_classes=5, layers=layers, width=0.25)


def parts(net, x):
  """Returns the logits and the raw taps, running the network part by part."""
  x, taps = net.embed(x, False), []
  for k in range(len(net.taps)):
    taps.append(net.stage(k, x, False))
    x = net.activate(k, taps[-1], False)
  return net.classify(x, False), taps


def image_batch(seed=0):
  return np.random.default_rng(seed).normal(size=(2, 8, 8, 3)).astype(np.float32)


def random_variables(module, images, seed=1):
  """Parameters and statistics that leave no scale at 1, no bias and no mean at 0, and maps of about one."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    deviation = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == 'kernel' else 0.3
    return (deviation * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: module.init(KEY, images, False)))


@pytest.mark.parametrize(
  'name, body, features',
  [('wrn16_1', 174416, 64), ('wrn16_2', 690384, 128), ('wrn40_1', 563280, 64), ('wrn40_2', 2242256, 128)],
)
def test_parameter_counts(name, body, features):
  """Worked by hand; published, at 10 classes: 0.2, 0.7, 0.6 and 2.2 million.

  A block from c to f channels has 9cf + 9ff weights, a norm of 2c, one of 2f, and cf in a shortcut where c != f. The
  norm that opens a group is that of its first block (2c below), whichever module it is in.

  stem                                                          9*3*16 = 432
  16 to 16    32 + 2304 + 32 + 2304                             = 4672
  16 to 32    32 + 4608 + 64 + 9216 + 512                       = 14432
  32 to 32    64 + 9216 + 64 + 9216                             = 18560
  32 to 64    64 + 18432 + 128 + 36864 + 2048                   = 57536
  64 to 64    128 + 36864 + 128 + 36864                         = 73984
  64 to 128   128 + 73728 + 256 + 147456 + 8192                 = 229760
  128 to 128  256 + 147456 + 256 + 147456                       = 295424
  last norm   128 at 64 channels, 256 at 128
  head        64 K + K or 128 K + K for K classes: 650, 6500, 1290, 12900

  WRN-16-1  432 + 2*4672 + 14432 + 18560 + 57536 + 73984 + 128                            = 174416
  WRN-16-2  432 + 14432 + 18560 + 57536 + 73984 + 229760 + 295424 + 256                   = 690384
  WRN-40-1  432 + 6*4672 + 14432 + 5*18560 + 57536 + 5*73984 + 128                        = 563280
  WRN-40-2  432 + 14432 + 5*18560 + 57536 + 5*73984 + 229760 + 5*295424 + 256             = 2242256
  With the heads: 175066 and 180916, 691674 and 703284, 563930 and 569780, 2243546 and 2255156.
  """
  for classes in (10, 100):
    net = build(name, classes=classes)
    variables = jax.eval_shape(lambda net=net: net.init(KEY, jnp.zeros((1, 32, 32, 3)), True))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == body + features * classes + classes


@pytest.mark.parametrize(
  'name, taps, widen',
  [('wrn16_1', (5, 9, 13), 1), ('wrn16_2', (5, 9, 13), 2), ('wrn40_1', (13, 25, 37), 1), ('wrn40_2', (13, 25, 37), 2)],
)
def test_taps_and_their_shapes(name, taps, widen):
  net = build(name)
  assert net.taps == taps
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  logits, shapes = jax.eval_shape(lambda x: net.init_with_output(KEY, x, method=parts)[0], images)
  assert [s.shape for s in shapes] == [(2, 32, 32, 16 * widen), (2, 16, 16, 32 * widen), (2, 8, 8, 64 * widen)]
  assert logits.shape == (2, 10) and logits.dtype == jnp.float32


def conv(x, kernel, stride=1):
  pad = (kernel.shape[0] - 1) // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  size = (x.shape[1] - kernel.shape[0]) // stride + 1
  out = np.zeros((len(x), size, size, kernel.shape[3]))
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      view = x[:, i : i + (size - 1) * stride + 1 : stride, j : j + (size - 1) * stride + 1 : stride]
      out += view @ kernel[i, j].astype(np.float64)
  return out


def reference(x, variables, blocks, widen):
  """Block by block, in float64: BN - ReLU - conv - BN - ReLU - conv, identity on the raw map."""
  params, stats = variables['params'], variables['batch_stats']

  def norm(x, *path):
    p, s = params, stats
    for name in (*path, 'norm'):
      p, s = p[name], s[name]
    return np.maximum((x - s['mean']) / np.sqrt(s['var'] + 1e-5) * p['scale'] + p['bias'], 0)

  x = conv(x.astype(np.float64), params['stem']['conv']['kernel'])
  taps = []
  for group in (1, 2, 3):
    stage = f'stage{group}'
    of = params[stage]
    for b in range(1, blocks + 1):
      opens = b == 1 and group > 1  # its input was activated by what closed the group before
      o = norm(x, f'stage{group - 1}_activation') if opens else norm(x, stage, f'block{b}_input')
      stride = 2 if opens else 1
      y = norm(conv(o, of[f'block{b}_conv1']['kernel'], stride), stage, f'block{b}_middle')
      y = conv(y, of[f'block{b}_conv2']['kernel'])
      changes = b == 1 and (group > 1 or widen > 1)
      assert changes == (f'block{b}_shortcut' in of)
      x = y + (conv(o, of[f'block{b}_shortcut']['kernel'], stride) if changes else x)
    taps.append(x)
  x = norm(x, 'stage3_activation').mean((1, 2))
  head = params['head']['classifier']
  return x @ head['kernel'].astype(np.float64) + head['bias'], taps


@pytest.mark.parametrize('depth, widen', [(10, 1), (10, 2), (16, 1), (16, 2)])
def test_forward_pass(depth, widen):
  """Logits and raw taps; of the 16 layers, the second block of each group adds the raw sum of the first."""
  net, images = tiny(depth, widen), image_batch()
  variables = random_variables(net, images)
  assert variables['params']['stem']['conv']['kernel'].shape == (3, 3, 3, 4)
  assert variables['params']['stage3']['block1_conv2']['kernel'].shape == (3, 3, 16 * widen, 16 * widen)
  logits, taps = reference(images, variables, (depth - 4) // 6, widen)
  found, found_taps = jax.jit(lambda v, x: net.apply(v, x, method=parts))(variables, images)
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
  for tap, expected in zip(found_taps, taps, strict=True):
    assert expected.min() < 0  # a raw sum, which a ReLU would show
    np.testing.assert_allclose(tap, expected, rtol=1e-4, atol=1e-4)


def test_the_parts_are_the_network():
  net, images = tiny(10, 2), image_batch()
  variables = random_variables(net, images)
  whole, (logits, _) = jax.jit(lambda v, x: (net.apply(v, x, False), net.apply(v, x, method=parts)))(variables, images)
  np.testing.assert_allclose(whole, logits, rtol=1e-5, atol=1e-6)


def test_two_bit_activations_lie_on_the_grid():
  """All of them and nothing but the four levels 0, 0.538, 1.076, 1.614."""
  net, images = tiny(10, 1, bits=2), image_batch()
  variables = random_variables(net, images)
  apply = lambda v, x: net.apply(
    v, x, False, mutable=['intermediates'], capture_intermediates=lambda module, _: isinstance(module, Activation)
  )
  _, state = jax.jit(apply)(variables, images)
  maps = {
    jax.tree_util.keystr(path): values(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      state['intermediates'], is_leaf=lambda x: isinstance(x, quantizers.Quantized)
    )
  }
  assert len(maps) == 7  # input of the first block, middle of three, closing of three
  levels = 0.538 * np.arange(4)
  codes = {}
  for name, x in maps.items():
    distance = np.abs(np.asarray(x, np.float64)[..., None] - levels)
    assert distance.min(-1).max() < 1e-5, name
    codes[name] = set(distance.argmin(-1).ravel().tolist())
    assert {0, 1, 2} <= codes[name], name  # the topmost level is rare in the narrow maps
  assert set.union(*codes.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize('name, shortcuts', [('wrn16_1', [2, 3]), ('wrn16_2', [1, 2, 3])])
def test_bit_table(name, shortcuts):
  """Every convolution but the first reads a quantized map, shortcuts too; each role has its own weight bits."""
  policy = BitPolicy(2, 4, first_last_bits=8, quantize_shortcuts=False)
  net = MODELS[name](num_classes=10, layers=LayerFactory(policy))
  rows = bit_table.collect(net, (32, 32, 3))
  found = {row.layer: (row.weight_bits, row.activation_bits) for row in rows}
  expected = {'stem/conv': (8, 32), 'head/classifier': (8, 32)}  # images and the pooled map are on no grid
  expected |= {f'stage{k}/block{b}_conv{c}': (2, 4) for k in (1, 2, 3) for b in (1, 2) for c in (1, 2)}
  expected |= {f'stage{k}/block1_shortcut': (32, 4) for k in shortcuts}
  assert found == expected and len(rows) == len(expected)
  assert next(row.macs for row in rows if row.layer == 'stem/conv') == 27 * 16 * 32 * 32


class SharedStem(nn.Module):
  """Two networks that read the first one's embedding."""

  def setup(self):
    self.a, self.b = tiny(10, 1), tiny(10, 2)

  def __call__(self, images, train):
    x, logits = self.a.embed(images, train), []
    for net in (self.a, self.b):
      y = x
      for k in range(3):
        y = net.activate(k, net.stage(k, y, train), train)
      logits.append(net.classify(y, train))
    return logits


def test_shared_stem():
  """Only the network that embeds has a stem; the other computes what it would with that stem as its own."""
  pair, images = SharedStem(), image_batch()
  variables = random_variables(pair, images)
  groups = {f'stage{k}{closing}' for k in (1, 2, 3) for closing in ('', '_activation')}
  assert set(variables['params']['a']) == groups | {'stem', 'head'}
  assert set(variables['params']['b']) == groups | {'head'}
  assert set(variables['batch_stats']['b']) == groups
  of = lambda n: {c: variables[c][n] for c in variables}
  b = of('b')
  b['params'] = b['params'] | {'stem': variables['params']['a']['stem']}
  shared = jax.jit(lambda v, x: pair.apply(v, x, False))(variables, images)
  alone = jax.jit(lambda a, b, x: (tiny(10, 1).apply(a, x, False), tiny(10, 2).apply(b, x, False)))(of('a'), b, images)
  np.testing.assert_allclose(shared[0], alone[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(shared[1], alone[1], rtol=1e-5, atol=1e-6)


def test_networks_without_a_stem_apart_embed_nothing():
  net, images = build('resnet8', stem='cifar', block_order='pre'), image_batch()
  found, variables = net.init_with_output(KEY, images, False, method='embed')
  assert found is images and not variables


@pytest.mark.parametrize('field, value, use', [('stem', 'imagenet', 'cifar'), ('block_order', 'post', 'pre')])
def test_what_it_does_not_have_is_refused(field, value, use):
  with pytest.raises(UserError, match=f"^config.model.{field}='{value}' [^\n]*'{use}'[^\n]*$"):
    build('wrn16_1', **{field: value})


@pytest.mark.parametrize('depth', [4, 12, 18, -2])
def test_depths_that_are_not_6n_plus_4_are_refused(depth):
  with pytest.raises(UserError, match=rf'6 n \+ 4.* not {depth}$'):
    tiny(depth, 1)
