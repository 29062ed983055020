"""Losses of collaborative distillation: pure functions of arrays that compute in float32."""

from cmtkd_jax.losses.attention import attention_loss, attention_map
from cmtkd_jax.losses.cross_entropy import cross_entropy
from cmtkd_jax.losses.fitnet import fitnet_loss
from cmtkd_jax.losses.kl_divergence import kl_divergence
from cmtkd_jax.losses.mean_softmax import mean_softmax
from cmtkd_jax.losses.min_logit import min_logit

__all__ = [
  'attention_loss',
  'attention_map',
  'cross_entropy',
  'fitnet_loss',
  'kl_divergence',
  'mean_softmax',
  'min_logit',
]
