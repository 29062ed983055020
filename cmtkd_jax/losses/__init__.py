"""Losses of collaborative distillation: pure functions of arrays that compute in float32."""

from cmtkd_jax.losses.ab import ActivationBoundary, activation_boundary_loss
from cmtkd_jax.losses.attention import Attention, attention_loss, attention_map
from cmtkd_jax.losses.base import FeatureLoss, LogitLoss
from cmtkd_jax.losses.cosine import cosine_loss
from cmtkd_jax.losses.cross_entropy import cross_entropy
from cmtkd_jax.losses.dist import DIST, correlation_loss
from cmtkd_jax.losses.dkd import DKD, decoupled_loss
from cmtkd_jax.losses.fitnet import FitNet, fitnet_loss
from cmtkd_jax.losses.kdcl_targets import (
  error_sums,
  general_target,
  general_weights,
  linear_target,
  linear_weights,
  min_logit_target,
  naive_target,
)
from cmtkd_jax.losses.kl_divergence import KD, kl_divergence
from cmtkd_jax.losses.logits_regression import LogitsRegression, logits_regression
from cmtkd_jax.losses.mean_softmax import mean_softmax
from cmtkd_jax.losses.min_logit import from_true_class, min_logit
from cmtkd_jax.losses.ofd import Overhaul, overhaul_loss, overhaul_margin
from cmtkd_jax.losses.similarity import Similarity, similarity_loss, similarity_matrix
from cmtkd_jax.losses.soft_cross_entropy import soft_cross_entropy
from cmtkd_jax.losses.standardized_kd import StandardizedKD, standardize, standardized_kl

# Adding a loss: its file, one line here, its test. Options of the class are `config.feature_loss.NAME.*`.
FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
  'ab': ActivationBoundary,
  'attention': Attention,
  'fitnet': FitNet,
  'ofd': Overhaul,
  'similarity': Similarity,
}
# ... and here `config.logit_loss.NAME.*`.
LOGIT_LOSSES: dict[str, type[LogitLoss]] = {
  'dist': DIST,
  'dkd': DKD,
  'kd': KD,
  'logits_regression': LogitsRegression,
  'standardized_kd': StandardizedKD,
}

__all__ = [
  'FEATURE_LOSSES',
  'LOGIT_LOSSES',
  'activation_boundary_loss',
  'attention_loss',
  'attention_map',
  'correlation_loss',
  'cosine_loss',
  'cross_entropy',
  'decoupled_loss',
  'error_sums',
  'fitnet_loss',
  'from_true_class',
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
  'overhaul_loss',
  'overhaul_margin',
  'similarity_loss',
  'similarity_matrix',
  'soft_cross_entropy',
  'standardize',
  'standardized_kl',
]
