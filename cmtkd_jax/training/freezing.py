"""Freezing of weights that oscillate between two levels, for networks of few bits (Nagel et al., ICML 2022).

Under a straight-through gradient, latent weights near a threshold keep crossing it. Their codes c_t change back and
forth, and with them the statistics of the batch normalizations. For every quantized weight, with momentum m:

    o_t = 1 if c_t != c_{t-1} in the direction opposite to that of its last change, else 0
    f_t = m o_t + (1 - m) f_{t-1}
    e_t = m c_t + (1 - m) e_{t-1}

A weight whose frequency f_t is above the threshold is frozen at the code where it mostly was, round(e_{t-1}): it moves
to the level of this code and stays there. Where the scale has moved so far that it would get another code, it moves to
the level again. So it keeps its code, and its quantized value follows the scale. That needs a quantizer that maps
its levels to themselves. Weights of more bits than `freezing.max_bits` change their codes at almost every step, which
is no oscillation; they are left alone.

A frozen weight does not follow its level at every step: where the scale is measured on the weights, as HWGQ's is, each
would follow the other, and both would shrink or grow without end. Where few weights share such a scale and most of them
are frozen, even the moves of one step may not end. These weights stay where they are, with the codes that they have
there.

Source: algorithm 1 there, and its published code (Qualcomm-AI-research/oscillations-qat), whose limit is 4 bits, too.
Departure: there a learned step gets the gradient c_t of a frozen weight's value s c_t. Here the loss does not know what
is frozen, and the step gets the gradient that its quantizer gives it for any weight in that place.
"""

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cmtkd_jax.errors import UserError
from cmtkd_jax.models import inspect, layers
from cmtkd_jax.quantizers.base import dequantize
from cmtkd_jax.runtime import distributed

_MOST_PASSES = 10  # over the weights of a layer in one step


