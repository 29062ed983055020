"""One network on cross entropy, at any bit-width: the baseline of every table."""

import dataclasses
from collections.abc import Callable

from cmtkd_jax import losses
from cmtkd_jax.methods.base import Method, Outputs, network_recipe


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fields of `config.single`. The bit-widths are those of `config.student`."""
  ce_temperature: float = 1.0


class Single(Method):
  """The student alone."""
  make_student: Callable
  student_weight_bits: int
  settings: Settings

  def setup(self):
    self.student = self.make_student()

  @property
  def weight_bits(self):
    return {'student': self.student_weight_bits}

  def __call__(self, images, train):
    return Outputs({'student': self.student(images, train)})

  def loss(self, outputs, labels):
    loss = losses.cross_entropy(outputs.logits['student'], labels, self.settings.ce_temperature)
    return loss, {'cross_entropy/student': loss}


def create(config, settings, num_classes):
  """Returns the method for `config`."""
  bits = config.student
  recipe = network_recipe(config, bits.weight_bits, bits.activation_bits, num_classes)
  return Single(recipe, bits.weight_bits, settings)
