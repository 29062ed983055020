"""Kullback-Leibler divergence between two softened class distributions (Hinton et al., 2015)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def kl_divergence(target_logits: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
  """Distillation loss: mean KL divergence of a batch, target first.

      p = softmax(target_logits / tau),  q = softmax(logits / tau)
      L_KL = tau^2 * mean_b sum_j p_bj (log p_bj - log q_bj)

  The factor tau^2 keeps the size of the gradient about the same for every tau. The target is given as
  logits; in CMT-KD these are the minimum logits of eq. (7). The gradient flows into both arguments: a caller
  who wants a constant target passes `jax.lax.stop_gradient(target_logits)`.

  Args:
    target_logits: [B, C], floating, finite.
    logits: [B, C], floating, finite.
    temperature: tau > 0.

  Returns:
    Scalar, float32, >= 0 up to rounding.

  Raises:
    ValueError: the shapes differ or are not [B, C].

  Source: CMT-KD eqs. (8) and (9); Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
  """
  base.check_logits(target_logits, logits)
  log_p = jax.nn.log_softmax(target_logits.astype(jnp.float32) / temperature, axis=-1)
  log_q = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
  return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


@dataclasses.dataclass(frozen=True)
class KLDivergence(base.LogitLoss):
  """Hinton's distillation, tau^2 KL, `kl_divergence`."""

  def __call__(self, target_logits, logits, labels, temperature):
    return kl_divergence(target_logits, logits, temperature)
