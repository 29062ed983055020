"""A network with dead channels, as pruning leaves them, for every quantizer."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax import quantizers
from cmtkd_jax.models import bit_policy, layers
from cmtkd_jax.models.products import values


class Pruned(nn.Module):
  """Convolutions, one of them in a residual branch, and two dense layers, under a bit policy."""

  policy: bit_policy.BitPolicy

  @nn.compact
  def __call__(self, images, train):
    make = layers.LayerFactory(self.policy, bn_momentum=0.0)
    x = make.norm('norm0')(make.conv(8, 3, role='first', name='conv0')(images, train), train)
    x = make.activation('act0')(x, train)
    y = make.activation('act1')(make.norm('norm1')(make.conv(8, 3, name='conv1')(x, train), train), train)
    x = make.activation('act2')(
      values(x) + values(y) + make.norm('norm2')(make.conv(8, 3, name='conv2')(y, train), train), train
    )
    x = make.norm('norm3')(make.dense(8, name='dense')(x, train), train)
    x = make.activation('act3')(x, train)
    return types.SimpleNamespace(logits={'student': make.dense(5, role='last', name='last')(x, train)})


def make_pruned(name, most=8):
  """(method, variables, images) of a network with quantizer `name` at its fewest and most bits, whose channels died.

  Everywhere output 0 and input 1 have no weights, running mean and normalization of channel 0 are 0, the variance of
  channel 1 is 0, and so is the scale of channel 2; conv2 has no weights at all.
  """
  bits = {}
  for role in ('Weight', 'Activation'):
    cls = getattr(quantizers.QUANTIZERS[name], role, None)
    bits[role] = (min(cls.bit_widths), min(most, max(cls.bit_widths))) if cls else 2 * (bit_policy.FULL_PRECISION,)
  few, many = zip(bits['Weight'], bits['Activation'], strict=True)
  rules = [bit_policy.Rule('conv0', 32, 32), *(bit_policy.Rule(layer, *few) for layer in ('conv1', 'act1', 'last'))]
  method = Pruned(bit_policy.BitPolicy(*many, rules=tuple(rules), quantizer=name))
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 4, 4, 1), dtype=np.uint8)

  def change(path, x):
    layer, _, kind = '/'.join(key.key for key in path).rpartition('/')
    if kind == 'kernel':
      x = x.at[..., 0].set(0).at[..., 1:2, :].set(0) * ('conv2' not in layer)
    elif kind == 'bias' or (kind == 'scale' and 'norm' in layer):
      x = x * 0 + (rng.uniform(0.5, 1, x.shape) * rng.choice([-1, 1], x.shape)).astype(np.float32)
    elif kind == 'var':
      x = jnp.maximum(x, 0.1)  # or what follows would be saturated, and the images not get through
    return x.at[{'var': 1, 'scale': 2}.get(kind, 0)].set(0) if 'norm' in layer else x

  @jax.jit
  def trained(images):
    variables = jax.tree_util.tree_map_with_path(change, method.init(jax.random.key(0), images, train=True))
    state = method.apply(variables, images, train=True, mutable=[name for name in variables if name != 'params'])[1]
    return variables | jax.tree_util.tree_map_with_path(change, state)

  return method, jax.device_get(trained(images.astype(np.float32) / np.float32(127.5) - 1)), images
