"""Knowledge distillation from a trained, frozen teacher (Hinton, Vinyals, Dean, 2014)."""

import dataclasses

from cmtkd_jax import losses
from cmtkd_jax.methods.base import (
  MultiNetwork,
  Outputs,
  check_teachers,
  configured_logit_loss,
  student_network,
  trained_networks,
  unread_at_zero,
  unread_with,
)
from cmtkd_jax.models import STUDENT
from cmtkd_jax.options import Options, option

READS = ('logit_loss',)  # sections of the configuration beside its own


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """Distillation from one trained teacher, the student of the run in `config.teacher_workdirs`, at any bit-width."""

  alpha: float = option(1.0, 'weight of the cross entropy')
  beta: float = option(1.0, 'weight of the distillation term, `config.logit_loss`')
  temperature: float = option(2.0, 'temperature of the distillation term', above=0)


class Distillation(MultiNetwork):
  """A student and the frozen teachers that it learns from; of several, `logit_loss` combines the logits."""

  target_name: str  # of what the teachers say together, among the logits
  logit_loss: losses.LogitLoss

  @property
  def unread_settings(self):
    return unread_with(self.logit_loss) | unread_at_zero(self.settings, 'beta')

  def __call__(self, images, train):
    logits = self.logits(images, train)
    teachers = [logits[name] for name in self.frozen]
    return Outputs({STUDENT: logits[STUDENT], self.target_name: losses.mean_softmax(teachers, 1.0)}, teachers)

  def loss(self, outputs, labels):
    """L = alpha CE(z_S, y) + beta D(z_T, z_S), where D is the logit loss and z_T what it combines the teachers' z_i to.

    By default D is tau^2 KL and softmax(z_T / tau) = mean_i softmax(z_i / tau).
    """
    settings, student = self.settings, outputs.logits[STUDENT]
    ce = self.cross_entropy(student, labels)
    target = self.logit_loss.combine(outputs.aux, settings.temperature)
    distance = self.logit_loss(target, student, labels, settings.temperature)
    terms = {'student/cross_entropy': ce, 'student/distillation': distance}
    return settings.alpha * ce + settings.beta * distance, terms


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'kd', 1, 1)
  return distillation(config, settings, num_classes, teachers, 'teacher')


def distillation(config, settings, num_classes, teachers, target_name):
  """Returns the `Distillation` of `config.student` from `teachers`."""
  names = [f'teacher{i}' for i in range(1, len(teachers) + 1)]
  specs = (student_network(config, num_classes), *trained_networks(teachers, names, num_classes))
  return Distillation(specs, settings, target_name, configured_logit_loss(config))
