"""One network on cross entropy, at any bit-width: the baseline of every table."""

import dataclasses

from cmtkd_jax.methods.base import MultiNetwork, check_teachers, student_network
from cmtkd_jax.models import STUDENT
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """One network on its own, at the bit-widths of `config.student`."""

  ce_temperature: float = option(1.0, 'temperature of the cross entropy', above=0)


class Single(MultiNetwork):
  """The student alone."""

  def loss(self, outputs, labels):
    loss = self.cross_entropy(outputs.logits[STUDENT], labels, self.settings.ce_temperature)
    return loss, {'student/cross_entropy': loss}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'single')
  return Single((student_network(config, num_classes),), settings)
