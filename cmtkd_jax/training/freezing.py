"""Freezing of weights that oscillate between two levels, for networks of few bits (Nagel et al., ICML 2022).

Under a straight-through gradient, latent weights near a threshold keep crossing it. Their codes c_t change back and
forth, and with them the statistics of the batch normalizations. For every quantized weight, with momentum m:

    o_t = 1 if c_t != c_{t-1} in the direction opposite to that of its last change, else 0
    f_t = m o_t + (1 - m) f_{t-1}
    e_t = m c_t + (1 - m) e_{t-1}

A weight whose frequency f_t is above the threshold is frozen as soon as its code is the one where it mostly is,
round(e_t). Source: algorithm 1 there, which writes round(e_t) into the weight; here the latent weight itself stays,
since not every quantizer maps levels to themselves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from cmtkd_jax.errors import UserError
from cmtkd_jax.models import inspect, layers


class Track(NamedTuple):
  """What is known of the weights of one layer; each an array of the shape of its kernel.

  code: int16, of the last step. direction: int8, of the last change of the code, 0 before the first.
  frequency: float32, f_t. mean: float32, e_t. frozen: bool.
  """

  code: jax.Array
  direction: jax.Array
  frequency: jax.Array
  mean: jax.Array
  frozen: jax.Array


class FreezingState(NamedTuple):
  """State of the optimizer inside, and the `Track` of every quantized layer, nested by the names of its path."""

  inner: Any
  tracks: Any


def track(codes):
  """Returns the `Track` of weights whose first codes, integers of any shape, are `codes`."""
  return Track(
    codes.astype(jnp.int16),
    jnp.zeros(codes.shape, jnp.int8),
    jnp.zeros(codes.shape, jnp.float32),
    codes.astype(jnp.float32),
    jnp.zeros(codes.shape, jnp.bool_),
  )


def observe(before, codes, momentum, threshold):
  """Returns the `Track` after a step that led to `codes`, see the formulas above.

  Args:
    before: the `Track` before it.
    codes: integers, of the shape of the weights.
    momentum: m in (0, 1].
    threshold: frequency above which weights are frozen.
  """
  change = jnp.sign(codes.astype(jnp.int32) - before.code).astype(jnp.int8)
  oscillates = (change != 0) & (change == -before.direction)
  frequency = momentum * oscillates + (1 - momentum) * before.frequency
  mean = momentum * codes.astype(jnp.float32) + (1 - momentum) * before.mean
  at_home = codes == jnp.round(mean).astype(codes.dtype)
  return Track(
    codes.astype(jnp.int16),
    jnp.where(change != 0, change, before.direction),
    frequency,
    mean,
    before.frozen | ((frequency > threshold) & at_home),
  )


def freeze_oscillations(optimizer, quantizers, momentum, threshold):
  """Returns the optax transformation `optimizer`, whose updates of frozen weights are 0.

  Args:
    optimizer: optax transformation of the parameters of all networks.
    quantizers: `{path of a layer: quantizer of its weights}`, as from `inspect.weight_quantizers`.
    momentum, threshold: as of `observe`.
  """

  def codes_of(params):
    return {
      tuple(path.split('/')): quantizer.quantize(
        _at(params, path)['kernel'],
        inspect.quantizer_values({'params': params}, *path.split('/'), layers.quantizer_name('weight')),
      ).codes
      for path, quantizer in quantizers.items()
    }

  def init(params):
    tracks = {path: track(codes) for path, codes in codes_of(params).items()}
    return FreezingState(optimizer.init(params), traverse_util.unflatten_dict(tracks))

  def update(gradients, state, params):
    updates, inner = optimizer.update(gradients, state.inner, params)
    updates = traverse_util.flatten_dict(updates)
    tracks = {path: _at(state.tracks, '/'.join(path)) for path in (tuple(name.split('/')) for name in quantizers)}
    for path, known in tracks.items():
      kernel = updates[*path, 'kernel']
      updates[*path, 'kernel'] = jnp.where(known.frozen, jnp.zeros_like(kernel), kernel)
    updates = traverse_util.unflatten_dict(updates)
    codes = codes_of(optax.apply_updates(params, updates))
    tracks = {path: observe(known, codes[path], momentum, threshold) for path, known in tracks.items()}
    return updates, FreezingState(inner, traverse_util.unflatten_dict(tracks))

  return optax.GradientTransformation(init, update)


def add(optimizer, config, method, input_shape):
  """Returns `optimizer` with the freezing that `config.freezing` asks for; unchanged where its threshold is 0.

  Raises:
    UserError: the codes of a weight quantizer depend on values that are fitted next to training.
  """
  options = config.freezing
  if not options.threshold:
    return optimizer
  images = jnp.zeros((1, *input_shape))
  quantizers = {
    path: quantizer
    for path, quantizer in inspect.weight_quantizers(lambda: method.init(jax.random.key(0), images, train=True)).items()
    if path.split('/')[0] not in method.frozen
  }
  for path, quantizer in quantizers.items():
    if quantizer.fitted:
      raise UserError(
        f'config.freezing.threshold={options.threshold}: the weight quantizer of {path} fits its levels next to '
        'training, so that codes of two steps cannot be compared; set the threshold to 0, or '
        'config.quantizer.weights to another one'
      )
  return freeze_oscillations(optimizer, quantizers, options.momentum, options.threshold)


def frozen_fractions(opt_state):
  """Returns `{'<network>/frozen_weights': percent of its quantized weights}`, {} where nothing is ever frozen."""
  if not isinstance(opt_state, FreezingState):
    return {}
  fractions = {}
  for network, tracks in opt_state.tracks.items():
    frozen = [known.frozen for known in jax.tree.leaves(tracks, is_leaf=lambda x: isinstance(x, Track))]
    total = sum(array.size for array in frozen)
    fractions[f'{network}/frozen_weights'] = 100 * sum(jnp.sum(array, dtype=jnp.float32) for array in frozen) / total
  return fractions


def _at(tree, path):
  for name in path.split('/'):
    tree = tree[name]
  return tree
