"""QKD: quantization-aware knowledge distillation in three phases (Kim, Bhalgat, Lee, Patel, Kwak, 2019).

Self-studying: the quantized student alone, from a full-precision one. Co-studying: student and full-precision teacher
teach each other. Tutoring: the teacher, now used to the student, is frozen. A phase is a run; `configs/digits_qkd.py`
chains them.
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
)
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import FULL_PRECISION
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """A phase of QKD: the student alone, with its teacher, or under it. Both networks start from `config.init_from`."""

  phase: str = option('co_studying', 'which of the three phases', choices=('self_studying', 'co_studying', 'tutoring'))
  distillation_weight: float = option(1.0, 'w, weight of the KL terms', unread_with={'phase': ('self_studying',)})
  temperature: float = option(
    2.0, 'temperature of the KL terms', above=0, unread_with={'phase': ('self_studying',), 'distillation_weight': (0,)}
  )


class QKD(MultiNetwork):
  """The student, and in the later phases its full-precision teacher."""

  def loss(self, outputs, labels):
    return qkd_loss(outputs.logits, labels, self.settings, self.cross_entropy)


def qkd_loss(logits, labels, settings, cross_entropy=losses.cross_entropy):
  """Total loss of the student S and its teacher T in one of the three phases.

      self-studying  L = CE(z_S, y)
      co-studying    L = CE(z_S, y) + w tau^2 KL(p_T || p_S) + CE(z_T, y) + w tau^2 KL(p_S || p_T)
      tutoring       L = CE(z_S, y) + w tau^2 KL(p_T || p_S)

  with p = softmax(z / tau); the first argument of each KL is a constant.

  Args:
    logits: `{'student': z_S, 'teacher': z_T}`, float [B, C], finite; self-studying reads z_S only.
    labels: y, int32 [B] in 0..C-1.
    settings: `Settings`: the phase, w >= 0, tau > 0.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: QKD (Kim et al., 2019). Its weights are not at hand: w = 1 is chosen here.
  """
  constant, tau = jax.lax.stop_gradient, settings.temperature
  terms = {'student/cross_entropy': cross_entropy(logits[STUDENT], labels)}
  total = terms['student/cross_entropy']
  if settings.phase != 'self_studying':
    terms['student/distillation'] = losses.kl_divergence(constant(logits['teacher']), logits[STUDENT], tau)
    total += settings.distillation_weight * terms['student/distillation']
  if settings.phase == 'co_studying':
    terms['teacher/cross_entropy'] = cross_entropy(logits['teacher'], labels)
    terms['teacher/distillation'] = losses.kl_divergence(constant(logits[STUDENT]), logits['teacher'], tau)
    total += terms['teacher/cross_entropy'] + settings.distillation_weight * terms['teacher/distillation']
  return total, terms


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`.

  Raises:
    UserError: the tutoring phase has nothing to start from.
  """
  check_teachers(teachers, 'qkd')
  student = student_network(config, num_classes)
  if settings.phase == 'self_studying':
    return QKD((student,), settings)
  tutoring = settings.phase == 'tutoring'
  if tutoring and not config.init_from:
    raise UserError(
      "config.method.qkd.phase='tutoring' continues a run of phase 'co_studying'; name its directory in "
      'config.init_from'
    )
  make_teacher = network_builder(config, FULL_PRECISION, FULL_PRECISION, num_classes)
  return QKD((student, NetworkSpec('teacher', make_teacher, FULL_PRECISION, frozen=tutoring)), settings)
