"""Minimum-logit ensemble of the combined teacher and the student."""

import jax
import jax.numpy as jnp


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
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(f'logits must be [B, C] and labels [B]; got {logits.shape} and {labels.shape}')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'labels must be integers; got {labels.dtype}')
  z = logits.astype(jnp.float32)
  # A masked sum reads z[c]; its gradient is a select, where that of an indexed read would be a scatter.
  true_class = jax.nn.one_hot(labels, z.shape[-1], dtype=jnp.bool_)
  return z - jnp.sum(jnp.where(true_class, z, 0.0), axis=-1, keepdims=True)


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
  if teacher_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
    raise ValueError(
      f'teacher_logits and student_logits must both be [B, C]; got {teacher_logits.shape} and {student_logits.shape}'
    )
  return jnp.minimum(from_true_class(teacher_logits, labels), from_true_class(student_logits, labels))
