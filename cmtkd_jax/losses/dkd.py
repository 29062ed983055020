"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.options import option


def decoupled_loss(
  target_logits: jax.Array,
  logits: jax.Array,
  labels: jax.Array,
  temperature: float,
  alpha: float = 1.0,
  beta: float = 8.0,
) -> jax.Array:
  """KL divergence of the label against the rest, and that of the rest among itself, weighted separately.

      p, q = softmax of target_logits / tau, logits / tau;   b = (p_y, 1 - p_y);   p^ = p_j / (1 - p_y) for j != y
      L = tau^2 mean_b [ alpha KL(b^p || b^q) + beta KL(p^ || q^) ]

  With alpha = 1 and beta = 1 - p_y it would be the KL divergence. The gradient flows into both sets of logits.

  Args:
    target_logits, logits: [B, C], floating, finite, C >= 2.
    labels: y, [B], integer in 0..C-1.
    temperature: tau > 0.
    alpha, beta: weights >= 0.

  Returns:
    Scalar, float32, >= 0 up to rounding.

  Raises:
    ValueError: the shapes do not fit, or `labels` is not of an integer dtype.

  Source: DKD eqs. (5)-(7).
  """
  base.check_logits(target_logits, logits)
  base.check_labels(logits, labels)
  is_label = labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
  binary_p, rest_p = _decouple(target_logits, is_label, temperature)
  binary_q, rest_q = _decouple(logits, is_label, temperature)
  target_class = jnp.sum(jnp.exp(binary_p) * (binary_p - binary_q), axis=-1)
  others = jnp.sum(jnp.where(is_label, 0.0, jnp.exp(rest_p) * (rest_p - rest_q)), axis=-1)
  return temperature**2 * jnp.mean(alpha * target_class + beta * others)


def _decouple(logits, is_label, temperature):
  """log (p_y, 1 - p_y) [B, 2], and log p^ [B, C], 0 at the label."""
  z = logits.astype(jnp.float32) / temperature
  rest = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, z), axis=-1)
  own = jnp.sum(jnp.where(is_label, z, 0.0), axis=-1)
  binary = jax.nn.log_softmax(jnp.stack([own, rest], axis=-1), axis=-1)
  return binary, jnp.where(is_label, 0.0, z - rest[:, None])


@dataclasses.dataclass(frozen=True)
class DKD(base.LogitLoss):
  """DKD, `decoupled_loss`. Its authors choose beta between 2 and 8 by the pair, and raise the weight over 20 epochs."""

  alpha: float = option(1.0, 'weight of the label against the rest')
  beta: float = option(8.0, 'weight of the rest among itself')

  def __call__(self, target_logits, logits, labels, temperature):
    return decoupled_loss(target_logits, logits, labels, temperature, self.alpha, self.beta)
