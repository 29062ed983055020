"""Shared knowledge of several teachers: their quantized activations, mixed by learned importance."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def importance(theta: jax.Array) -> jax.Array:
  """Importance of each teacher at one layer.

      pi = softmax(theta),  so that sum_i pi_i = 1 and 0 <= pi_i <= 1

  Args:
    theta: [n], floating, free parameters, one for each teacher. All equal gives each teacher 1 / n.

  Returns:
    [n], float32.

  Raises:
    ValueError: `theta` is not [n].

  Source: the constraint of CMT-KD eq. (1).
  """
  if theta.ndim != 1:
    raise ValueError(f'theta must be [n]; got {theta.shape}')
  return jax.nn.softmax(theta.astype(jnp.float32))


def shared_knowledge(activations: Sequence[jax.Array], theta: jax.Array) -> jax.Array:
  """Shared knowledge of n teachers at one layer: the mixture of their quantized activations.

      F_T = sum_i pi_i * Q(A_i, b_i),  pi = softmax(theta)

  The gradient is pi_i * G into activation i, and pi_i * (<G, A_i> - <G, F_T>) into theta_i, where G is the
  gradient that arrives at F_T. The sum is taken in float32.

  Args:
    activations: n arrays [B, H, W, C] of one floating dtype, already quantized by their teachers.
    theta: [n], floating, free parameters of the importance.

  Returns:
    [B, H, W, C] in the dtype of the activations.

  Raises:
    ValueError: n is 0 or differs from the length of `theta`, or the activations differ in shape or dtype.

  Source: CMT-KD eq. (1).
  """
  if len(activations) == 0 or theta.shape != (len(activations),):
    raise ValueError(f'theta must be [n] for n >= 1 activations; got {theta.shape} for {len(activations)}')
  if len({(a.shape, a.dtype) for a in activations}) > 1:
    described = ', '.join(f'{a.dtype}{list(a.shape)}' for a in activations)
    raise ValueError(f'activations must have one shape and one dtype; got {described}')
  shared = jnp.zeros(activations[0].shape, jnp.float32)
  for pi_i, a_i in zip(jnp.unstack(importance(theta)), activations):
    shared = shared + pi_i * a_i.astype(jnp.float32)
  return shared.astype(activations[0].dtype)
