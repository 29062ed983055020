"""One network on cross entropy, at any bit-width: the baseline of every table."""

import dataclasses

from cmtkd_jax import losses
from cmtkd_jax.methods.base import Joint, check_teachers, student_member
from cmtkd_jax.models import STUDENT


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fields of `config.single`. The bit-widths are those of `config.student`."""

  ce_temperature: float = 1.0


class Single(Joint):
  """The student alone."""

  def loss(self, outputs, labels):
    loss = losses.cross_entropy(outputs.logits[STUDENT], labels, self.settings.ce_temperature)
    return loss, {'cross_entropy/student': loss}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'single', 0, 0)
  return Single((student_member(config, num_classes),), settings)
