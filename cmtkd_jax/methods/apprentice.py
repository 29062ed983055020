"""Apprentice (Mishra and Marr, ICLR 2018): a low-precision network learns from a full-precision one, in three schemes.

A: both are trained jointly from scratch. B: the teacher is trained and frozen, the apprentice starts from scratch.
C: as B, the apprentice starts from a trained full-precision network (`config.init_from`).
"""

import dataclasses

import jax

from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import (
  MultiNetwork,
  NetworkSpec,
  check_teachers,
  network_builder,
  student_network,
  trained_networks,
)
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import BIT_WIDTHS, FULL_PRECISION
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """A full-precision teacher and its low-precision apprentice, the student; Apprentice's schemes A, B and C."""

  scheme: str = option('A', 'trained jointly (A), or from a trained teacher (B, C)', choices=('A', 'B', 'C'))
  alpha: float = option(1.0, "weight of the teacher's cross entropy (scheme A)", unread_with={'scheme': ('B', 'C')})
  beta: float = option(0.5, "weight of the apprentice's cross entropy")
  gamma: float = option(0.5, 'weight of the cross entropy between the two')
  temperature: float = option(
    1.0, 'temperature of the cross entropy between the two', above=0, unread_with={'gamma': (0,)}
  )
  teacher_bits: int = option(
    FULL_PRECISION,
    'bits of the jointly trained teacher (scheme A)',
    choices=BIT_WIDTHS,
    unread_with={'scheme': ('B', 'C')},
  )
  stop_gradient_target: bool = option(True, "the teacher's prediction is a constant in the last term")

  def __post_init__(self):
    super().__post_init__()
    if self.scheme != 'A' and not self.stop_gradient_target:
      raise ValueError(
        f'stop_gradient_target=False changes nothing with scheme={self.scheme!r}, whose teacher is frozen; set it to '
        'True'
      )


class Apprentice(MultiNetwork):
  """The student (apprentice) and its teacher."""

  def loss(self, outputs, labels):
    return apprentice_loss(
      outputs.logits['teacher'], outputs.logits[STUDENT], labels, self.settings, self.cross_entropy
    )


def apprentice_loss(teacher, student, labels, settings, cross_entropy=losses.cross_entropy):
  """Total loss of the teacher T and the apprentice A.

      L = alpha H(y, softmax(z_T)) + beta H(y, softmax(z_A)) + gamma H(softmax(z_T / tau), softmax(z_A / tau))

  with z_T a constant in the last term where `stop_gradient_target`, and no factor tau^2. In schemes B and C the teacher
  is frozen, and the first term, a constant, is left out.

  Args:
    teacher, student: z_T and z_A, float [B, C], finite.
    labels: y, int32 [B] in 0..C-1.
    settings: `Settings`: alpha, beta, gamma >= 0 and tau > 0.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar >= 0, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: Apprentice (Mishra and Marr, ICLR 2018), where tau = 1. That the target is a constant is chosen here.
  """
  ce_a = cross_entropy(student, labels)
  target = jax.lax.stop_gradient(teacher) if settings.stop_gradient_target else teacher
  soft = losses.soft_cross_entropy(target, student, settings.temperature)
  terms = {'student/cross_entropy': ce_a, 'student/distillation': soft}
  total = settings.beta * ce_a + settings.gamma * soft
  if settings.scheme != 'A':
    return total, terms
  ce_t = cross_entropy(teacher, labels)
  return settings.alpha * ce_t + total, {'teacher/cross_entropy': ce_t, **terms}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`.

  Raises:
    UserError: a scheme lacks its trained networks.
  """
  if settings.scheme == 'A':
    check_teachers(teachers, 'apprentice')
    bits = settings.teacher_bits
    teacher = NetworkSpec('teacher', network_builder(config, bits, bits, num_classes), bits)
  else:
    check_teachers(teachers, 'apprentice', 1, 1)
    (teacher,) = trained_networks(teachers, ('teacher',), num_classes)
  if settings.scheme == 'C' and not config.init_from:
    raise UserError(
      "config.method.apprentice.scheme='C' starts from a trained full-precision network; name its directory in "
      'config.init_from'
    )
  return Apprentice((student_network(config, num_classes), teacher), settings)
