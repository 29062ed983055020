"""One group of parameters for each network, with its learning rate and weight decay; SGD, AdamW or LAMB."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from cmtkd_jax import quantizers
from cmtkd_jax.config import durations
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import IMPORTANCE
from cmtkd_jax.models import inspect, layers
from cmtkd_jax.models.bit_policy import quantizer_names

QUANTIZER_GROUP = 'quantizer'  # learned steps and the like
OTHER_GROUP = 'other'  # combined classifier, adaptors
FROZEN_GROUP = 'frozen'  # trained teachers that stay as they are
LOW_BITS = 2  # weights of so few bits get the smaller weight decay


@dataclasses.dataclass(frozen=True)
class Group:
  """Learning rate relative to the network's, and weight decay, of one group of parameters."""

  learning_rate_factor: float
  weight_decay: float


def groups(config, method):
  """Returns `{name: Group}`: one a network by its weight width, importance factors, quantizers, and the rest.

  Weight decay of a network applies to all its parameters, biases and normalization too, as in plain SGD, and to the
  values of its quantizers that are decayed like weights, such as PACT's clip; all others have a group of their own.
  Source: CMT-KD section 4.1 (25e-6 for 1 or 2 bits, 1e-4 above; importance factors at a tenth of the rate).
  """
  optimizer = config.optimizer
  by_bits = lambda bits: optimizer.weight_decay_low_bits if bits <= LOW_BITS else optimizer.weight_decay
  networks = {name: Group(1.0, by_bits(bits)) for name, bits in method.weight_bits.items()}
  importance = Group(optimizer.importance_lr_factor, 0.0)
  return networks | {
    **({IMPORTANCE: importance} if method.has_importance else {}),
    QUANTIZER_GROUP: Group(optimizer.quantizer_lr_factor, optimizer.quantizer_weight_decay),
    OTHER_GROUP: Group(1.0, optimizer.weight_decay),
  }


def group_of(path, method, decayed=()):
  """Returns the name of the group of the parameter at `path`, a tuple of names, the network first.

  decayed: the quantizers' parameters that are decayed like weights, as `(module, parameter)`.
  """
  if path[0] in method.frozen:
    return FROZEN_GROUP
  if method.has_importance and path[0] == IMPORTANCE:
    return IMPORTANCE
  if inspect.is_quantizer_path(path) and path[-2:] not in decayed:
    return QUANTIZER_GROUP
  return path[0] if path[0] in method.weight_bits else OTHER_GROUP


def learning_rate(config, total_steps, **sizes):
  """Returns the network's learning rate as a function of the step: [warm-up], then step decay or cosine to zero.

  Args:
    config: the run's configuration.
    total_steps: of the training.
    **sizes: as for `durations.parse`.

  Raises:
    UserError: the warm-up or a decay does not lie within the training, or a decay lies within the warm-up.
  """
  optimizer = config.optimizer
  warmup = durations.parse_one(optimizer.warmup, 'config.optimizer.warmup', **sizes)
  if warmup >= total_steps:
    raise UserError(
      f'config.optimizer.warmup={optimizer.warmup!r} does not end before the training of {total_steps} '
      'steps; shorten it'
    )
  if optimizer.schedule == 'cosine':
    main = optax.cosine_decay_schedule(optimizer.learning_rate, max(1, total_steps - warmup))
  else:
    decay_at = durations.parse(optimizer.decay_at, 'config.optimizer.decay_at', **sizes)
    if decay_at and decay_at[0] < warmup:
      raise UserError(
        f'config.optimizer.decay_at={optimizer.decay_at!r} begins before config.optimizer.warmup={optimizer.warmup!r} '
        'ends; decay later, or shorten the warm-up'
      )
    if decay_at and not 0 < decay_at[0] <= decay_at[-1] < total_steps:
      raise UserError(
        f'config.optimizer.decay_at={optimizer.decay_at!r} must lie within the training of {total_steps} '
        f"steps (config.duration={config.duration!r}); scale it with the duration, or set it to '' for a "
        'constant rate'
      )
    # Steps count from the start of training, warm-up included.
    main = lambda step: (
      optimizer.learning_rate
      * optimizer.decay_factor ** sum(jnp.asarray(step + warmup >= boundary, jnp.float32) for boundary in decay_at)
    )
  if not warmup:
    return main
  return optax.join_schedules([optax.linear_schedule(0.0, optimizer.learning_rate, warmup), main], [warmup])


def rates(config, method, rate):
  """Returns `{name: learning rate}` to log, where `rate` is that of the networks."""
  logged = {'train/learning_rate': float(rate)}
  if method.has_importance:
    logged[f'train/{IMPORTANCE}/learning_rate'] = config.optimizer.importance_lr_factor * float(rate)
  return logged


def _sgd(options, rate, decay):
  """w <- w - lr v,  v <- m v + (g + decay w): L2 regularization."""
  # The state has the same structure without decay: a run can resume with another one.
  regularize = optax.add_decayed_weights(decay) if decay else optax.identity()
  return optax.chain(regularize, optax.sgd(rate, options.momentum, options.nesterov))


def _adamw(options, rate, decay):
  """w <- w - lr (m / (sqrt(v) + 1e-8) + decay w), moments without bias (Loshchilov and Hutter, ICLR 2019)."""
  return optax.adamw(rate, options.momentum, options.beta2, weight_decay=decay, nesterov=options.nesterov)


def _lamb(options, rate, decay):
  """AdamW's update of each array, with 1e-6, scaled to the norm of the array (You et al., ICLR 2020).

  Vectors and scalars keep AdamW's: most start at zero, such as biases and importance factors, and would stay there.
  """
  has_axes = lambda updates: jax.tree.map(lambda x: x.ndim > 1, updates)
  return optax.chain(
    optax.scale_by_adam(options.momentum, options.beta2, eps=1e-6),
    optax.add_decayed_weights(decay),
    optax.masked(optax.scale_by_trust_ratio(), has_axes),
    optax.scale_by_learning_rate(rate),
  )


_RULES = {'sgd': _sgd, 'adamw': _adamw, 'lamb': _lamb}


def create(config, method, schedule):
  """Returns the optax transformation for the whole parameter dict of `method`, with a rate and decay per group."""
  optimizer = config.optimizer

  def transform(group):
    rate = lambda step: group.learning_rate_factor * schedule(step)
    return _RULES[optimizer.name](optimizer, rate, group.weight_decay)

  def labels(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: group_of(tuple(key.key for key in path), method, decayed), params
    )

  decayed = _decayed(config.quantizer)
  transforms = {name: transform(group) for name, group in groups(config, method).items()}
  transforms[FROZEN_GROUP] = optax.set_to_zero()
  whole = optax.chain(optax.partition(transforms, labels))  # a chain of one, as checkpoints have it
  return _clipped(whole, optimizer.grad_clip_norm) if optimizer.grad_clip_norm else whole


def _clipped(optimizer, norm):
  """`optimizer` with clipped gradients and a state of the same structure: a run that diverged can resume with it."""
  clip = optax.clip_by_global_norm(norm)

  def update(gradients, state, params=None):
    return optimizer.update(clip.update(gradients, clip.init(params))[0], state, params)

  return optax.GradientTransformation(optimizer.init, update)


def _decayed(quantizer):
  """What the configured quantizers decay like weights, as `(module, parameter)`."""
  found = []
  for role, name in quantizer_names(quantizer).items():
    cls = getattr(quantizers.QUANTIZERS[name], role.capitalize(), None)
    found += [(layers.quantizer_name(role), parameter) for parameter in (cls.decayed if cls else ())]
  return found
