"""Minimum-logit ensemble of the combined teacher and the student."""

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def from_true_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Counts logits from the true class, whose own logit becomes 0: zt = z - z[c]. Their softmax is the same.

  Args:
    logits: [B, C], floating, finite.
    labels: [B], integer, the true class c of each sample, in [0, C). Outside it nothing is subtracted.

  Returns:
    [B, C], float32.

  Raises:
    ValueError: the shapes are not [B, C] and [B], or `labels` is not of an integer dtype.

  Source: CMT-KD eq. (7).
  """
  base.check_labels(logits, labels)
  z = logits.astype(jnp.float32)
  return z - base.of_class(z, labels, keepdims=True)


def min_logit(teacher_logits: jax.Array, student_logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Target logits: for each class the smaller of the two logits, both counted from the true class.

      zt_T = z_T - z_T[c],  zt_S = z_S - z_S[c]
      z[j] = min(zt_T[j], zt_S[j]),  j = 1..C

  The true class always gets 0. For each class the gradient flows into the network that has the minimum; at a
  tie each of the two gets half. A caller who wants a constant target applies `jax.lax.stop_gradient`.

  Args:
    teacher_logits: [B, C], floating, finite.
    student_logits: [B, C], floating, finite.
    labels: [B], integer, the true class c of each sample, in [0, C). Outside it nothing is subtracted.

  Returns:
    [B, C], float32.

  Raises:
    ValueError: the shapes are not [B, C], [B, C] and [B], or `labels` is not of an integer dtype.

  Source: CMT-KD eq. (7); Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.
  """
  base.check_logits(teacher_logits, student_logits)
  return jnp.minimum(from_true_class(teacher_logits, labels), from_true_class(student_logits, labels))
