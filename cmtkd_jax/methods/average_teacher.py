"""Distillation from the mean softmax of several trained, frozen teachers (after You et al., KDD 2017).

The baseline "average teacher" of CMT-KD's ablation (its teachers: 4, 6 and 8 bits), after You et al., KDD 2017, without
their triplets. A `logit_loss` may average otherwise: `logits_regression` takes the mean of the teachers' logits.
"""

import dataclasses
import math

from cmtkd_jax.methods import kd
from cmtkd_jax.methods.base import check_teachers

READS = ('logit_loss',)  # sections of the configuration that it reads in addition to its own


@dataclasses.dataclass(frozen=True)
class Settings(kd.Settings):
  """Distillation from the average of trained teachers, the students of the runs in `config.teacher_workdirs`."""


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'average_teacher', 2, math.inf)
  return kd.distillation(config, settings, num_classes, teachers, 'combined_teacher')
