"""Logit standardization before distillation (Sun et al., CVPR 2024)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.losses.kl_divergence import kl_divergence

_EPSILON = 1e-7


def standardize(logits: jax.Array) -> jax.Array:
  """Z-score of each example's logits: (z - mean z) / (std z + 1e-7), the unbiased deviation over the classes.

  Shifted or positively scaled logits have the same score. Equal ones have all zeros, and no gradient.

  Args:
    logits: [B, C], floating, C >= 2.

  Returns:
    [B, C], float32.

  Raises:
    ValueError: the array is not [B, C] with two classes or more.

  Source: logit standardization, algorithm 1.
  """
  if logits.ndim != 2 or logits.shape[-1] < 2:
    raise ValueError(f'logits must be [B, C] with C >= 2; got {logits.shape}')
  z = logits.astype(jnp.float32)
  centered = z - jnp.mean(z, axis=-1, keepdims=True)
  variance = jnp.sum(jnp.square(centered), axis=-1, keepdims=True) / (z.shape[-1] - 1)
  varies = variance > 0
  return jnp.where(varies, centered / (jnp.sqrt(jnp.where(varies, variance, 1.0)) + _EPSILON), 0.0)


def standardized_kl(target_logits: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
  """`kl_divergence` of the z-scores: only how the classes relate to each other counts, not the size of the logits.

  Args, returns and errors: as `kl_divergence`. Source: logit standardization, algorithm 2.
  """
  base.check_logits(target_logits, logits)
  return kl_divergence(standardize(target_logits), standardize(logits), temperature)


@dataclasses.dataclass(frozen=True)
class StandardizedKD(base.LogitLoss):
  """KD of z-scored logits. Its authors use a temperature of 2 and weight it by 9, the cross entropy by 0.1."""

  def __call__(self, target_logits, logits, labels, temperature):
    return standardized_kl(target_logits, logits, temperature)
