"""Distillation from the average of several separately trained, frozen teachers: the mean of their softmax outputs.

The baseline "average teacher" of CMT-KD's ablation (its teachers: 4, 6 and 8 bits), after You et al., KDD 2017, without
their triplets. A `logit_loss` may average otherwise: `logits_regression` takes the mean of the teachers' logits.
"""

import dataclasses

from cmtkd_jax import losses
from cmtkd_jax.methods.base import check_teachers
from cmtkd_jax.methods.kd import distillation


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fields of `config.average_teacher`. The teachers are the students of the runs in `config.teachers`."""

  alpha: float = 1.0  # weight of the cross entropy
  beta: float = 1.0  # weight of the distillation term
  temperature: float = 2.0
  logit_loss: str = 'kd'  # the distillation term, with its options in config.logit_loss
  choices = {'logit_loss': tuple(losses.LOGIT_LOSSES)}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'average_teacher', 2, 99)
  return distillation(config, settings, num_classes, teachers, 'combined_teacher')
