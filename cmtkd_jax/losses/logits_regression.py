"""Regression of one network's logits on another's (Ba and Caruana, NIPS 2014)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax.losses import base
from cmtkd_jax.options import option

REDUCTIONS = ('mean', 'sum')


def logits_regression(target_logits: jax.Array, logits: jax.Array, reduction: str = 'mean') -> jax.Array:
  """Squared distance of logits, averaged over the batch.

      'mean':  mean_b  1 / C * sum_j (z_T - z)_bj^2
      'sum':   mean_b  sum_j (z_T - z)_bj^2

  The gradient flows into both arguments: a caller who wants a constant target applies `jax.lax.stop_gradient`.

  Args:
    target_logits: [B, C], floating, finite.
    logits: [B, C], floating, finite.
    reduction: over the classes, 'mean' or 'sum'.

  Returns:
    Scalar, float32, >= 0.

  Raises:
    ValueError: the shapes differ or are not [B, C], or `reduction` is unknown.

  Source: 'mean', Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014; 'sum', the published code of CTKD.
  """
  if reduction not in REDUCTIONS:
    raise ValueError(f'reduction must be one of {", ".join(REDUCTIONS)}; got {reduction!r}')
  base.check_logits(target_logits, logits)
  squared = jnp.square(target_logits.astype(jnp.float32) - logits.astype(jnp.float32))
  return jnp.mean(squared) if reduction == 'mean' else jnp.mean(jnp.sum(squared, axis=-1))


@dataclasses.dataclass(frozen=True)
class LogitsRegression(base.LogitLoss):
  """Squared distance of logits, without a temperature. The target of several teachers is the mean of their logits."""

  reduction: str = option('mean', 'reduction of the squared differences over the classes', choices=REDUCTIONS)
  reads_temperature = False

  def combine(self, teacher_logits, temperature):
    return jnp.mean(jnp.stack([z.astype(jnp.float32) for z in teacher_logits]), axis=0)

  def __call__(self, target_logits, logits, labels, temperature):
    return logits_regression(target_logits, logits, self.reduction)
