"""Knowledge distillation from a trained, frozen teacher (Hinton, Vinyals, Dean, 2015)."""

import dataclasses

from cmtkd_jax import losses
from cmtkd_jax.methods.base import (
  MultiNetwork,
  Outputs,
  check_teachers,
  configured_logit_loss,
  student_network,
  trained_networks,
)
from cmtkd_jax.models import STUDENT
from cmtkd_jax.options import Options, option

READS = ('logit_loss',)  # sections of the configuration that it reads in addition to its own


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """Distillation from one trained teacher, the student of the run in `config.teacher_workdirs`, at any bit-width."""

  alpha: float = option(1.0, 'weight of the cross entropy')
  beta: float = option(1.0, 'weight of the distillation term, `config.logit_loss`')
  temperature: float = option(
    2.0,
    'temperature of the distillation term',
    above=0,
    unread_with={'beta': (0,), 'logit_loss.name': losses.WITHOUT_TEMPERATURE},
  )


class Distillation(MultiNetwork):
  """A student and the frozen teachers that it learns from; of several, `logit_loss` combines the logits."""

  target_name: str  # of what the teachers say together, among the logits
  logit_loss: losses.LogitLoss

  def __call__(self, images, train):
    logits = self.logits(images, train)
    teachers = [logits[name] for name in self.frozen]
    return Outputs({STUDENT: logits[STUDENT], self.target_name: losses.mean_softmax(teachers, 1.0)}, teachers)

  def loss(self, outputs, labels):
    student = outputs.logits[STUDENT]
    return distillation_loss(outputs.aux, student, labels, self.settings, self.logit_loss, self.cross_entropy)


def distillation_loss(teachers, student, labels, settings, logit_loss, cross_entropy=losses.cross_entropy):
  """Total loss of a student: L = alpha CE(z_S, y) + beta D(z_T, z_S).

  z_T is what the logit loss D combines the teachers' z_i to. By default D is tau^2 KL, and
  softmax(z_T / tau) = mean_i softmax(z_i / tau).

  Args:
    teachers: z_i, a list of float [B, C], constants.
    student: z_S, float [B, C].
    labels: y, int32 [B] in 0..C-1.
    settings: `Settings`: alpha, beta >= 0, tau > 0.
    logit_loss: D, a `losses.LogitLoss`.
    cross_entropy: function (logits, labels, temperature=1.0) of the term with labels.

  Returns:
    (L, terms): float32 scalar, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; of several teachers, You et al.,
  "Learning from Multiple Teacher Networks", KDD 2017.
  """
  ce = cross_entropy(student, labels)
  target = logit_loss.combine(teachers, settings.temperature)
  distance = logit_loss(target, student, labels, settings.temperature)
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
