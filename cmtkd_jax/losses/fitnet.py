"""FitNets: distance of the teacher's feature map and the student's adapted one (Romero et al., ICLR 2015)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.options import option

NORMS = ('mean_square', 'mean_abs', 'l2', 'l1')


def fitnet_loss(teacher: jax.Array, adapted_student: jax.Array, norm: str = 'mean_square') -> jax.Array:
  """Distance between the teacher's features and the student's after the adaptor r.

      d = F_T - r(F_S)
      'mean_square':  mean over all elements of d^2
      'mean_abs':     mean over all elements of |d|
      'l2':           mean_b (sum_{h,w,c} d_bhwc^2)^(1/2)
      'l1':           mean_b sum_{h,w,c} |d_bhwc|

  'l2' and 'l1' are eq. (6) with p = 2 and 1; they grow with the map, so that a loss weight belongs to one norm. The
  gradient flows into both arguments and is zero at d = 0.

  Args:
    teacher: [B, H, W, C], floating, finite.
    adapted_student: [B, H, W, C], floating, finite: r(F_S), the student's map after the adaptor.
    norm: one of 'mean_square', 'mean_abs', 'l2', 'l1'.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the shapes differ or are not [B, H, W, C], or `norm` is unknown.

  Source: CMT-KD eq. (6); Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
  """
  if norm not in NORMS:
    raise ValueError(f'norm must be one of {", ".join(NORMS)}; got {norm!r}')
  base.check_maps(teacher, adapted_student)
  difference = teacher.astype(jnp.float32) - adapted_student.astype(jnp.float32)
  if norm == 'mean_square':
    return jnp.mean(jnp.square(difference))
  if norm == 'l2':
    return jnp.mean(base.root(jnp.sum(jnp.square(difference), axis=(1, 2, 3))))
  absolute = base.absolute(difference)
  return jnp.mean(absolute) if norm == 'mean_abs' else jnp.mean(jnp.sum(absolute, axis=(1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class FitNet(base.FeatureLoss):
  """FitNets, `fitnet_loss`: D of eq. (6), the distance to the student's map after an adaptor."""

  adaptor: str = base.adaptor_option('conv')
  norm: str = option('mean_square', 'norm of the difference between feature maps', choices=NORMS)

  def __call__(self, teacher, student):
    return fitnet_loss(teacher, student, self.norm)
