"""Cosine distance of two networks' outputs."""

import jax
import jax.numpy as jnp


def cosine_loss(target: jax.Array, x: jax.Array) -> jax.Array:
  """Mean cosine distance of a batch of vectors.

      L = mean_b ( 1 - <t_b, x_b> / (||t_b||_2 ||x_b||_2) )

  A zero vector counts 1 and gets gradient zero. The gradient flows into both arguments.

  Args:
    target: [B, C], floating, finite; squared norms must not overflow float32.
    x: [B, C], floating, finite, likewise.

  Returns:
    Scalar, float32, in [0, 2] up to rounding.

  Raises:
    ValueError: the shapes differ or are not [B, C].

  Source: Boo et al., "Stochastic Precision Ensemble", AAAI 2021.
  """
  if x.ndim != 2 or target.shape != x.shape:
    raise ValueError(f'target and x must both be [B, C]; got {target.shape} and {x.shape}')

  def unit(v):
    v = v.astype(jnp.float32)
    squared_norm = jnp.sum(jnp.square(v), axis=-1, keepdims=True)
    has_norm = squared_norm >= jnp.finfo(jnp.float32).tiny
    # The inner `where` keeps the infinite slope of the root at 0 out of the gradient.
    return jnp.where(has_norm, v / jnp.sqrt(jnp.where(has_norm, squared_norm, 1.0)), 0.0)

  return 1 - jnp.mean(jnp.sum(unit(target) * unit(x), axis=-1))