class Track(NamedTuple):
  """What is known of the weights of one layer; each an array of the shape of its kernel.

  code: int16, of the last step; of a frozen weight the one that it keeps. direction: int8, of the last change of the
  code, 0 before the first. frequency: float32, f_t. mean: float32, e_t. frozen: bool.
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
  freezes = (frequency > threshold) & ~before.frozen
  return Track(
    jnp.where(freezes, jnp.round(before.mean), codes).astype(jnp.int16),
    jnp.where(change != 0, change, before.direction),
    frequency,
    mean,
    before.frozen | freezes,
  )


def freeze_oscillations(optimizer, quantizers, momentum, threshold):
  """Returns the optax transformation `optimizer`, whose updates of frozen weights keep their codes.

  Args:
    optimizer: optax transformation of the parameters of all networks.
    quantizers: `{path of a layer: quantizer of its weights}`, as from `inspect.weight_quantizers`.
    momentum, threshold: as of `observe`.
  """
  quantizers = {tuple(path.split('/')): quantizer for path, quantizer in quantizers.items()}

  def quantize(path, params, kernel):
    values = inspect.quantizer_values({'params': params}, *path, layers.quantizer_name('weight'))
    return quantizers[path].quantize(kernel, values)

  def init(params):
    tracks = {path: track(quantize(path, params, inspect.at(params, path)['kernel']).codes) for path in quantizers}
    return FreezingState(optimizer.init(params), traverse_util.unflatten_dict(tracks))

  def update(gradients, state, params):
    updates, inner = optimizer.update(gradients, state.inner, params)
    updates, tracks = traverse_util.flatten_dict(updates), {}
    for path in quantizers:  # a frozen weight does not move
      frozen = inspect.at(state.tracks, path).frozen
      updates[*path, 'kernel'] = jnp.where(frozen, 0, updates[*path, 'kernel'])
    moved = optax.apply_updates(params, traverse_util.unflatten_dict(updates))
    for path in quantizers:  # but for what keeps its code
      before, kernel = inspect.at(state.tracks, path), inspect.at(moved, path)['kernel']
      quantized = functools.partial(quantize, path, moved)
      codes = quantized(kernel).codes
      known = observe(before, jnp.where(before.frozen, before.code, codes), momentum, threshold)
      strayed = known.frozen & (~before.frozen | (codes != known.code))
      change = _at_levels(kernel, strayed, known, quantized) - inspect.at(params, path)['kernel']
      updates[*path, 'kernel'] = jnp.where(known.frozen, change, updates[*path, 'kernel'])
      tracks[path] = known
    updates = traverse_util.unflatten_dict(updates)
    return updates, FreezingState(inner, traverse_util.unflatten_dict(tracks))

  return optax.GradientTransformation(init, update)


def _at_levels(kernel, strayed, known, quantize):
  """`kernel` with the weights that have `strayed` at the levels of their codes in `known`.

  That may move a scale that is measured on the weights, and with it the codes of others, which follow. Weights of one
  scale for which this does not end stay as they were: a few, all frozen, might move it, and grow, without end.
  """

  def move(carry):
    kernel, strayed, passes = carry
    coded = quantize(kernel)
    levels = dequantize(coded._replace(codes=known.code.astype(coded.codes.dtype)))
    kernel = jnp.where(strayed, levels, kernel)
    return kernel, known.frozen & (quantize(kernel).codes != known.code), passes + 1

  is_left = lambda carry: carry[1].any() & (carry[2] < _MOST_PASSES)
  moved, left, _ = jax.lax.while_loop(is_left, move, (kernel, strayed, 0))
  sizes = np.broadcast_shapes(quantize(kernel).scale.shape, (1,) * kernel.ndim)
  shared = [axis for axis, size in enumerate(sizes) if size == 1]
  return jnp.where(left.any(shared, keepdims=True), kernel, moved)


def maps_levels_to_themselves(quantizer):
  """Returns whether weights that are replaced by their quantized values keep their codes, for any learned values.

  One weight, a tenth of them and all are replaced, in a tensor of standard deviation 1 and in one of 0.05: small
  weights show levels that are in another unit. Of the other weights at most a twentieth of the tensor may change its
  code, since a scale may be measured on all.
  """
  draw = np.random.default_rng(0)
  for spread in (1.0, 0.05):
    x = jnp.asarray(spread * draw.normal(size=(512, 8)), jnp.float32)
    start = quantizer.init(x)
    for name in (None, *quantizer.learned):
      values = start if name is None else start | {name: 2 * start[name]}
      before, levels = quantizer.quantize(x, values).codes, quantizer.fake_quantize(x, values)
      for share in (1 / x.size, 0.1, 1.0):
        frozen = draw.random(x.shape) < share
        frozen.flat[0] = True
        moved = np.asarray(quantizer.quantize(jnp.where(frozen, levels, x), values).codes != before)
        if moved[frozen].any() or (name is None and moved[~frozen].sum() > 0.05 * x.size):
          return False
  return True


def add(optimizer, config, method, input_shape):
  """Returns `optimizer` with the freezing that `config.freezing` asks for; unchanged where it freezes nothing.

  Raises:
    UserError: a weight quantizer fits its levels next to training, or does not map them to themselves.
  """
  options = config.freezing
  if not options.threshold:
    return optimizer
  images = jnp.zeros((1, *input_shape))
  quantizers = {
    path: quantizer
    for path, quantizer in inspect.weight_quantizers(lambda: method.init(jax.random.key(0), images, train=True)).items()
    if path.split('/')[0] not in method.frozen and quantizer.bits <= options.max_bits
  }
  if not quantizers:
    if distributed.is_first():
      logging.getLogger(__name__).warning(
        'config.freezing.threshold=%s freezes nothing in this run: no network that is trained has weights of '
        'config.freezing.max_bits=%s bits or fewer',
        options.threshold,
        options.max_bits,
      )
    return optimizer
  keep_levels = functools.cache(maps_levels_to_themselves)
  for path, quantizer in quantizers.items():
    problem = ''
    if quantizer.fitted:
      problem = 'fits its levels next to training, so that codes of two steps cannot be compared'
    elif not keep_levels(quantizer):
      problem = 'does not map its levels to themselves, so that a weight cannot stay at a code'
    if problem:
      raise UserError(
        f'config.freezing.threshold={options.threshold}: the weight quantizer of {path} {problem}; set the threshold '
        "to 0, or config.quantizer.weights to another one, such as 'lsq'"
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
