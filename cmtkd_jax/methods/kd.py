"""Knowledge distillation from a trained, frozen teacher (Hinton, Vinyals, Dean, 2014)."""

import dataclasses

from cmtkd_jax import losses
from cmtkd_jax.methods.base import Joint, Outputs, check_teachers, student_member, trained_members
from cmtkd_jax.models import STUDENT


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fields of `config.kd`. The teacher is the student of the run in `config.teachers`, full precision or quantized."""

  alpha: float = 1.0  # weight of the cross entropy
  beta: float = 1.0  # weight of the distillation term
  temperature: float = 2.0
  logit_loss: str = 'kd'  # the distillation term, with its options in config.logit_loss
  choices = {'logit_loss': tuple(losses.LOGIT_LOSSES)}


class Distillation(Joint):
  """A student and the frozen teachers that it learns from; of several, `logit_loss` combines the logits."""

  target_name: str  # of what the teachers say together, among the logits
  logit_loss: losses.LogitLoss = losses.LOGIT_LOSSES['kd']()

  def __call__(self, images, train):
    logits = self.logits(images, train)
    teachers = [logits[name] for name in self.frozen]
    return Outputs({STUDENT: logits[STUDENT], self.target_name: losses.mean_softmax(teachers, 1.0)}, teachers)

  def loss(self, outputs, labels):
    """L = alpha CE(z_S, y) + beta D(z_T, z_S), where D is the logit loss and z_T what it combines the teachers' z_i to.

    By default D is tau^2 KL and softmax(z_T / tau) = mean_i softmax(z_i / tau).
    """
    settings, student = self.settings, outputs.logits[STUDENT]
    ce = losses.cross_entropy(student, labels)
    target = self.logit_loss.combine(outputs.extras, settings.temperature)
    distance = self.logit_loss(target, student, labels, settings.temperature)
    terms = {'cross_entropy/student': ce, 'distillation/student': distance}
    return settings.alpha * ce + settings.beta * distance, terms


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'kd', 1, 1)
  return distillation(config, settings, num_classes, teachers, 'teacher')


def distillation(config, settings, num_classes, teachers, target_name):
  """Returns the `Distillation` of `config.student` from `teachers`."""
  names = [f'teacher{i}' for i in range(1, len(teachers) + 1)]
  members = (student_member(config, num_classes), *trained_members(teachers, names, num_classes))
  logit_loss = losses.LOGIT_LOSSES[settings.logit_loss](**config.logit_loss[settings.logit_loss])
  return Distillation(members, settings, target_name, logit_loss)
