"""OFD: the overhaul of feature distillation (Heo et al., ICCV 2019): margin ReLU and partial distance."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base


def overhaul_margin(mean: jax.Array, deviation: jax.Array) -> jax.Array:
  """Mean of the negative values of each Gaussian channel.

      m = E[t | t < 0] = mu - sigma phi(mu / sigma) / Phi(-mu / sigma),  or -3 sigma where Phi(-mu / sigma) <= 0.001

  Args:
    mean, deviation: mu and sigma, [C], floating; sigma > 0. Of a feature map after batch normalization they are its
      bias and the magnitude of its scale.

  Returns:
    [C], float32, negative.

  Raises:
    ValueError: the shapes differ or are not [C].

  Source: OFD section 3.2 and its published code.
  """
  if mean.ndim != 1 or mean.shape != deviation.shape:
    raise ValueError(f'mean and deviation must both be [C]; got {mean.shape} and {deviation.shape}')
  mean, deviation = mean.astype(jnp.float32), deviation.astype(jnp.float32)
  ratio = mean / deviation
  mass = jax.scipy.stats.norm.cdf(-ratio)
  exact = mean - deviation * jax.scipy.stats.norm.pdf(ratio) / jnp.maximum(mass, 1e-3)
  return jnp.where(mass > 1e-3, exact, -3 * deviation)


def overhaul_loss(teacher: jax.Array, student: jax.Array, margin: jax.Array) -> jax.Array:
  """Squared distance to the teacher's feature map after its margin ReLU, except where both are off.

      t' = max(t, m_c)
      mean_b sum_{h,w,c}  (s - t')^2 1[s > t' or t' > 0]

  The gradient flows into both maps.

  Args:
    teacher: t, [B, H, W, C], floating, before the ReLU or quantizer.
    student: s, [B, H, W, C], floating, likewise, after an adaptor.
    margin: m, [C], float32, a constant; see `overhaul_margin`.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the shapes differ or are not [B, H, W, C].

  Source: OFD eqs. (1), (3).
  """
  base.check_maps(teacher, student)
  t, s = teacher.astype(jnp.float32), student.astype(jnp.float32)
  target = jnp.maximum(t, margin[None, None, None])
  counts = (s > target) | (target > 0)
  return jnp.mean(jnp.sum(jnp.where(counts, jnp.square(s - target), 0.0), axis=(1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class Overhaul(base.FeatureLoss):
  """OFD, `overhaul_loss`, with margins from the batch: right after a batch normalization, its bias and scale."""

  weight: float = base.weight_option(1e-3)
  tap_factor: float = base.tap_factor_option(0.5)
  adaptor: str = base.adaptor_option('conv_norm')
  maps = 'pre_quantizer'

  def __call__(self, teacher, student):
    t = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    margin = overhaul_margin(jnp.mean(t, (0, 1, 2)), jnp.maximum(jnp.std(t, (0, 1, 2)), 1e-6))
    return overhaul_loss(teacher, student, margin)
