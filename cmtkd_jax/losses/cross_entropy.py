"""Cross entropy between logits and class labels."""

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def cross_entropy(logits: jax.Array, labels: jax.Array, temperature: float = 1.0, smoothing: float = 0.0) -> jax.Array:
  """Mean cross entropy of a batch.

      L_CE = -mean_b log softmax(logits_b / tau)[c_b]

  With smoothing, the target is (1 - epsilon) onehot(c) + epsilon / C:

      L_CE = -mean_b ((1 - epsilon) log p_b[c_b] + epsilon / C sum_j log p_b[j]),  p_b = softmax(logits_b / tau)

  No factor tau^2 is applied. A label outside [0, C) gives its sample the loss of the smoothing alone, by default
  zero.

  Args:
    logits: [B, C], floating, finite.
    labels: [B], integer, the true class c of each sample, in [0, C).
    temperature: tau > 0.
    smoothing: epsilon in [0, 1).

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the shapes are not [B, C] and [B], or `labels` is not of an integer dtype.

  Source: the terms L_CE of CMT-KD eq. (10); smoothing of Szegedy et al., CVPR 2016, section 7.
  """
  base.check_labels(logits, labels)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
  hard = -jnp.mean(base.of_class(log_p, labels))
  return (1 - smoothing) * hard - smoothing * jnp.mean(log_p) if smoothing else hard
