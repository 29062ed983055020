"""Losses of collaborative distillation: pure functions of arrays that compute in float32.

FEATURE_LOSSES, LOGIT_LOSSES: `{name: class}`, losses with the options of `config.feature_loss` and `config.logit_loss`.
BEFORE_THE_QUANTIZER, WITHOUT_TEMPERATURE: names of the feature losses that compare maps before the quantizer, and of
the logit losses without a temperature.
"""

import importlib
import pkgutil

from cmtkd_jax.losses.ab import activation_boundary_loss
from cmtkd_jax.losses.attention import attention_loss, attention_map
from cmtkd_jax.losses.base import FeatureLoss, LogitLoss
from cmtkd_jax.losses.cosine import cosine_loss
from cmtkd_jax.losses.cross_entropy import cross_entropy
from cmtkd_jax.losses.dist import correlation_loss
from cmtkd_jax.losses.dkd import decoupled_loss
from cmtkd_jax.losses.fitnet import fitnet_loss
from cmtkd_jax.losses.kdcl_targets import (
  error_sums,
  general_target,
  general_weights,
  linear_target,
  linear_weights,
  min_logit_target,
  naive_target,
)
from cmtkd_jax.losses.kl_divergence import kl_divergence
from cmtkd_jax.losses.logits_regression import logits_regression
from cmtkd_jax.losses.mean_softmax import mean_softmax
from cmtkd_jax.losses.min_logit import from_true_class, min_logit
from cmtkd_jax.losses.ofd import overhaul_loss, overhaul_margin
from cmtkd_jax.losses.similarity import similarity_loss, similarity_matrix
from cmtkd_jax.losses.soft_cross_entropy import soft_cross_entropy
from cmtkd_jax.losses.standardized_kd import standardize, standardized_kl


def _of_kind(base):
  """`{file: class}` of every file of this folder with a subclass of `base`; its options are those of the class."""
  found = {}
  for _, name, _ in pkgutil.iter_modules(__path__):
    file = importlib.import_module(f'{__name__}.{name}')
    own = [value for value in vars(file).values() if isinstance(value, type) and value.__module__ == file.__name__]
    kinds = [value for value in own if issubclass(value, base) and value is not base]
    if len(kinds) > 1:
      raise TypeError(f'{file.__name__} has two losses, {kinds[0].__name__} and {kinds[1].__name__}; make two files')
    if kinds:
      found[name] = kinds[0]
  return found


FEATURE_LOSSES: dict[str, type[FeatureLoss]] = _of_kind(FeatureLoss)  # config.feature_loss.NAME
LOGIT_LOSSES: dict[str, type[LogitLoss]] = _of_kind(LogitLoss)  # config.logit_loss.NAME

BEFORE_THE_QUANTIZER = tuple(name for name, loss in FEATURE_LOSSES.items() if loss.maps == 'pre_quantizer')
WITHOUT_TEMPERATURE = tuple(name for name, loss in LOGIT_LOSSES.items() if not loss.reads_temperature)

__all__ = [
  'BEFORE_THE_QUANTIZER',
  'FEATURE_LOSSES',
  'LOGIT_LOSSES',
  'WITHOUT_TEMPERATURE',
  'FeatureLoss',
  'LogitLoss',
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
