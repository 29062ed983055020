"""DIST: distillation by correlation from a stronger teacher (Huang et al., NeurIPS 2022)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.options import option


def pearson(a: jax.Array, b: jax.Array, axis: int, epsilon: float = 0.0) -> jax.Array:
  """Pearson correlation along one axis, damped where the deviations are small.

      rho = <a', b'> / (||a'|| ||b'|| + epsilon),  a' = a - mean a,  b' = b - mean b

  Where `a` or `b` is constant, rho is 0 and passes no gradient.

  Args:
    a, b: floating, of one shape.
    axis: along which they are compared.
    epsilon: >= 0; 0 gives the correlation itself.

  Returns:
    float32, the shape without `axis`, in [-1, 1] up to rounding.

  Source: DIST, and its published code for epsilon.
  """

  def direction(x):
    x = x - jnp.mean(x, axis=axis, keepdims=True)
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    varies = squared >= jnp.finfo(jnp.float32).tiny
    # The inner `where` keeps the infinite slope of the root at 0 out of the gradient.
    norm = jnp.sqrt(jnp.where(varies, squared, 1.0))
    return jnp.where(varies, x / norm, 0.0), jnp.squeeze(norm, axis)

  (a, norm_a), (b, norm_b) = direction(a), direction(b)
  rho = jnp.sum(a * b, axis=axis)
  return rho * (norm_a * norm_b / (norm_a * norm_b + epsilon)) if epsilon else rho


def correlation_loss(
  target_logits: jax.Array,
  logits: jax.Array,
  temperature: float,
  beta: float = 1.0,
  gamma: float = 1.0,
  epsilon: float = 1e-8,
) -> jax.Array:
  """Loss of linear correlation between predictions, within each example and within each class.

      p, q = softmax of target_logits / tau, logits / tau;   rho: `pearson`
      L = tau^2 [ beta (1 - mean_b rho(p_b., q_b.)) + gamma (1 - mean_j rho(p_.j, q_.j)) ]

  The gradient flows into both sets of logits.

  Args:
    target_logits, logits: [B, C], floating, finite.
    temperature: tau > 0.
    beta, gamma: weights >= 0 of the relations between classes, and of those between examples.
    epsilon: >= 0, in the denominator of rho. 1e-8 is the published code's: classes with near-zero predicted
      probability hardly vary, and then count as uncorrelated. 0 is the paper's formula.

  Returns:
    Scalar, float32, in [0, 2 tau^2 (beta + gamma)] up to rounding.

  Raises:
    ValueError: the shapes differ or are not [B, C].

  Source: DIST eqs. (7)-(9), and its published code for epsilon.
  """
  base.check_logits(target_logits, logits)
  p = jax.nn.softmax(target_logits.astype(jnp.float32) / temperature, axis=-1)
  q = jax.nn.softmax(logits.astype(jnp.float32) / temperature, axis=-1)
  inter = 1 - jnp.mean(pearson(p, q, axis=1, epsilon=epsilon))
  intra = 1 - jnp.mean(pearson(p, q, axis=0, epsilon=epsilon))
  return temperature**2 * (beta * inter + gamma * intra)


@dataclasses.dataclass(frozen=True)
class DIST(base.LogitLoss):
  """DIST, `correlation_loss`. Its authors weight it by 2."""

  beta: float = option(1.0, 'weight of the correlation over classes')
  gamma: float = option(1.0, 'weight of the correlation over the batch')
  epsilon: float = option(1e-8, 'added to the norms that are divided by')

  def __call__(self, target_logits, logits, labels, temperature):
    return correlation_loss(target_logits, logits, temperature, self.beta, self.gamma, self.epsilon)
