"""AB: transfer of activation boundaries, of which neurons are on (Heo et al., AAAI 2019)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.options import option


def activation_boundary_loss(teacher: jax.Array, student: jax.Array, margin: float = 1.0) -> jax.Array:
  """Hinge loss on the side of zero on which each neuron lies, before its non-linearity.

      mean_b sum_{h,w,c}  (s + m)^2 1[s > -m, t <= 0]  +  (s - m)^2 1[s <= m, t > 0]

  The gradient flows into the student alone: of the teacher only the sign counts.

  Args:
    teacher: t, [B, H, W, C], floating, before the ReLU or quantizer.
    student: s, [B, H, W, C], floating, likewise, after an adaptor.
    margin: m > 0.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the shapes differ or are not [B, H, W, C].

  Source: AB eq. (6) and its published code.
  """
  base.check_maps(teacher, student)
  t, s = teacher.astype(jnp.float32), student.astype(jnp.float32)
  off = jnp.where((s > -margin) & (t <= 0), jnp.square(s + margin), 0.0)
  on = jnp.where((s <= margin) & (t > 0), jnp.square(s - margin), 0.0)
  return jnp.mean(jnp.sum(off + on, axis=(1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class ActivationBoundary(base.FeatureLoss):
  """Activation boundaries, `activation_boundary_loss`: along with the training, where AB initializes by it."""

  weight: float = base.weight_option(3e-3)
  tap_factor: float = base.tap_factor_option(0.5)
  adaptor: str = base.adaptor_option('conv_norm')
  margin: float = option(1.0, 'margin that a feature keeps from 0 on its side', above=0)
  maps = 'pre_quantizer'

  def __call__(self, teacher, student):
    return activation_boundary_loss(teacher, student, self.margin)
