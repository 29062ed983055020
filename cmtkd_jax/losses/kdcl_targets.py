"""Targets of KDCL: four ways to make one teacher of several networks' logits."""

import jax
import jax.numpy as jnp
import optax

from cmtkd_jax.losses import base

ITERATIONS = 100  # of the search for the linear mixture, one after another in every training step


def naive_target(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """For each sample the logits of the network with the smallest cross entropy; of equal ones the first.

  Args:
    logits: [M, B, C], floating, finite, of M networks.
    labels: [B], integer, the true class of each sample, in [0, C).

  Returns:
    [B, C], float32. The caller takes it as a constant.

  Raises:
    ValueError: the shapes do not fit.

  Source: KDCL-Naive, Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.
  """
  _check(logits, labels)
  logits = logits.astype(jnp.float32)
  own = base.of_class(jax.nn.log_softmax(logits, axis=-1), labels)
  best = jax.nn.one_hot(jnp.argmax(own, axis=0), logits.shape[0], axis=0, dtype=jnp.bool_)
  return jnp.sum(jnp.where(best[..., None], logits, 0.0), axis=0)


def linear_weights(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Weights of the mixture of logits that fits a batch best.

      a = argmin CE(sum_i a_i z_i, y)  subject to  sum_i a_i = 1, a_i >= 0

  The problem is convex; it is solved by accelerated projected gradient steps (FISTA) of a length that is safe for every
  batch.

  Args:
    logits: [M, B, C], floating, finite.
    labels: [B], integer, in [0, C).

  Returns:
    [M], float32, on the simplex.

  Raises:
    ValueError: the shapes do not fit.

  Source: KDCL-Linear, Guo et al., CVPR 2020; Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm",
  2009.
  """
  _check(logits, labels)
  # Only differences of classes count: centered, rounding stays small.
  z = logits.astype(jnp.float32) - jnp.mean(logits.astype(jnp.float32), axis=-1, keepdims=True)
  # The Hessian is mean_b Cov_p(z_b); its norm is at most its trace, a variance at most range^2 / 4.
  bound = jnp.mean(jnp.sum(jnp.square(jnp.max(z, axis=-1) - jnp.min(z, axis=-1)), axis=0)) / 4
  step = 1 / jnp.maximum(bound, jnp.finfo(jnp.float32).tiny)

  def loss(a):
    return -jnp.mean(base.of_class(jax.nn.log_softmax(jnp.tensordot(a, z, 1), axis=-1), labels))

  def iterate(k, state):
    a, ahead = state
    with jax.numpy_dtype_promotion('standard'):  # optax fails under strict type promotion
      new = optax.projections.projection_simplex(ahead - step * jax.grad(loss)(ahead))
    k = jnp.asarray(k, jnp.float32)
    return new, new + k / (k + 3) * (new - a)

  start = jnp.full(len(z), 1 / len(z), jnp.float32)
  return jax.lax.fori_loop(0, ITERATIONS, iterate, (start, start))[0]


def linear_target(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The mixture of logits with the least cross entropy in the batch, sum_i a_i z_i with a = `linear_weights`.

  Args and errors: as `linear_weights`. Returns [B, C], float32. Source: as there.
  """
  return jnp.tensordot(linear_weights(logits, labels), logits.astype(jnp.float32), 1)


def min_logit_target(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """For each class the smallest logit of M networks, counted from the true class.

      z[j] = min_i ( z_i[j] - z_i[c] )

  Two networks: `losses.min_logit`, the form of CMT-KD eq. (7).

  Args:
    logits: [M, B, C], floating, finite.
    labels: [B], integer, in [0, C).

  Returns:
    [B, C], float32.

  Raises:
    ValueError: the shapes do not fit.

  Source: KDCL-MinLogit, Guo et al., CVPR 2020.
  """
  _check(logits, labels)
  logits = logits.astype(jnp.float32)
  return jnp.min(logits - base.of_class(logits, labels, keepdims=True), axis=0)


def error_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
  """Products of the networks' errors, summed over the examples of a batch.

      E_ij = sum_b <f_i - t, f_j - t>,  f = softmax(z), t the one-hot label

  Args:
    logits: [M, B, C], floating, finite.
    labels: [B], integer, in [0, C).
    mask: [B], bool, which examples count.

  Returns:
    [M, M], float32.

  Raises:
    ValueError: the shapes do not fit.

  Source: KDCL-General, Guo et al., CVPR 2020.
  """
  _check(logits, labels)
  target = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
  errors = jax.nn.softmax(logits.astype(jnp.float32), axis=-1) - target[None]
  errors = jnp.where(mask[None, :, None], errors, 0.0)
  return jnp.einsum('ibc,jbc->ij', errors, errors, precision='highest')


def general_weights(errors: jax.Array) -> jax.Array:
  """Weights of the mixture of predictions with the least squared error.

      w = C^-1 1 / (1^T C^-1 1)

  A ridge of 1e-4 of the mean diagonal gives networks that are equal up to rounding the same weight. Weights can be
  negative.

  Args:
    errors: C, [M, M], floating, symmetric, positive semi-definite: the mean of `error_sums` over held-out examples.

  Returns:
    [M], float32, sums to 1.

  Raises:
    ValueError: `errors` is not [M, M].

  Source: KDCL-General, Guo et al., CVPR 2020.
  """
  if errors.ndim != 2 or errors.shape[0] != errors.shape[1]:
    raise ValueError(f'errors must be [M, M]; got {errors.shape}')
  errors = errors.astype(jnp.float32)
  networks = len(errors)
  mean = jnp.trace(errors) / networks
  unit = jnp.where(mean > 0, mean, 1.0)  # no error at all: equal weights
  ridge = 1e-4 * jnp.eye(networks, dtype=jnp.float32)
  w = jnp.linalg.solve(errors / unit + ridge, jnp.ones(networks, jnp.float32))
  return w / jnp.sum(w)


def general_target(logits: jax.Array, weights: jax.Array) -> jax.Array:
  """The mixture of predictions, as logits.

      z = log( p / sum_j p[j] ),  p = max( sum_i w_i softmax(z_i), 1e-8 )

  The floor is there for negative weights.

  Args:
    logits: [M, B, C], floating, finite.
    weights: [M], floating, sums to 1, from `general_weights`.

  Returns:
    [B, C], float32, <= 0.

  Raises:
    ValueError: the shapes do not fit.

  Source: KDCL-General, Guo et al., CVPR 2020.
  """
  if logits.ndim != 3 or weights.shape != logits.shape[:1]:
    raise ValueError(f'logits must be [M, B, C] and weights [M]; got {logits.shape} and {weights.shape}')
  mixed = jnp.tensordot(weights.astype(jnp.float32), jax.nn.softmax(logits.astype(jnp.float32), axis=-1), 1)
  p = jnp.maximum(mixed, 1e-8)
  return jnp.log(p / jnp.sum(p, axis=-1, keepdims=True))


def _check(logits, labels):
  if logits.ndim != 3:
    raise ValueError(f'logits must be [M, B, C]; got {logits.shape}')
  base.check_labels(logits[0], labels)
