"""Cross entropy between two predicted class distributions."""

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def soft_cross_entropy(target_logits: jax.Array, logits: jax.Array, temperature: float = 1.0) -> jax.Array:
  """Mean cross entropy of a batch with a predicted target.

      p = softmax(target_logits / tau),  q = softmax(logits / tau)
      H(p, q) = -mean_b sum_j p_bj log q_bj

  No factor tau^2 is applied. It exceeds `kl_divergence` (at tau = 1) by the entropy of p, so that with a constant
  target the gradients are equal. The gradient flows into both arguments.

  Args:
    target_logits: [B, C], floating, finite.
    logits: [B, C], floating, finite.
    temperature: tau > 0.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the shapes differ or are not [B, C].

  Source: Mishra and Marr, "Apprentice", ICLR 2018.
  """
  base.check_logits(target_logits, logits)
  p = jax.nn.softmax(target_logits.astype(jnp.float32) / temperature, axis=-1)
  log_q = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
  return -jnp.mean(jnp.sum(p * log_q, axis=-1))
