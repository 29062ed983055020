"""SP: similarity-preserving distillation (Tung and Mori, ICCV 2019)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def similarity_matrix(features: jax.Array) -> jax.Array:
  """How alike the examples of a batch are to each other.

      G~ = F F^T,  F: [B, H W C];   G = each row of G~ over its l2 norm (an all-zero row stays zero)

  Args:
    features: [B, H, W, C], floating.

  Returns:
    [B, B], float32, rows of norm 1 or 0.

  Raises:
    ValueError: the array is not [B, H, W, C].

  Source: SP eqs. (1), (2).
  """
  if features.ndim != 4:
    raise ValueError(f'features must be [B, H, W, C]; got {features.shape}')
  flat = features.astype(jnp.float32).reshape(features.shape[0], -1)
  gram = jnp.matmul(flat, flat.T, precision='highest')
  return base.unit(gram)


def similarity_loss(teacher: jax.Array, student: jax.Array) -> jax.Array:
  """Mean squared difference of two similarity matrices: 1 / B^2 * ||G_T - G_S||_F^2.

  The gradient flows into both arguments.

  Args:
    teacher: [B, H, W, C], floating.
    student: [B, H', W', C'], floating.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the batches differ, or an array is not [B, H, W, C].

  Source: SP eq. (4), one layer.
  """
  if teacher.shape[:1] != student.shape[:1]:
    raise ValueError(f'teacher and student must be [B, H, W, C] with equal B; got {teacher.shape} and {student.shape}')
  return jnp.mean(jnp.square(similarity_matrix(teacher) - similarity_matrix(student)))


@dataclasses.dataclass(frozen=True)
class Similarity(base.FeatureLoss):
  """Similarity-preserving distillation, `similarity_loss`."""

  weight: float = base.weight_option(3000.0)

  def __call__(self, teacher, student):
    return similarity_loss(teacher, student)
