"""Losses of collaborative distillation: pure functions of arrays that compute in float32."""

from cmtkd_jax.losses.attention import attention_loss, attention_map
from cmtkd_jax.losses.collaborative import (
  error_sums,
  general_target,
  general_weights,
  linear_target,
  linear_weights,
  min_logit_target,
  naive_target,
)
from cmtkd_jax.losses.cosine import cosine_loss
from cmtkd_jax.losses.cross_entropy import cross_entropy
from cmtkd_jax.losses.fitnet import fitnet_loss
from cmtkd_jax.losses.kl_divergence import kl_divergence
from cmtkd_jax.losses.logits_regression import logits_regression
from cmtkd_jax.losses.mean_softmax import mean_softmax
from cmtkd_jax.losses.min_logit import min_logit
from cmtkd_jax.losses.soft_cross_entropy import soft_cross_entropy

__all__ = [
  'attention_loss',
  'attention_map',
  'cosine_loss',
  'cross_entropy',
  'error_sums',
  'fitnet_loss',
  'general_target',
  'general_weights',
  'kl_divergence',
  'linear_target',
  'linear_weights',
  'logits_regression',
  'mean_softmax',
  'min_logit',
  'min_logit_target',
  'naive_target',
  'soft_cross_entropy',
]
