"""DIST: distillation by correlation from a stronger teacher (Huang et al., NeurIPS 2022)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def pearson(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
  """Pearson correlation of `a` and `b` along `axis`, float32; 0 where one of them is constant."""
  a, b = (x - jnp.mean(x, axis=axis, keepdims=True) for x in (a, b))
  squared = jnp.sum(jnp.square(a), axis=axis) * jnp.sum(jnp.square(b), axis=axis)
  varies = squared > jnp.finfo(jnp.float32).tiny
  return jnp.where(varies, jnp.sum(a * b, axis=axis) / jnp.sqrt(jnp.where(varies, squared, 1.0)), 0.0)


def correlation_loss(target_logits: jax.Array, logits: jax.Array, temperature: float, beta: float = 1.0,
                     gamma: float = 1.0) -> jax.Array:
  """Loss of linear correlation between predictions, within each example and within each class.

      p, q = softmax of target_logits / tau, logits / tau;   rho: Pearson correlation
      L = tau^2 [ beta (1 - mean_b rho(p_b., q_b.)) + gamma (1 - mean_j rho(p_.j, q_.j)) ]

  The gradient flows into both sets of logits.

  Args:
    target_logits, logits: [B, C], floating, finite.
    temperature: tau > 0.
    beta, gamma: weights >= 0 of the relations between classes, and of those between examples.

  Returns:
    Scalar, float32, in [0, 2 tau^2 (beta + gamma)] up to rounding.

  Raises:
    ValueError: the shapes differ or are not [B, C].

  Source: DIST eqs. (7)-(9).
  """
  base.check_logits(target_logits, logits)
  p = jax.nn.softmax(target_logits.astype(jnp.float32) / temperature, axis=-1)
  q = jax.nn.softmax(logits.astype(jnp.float32) / temperature, axis=-1)
  inter = 1 - jnp.mean(pearson(p, q, axis=1))
  intra = 1 - jnp.mean(pearson(p, q, axis=0))
  return temperature**2 * (beta * inter + gamma * intra)


@dataclasses.dataclass(frozen=True)
class DIST(base.LogitLoss):
  """`correlation_loss`. Its authors weigh it by 2."""
  beta: float = 1.0
  gamma: float = 1.0

  def __call__(self, target_logits, logits, labels, temperature):
    return correlation_loss(target_logits, logits, temperature, self.beta, self.gamma)
