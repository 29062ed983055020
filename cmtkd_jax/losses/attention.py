"""Attention transfer: distance between spatial attention maps (Zagoruyko and Komodakis, ICLR 2017)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.options import option

NORMS = ('mean_square', 'sum_square', 'l2', 'l1')


def attention_map(features: jax.Array, p: float = 2) -> jax.Array:
  """Flattened spatial attention map, scaled to unit l2 norm.

      Q[h, w] = sum_c |A[h, w, c]|^p
      a = vec(Q) / ||vec(Q)||_2

  An all-zero Q gives an all-zero map with gradient zero. So does a Q whose squared norm underflows.

  Args:
    features: [B, H, W, C], floating, finite; the squared norm of Q must not overflow float32.
    p: power > 0, a Python number. At A = 0 the gradient of |A|^p is taken as zero.

  Returns:
    [B, H * W], float32, >= 0; every row has l2 norm 1 or is all zero.

  Raises:
    ValueError: `features` is not [B, H, W, C], or p <= 0.

  Source: CMT-KD eq. (5); Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.
  """
  if features.ndim != 4:
    raise ValueError(f'features must be [B, H, W, C]; got {features.shape}')
  if not p > 0:
    raise ValueError(f'p must be > 0; got {p}')
  features = features.astype(jnp.float32)
  if p == 2:
    power = jnp.square(features)
  else:
    # The inner `where` keeps the infinite slope of x^p at 0 (p < 1) out of the gradient.
    is_zero = features == 0
    power = jnp.where(is_zero, 0.0, jnp.abs(jnp.where(is_zero, 1.0, features)) ** p)
  q = jnp.sum(power, axis=-1).reshape(features.shape[0], -1)
  return base.unit(q)


def attention_loss(teacher: jax.Array, student: jax.Array, p: float = 2, norm: str = 'mean_square') -> jax.Array:
  """Distance between the attention maps of teacher and student at one layer, averaged over the batch.

      d = a(F_T) - a(F_S)
      'mean_square':  mean_b  1 / (H W) * sum_i d_bi^2
      'sum_square':   mean_b  sum_i d_bi^2
      'l2':           mean_b  (sum_i d_bi^2)^(1/2)
      'l1':           mean_b  sum_i |d_bi|

  with a = `attention_map`. Eq. (5) leaves the norm open: 'l2' and 'l1' are its literal readings,
  'mean_square' is the form in use for attention transfer. They differ in size by orders of magnitude, so a
  loss weight belongs to one norm, and with 'mean_square' to one map size. The gradient flows into both
  arguments and is zero at d = 0. Compiled code may round two equal maps differently, by about 1e-8, and the
  slope of 'l2' and 'l1' does not shrink with d.

  Args:
    teacher: [B, H, W, C], floating, finite.
    student: [B, H, W, C'], floating, finite. C' may differ from C.
    p: power of the attention map, > 0, a Python number.
    norm: one of 'mean_square', 'sum_square', 'l2', 'l1'.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: [B, H, W] differ, an array is not [B, H, W, C], p <= 0, or `norm` is unknown.

  Source: CMT-KD eq. (5); Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.
  """
  if norm not in NORMS:
    raise ValueError(f'norm must be one of {", ".join(NORMS)}; got {norm!r}')
  if teacher.ndim != 4 or student.ndim != 4 or teacher.shape[:3] != student.shape[:3]:
    raise ValueError(
      f'teacher and student must be [B, H, W, C] with equal B, H and W; got {teacher.shape} and {student.shape}'
    )
  difference = attention_map(teacher, p) - attention_map(student, p)
  if norm == 'mean_square':
    return jnp.mean(jnp.square(difference))
  if norm == 'sum_square':
    return jnp.mean(jnp.sum(jnp.square(difference), axis=-1))
  if norm == 'l2':
    return jnp.mean(base.root(jnp.sum(jnp.square(difference), axis=-1)))
  return jnp.mean(jnp.sum(base.absolute(difference), axis=-1))


@dataclasses.dataclass(frozen=True)
class Attention(base.FeatureLoss):
  """Attention transfer, `attention_loss`, D of eq. (5); its default weight suits norm='mean_square' and large maps."""

  weight: float = base.weight_option(100.0)
  power: float = option(2.0, 'p of the attention map', above=0, most=8)  # beyond it, float32 overflows
  norm: str = option('mean_square', 'norm of the difference between attention maps', choices=NORMS)

  def __call__(self, teacher, student):
    return attention_loss(teacher, student, self.power, self.norm)
