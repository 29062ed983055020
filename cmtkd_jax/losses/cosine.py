"""Cosine distance of two networks' outputs."""

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def cosine_loss(target: jax.Array, x: jax.Array) -> jax.Array:
  """Mean cosine distance of a batch of vectors.

      L = mean_b ( 1 - <t_b, x_b> / (||t_b||_2 ||x_b||_2) )

  A zero vector has a distance of 1 and no gradient. The gradient flows into both arguments.

  Args:
    target: [B, C], floating, finite; squared norms must not overflow float32.
    x: [B, C], floating, finite, likewise.

  Returns:
    Scalar, float32, in [0, 2] up to rounding.

  Raises:
    ValueError: the shapes differ or are not [B, C].

  Source: Boo et al., "Stochastic Precision Ensemble", AAAI 2021.
  """
  base.check_logits(target, x)
  t, x = target.astype(jnp.float32), x.astype(jnp.float32)
  return 1 - jnp.mean(jnp.sum(base.unit(t) * base.unit(x), axis=-1))
