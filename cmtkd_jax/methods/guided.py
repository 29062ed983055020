"""Guided training of a full-precision and a low-precision network (Zhuang, Shen, Tan, Liu, Reid, CVPR 2018).

Each network gets hints from the other: its features, quantized to the low precision, or its predictions. The paper's
two-stage (weights first, then activations) and progressive (32 -> 16 -> 8 -> 4 -> 2 bits) optimizations are chains of
such runs: `configs/digits_guided.py`. Widths end at 8 bits here, so the chain goes from 32 to 8.
"""

import dataclasses

import jax

from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import (
  MultiNetwork,
  NetworkSpec,
  Outputs,
  check_teachers,
  network_builder,
  run_stages,
  student_network,
)
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import FULL_PRECISION
from cmtkd_jax.models.products import values
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """A low- and a full-precision network that guide each other, by features or by predictions."""

  hint: str = option('features', 'what the networks show each other', choices=('features', 'logits'))
  teacher_weight: float = option(1.0, 'weight of the hint that the full-precision network gets')
  student_weight: float = option(0.5, 'weight of the hint that the low-precision network gets')
  temperature: float = option(1.0, 'temperature of the hint by logits', above=0, unread_with={'hint': ('features',)})


class Guided(MultiNetwork):
  """The low-precision student and the full-precision teacher."""

  def __call__(self, images, train):
    seen = None if self.is_initializing() else jax.tree.map(lambda x: x, self.variables)  # before the student fits it
    _, student_maps, student = run_stages(self.student, self.student.embed(images, train), train)
    before, _, teacher = run_stages(self.teacher, self.teacher.embed(images, train), train)
    pairs = {}
    if train and self.settings.hint == 'features':  # an evaluation calls each layer once, and reads logits alone
      quantized = [self._quantize(k, x, seen or self.variables) for k, x in enumerate(before)]
      pairs = {f'tap{tap}': (q, s) for tap, q, s in zip(self.student.taps, quantized, student_maps)}
    return Outputs({STUDENT: student, 'teacher': teacher}, pairs)

  def _quantize(self, k, x, variables):
    """A map of the teacher through the student's quantizer of stage k, whose own values are constants there."""
    networks = MultiNetwork(self.networks, None, parent=None)
    apply = lambda networks, x: networks.student.activate(k, x, train=False)
    return values(networks.apply(jax.lax.stop_gradient(variables), x, method=apply))

  def loss(self, outputs, labels):
    return guided_loss(outputs.logits, labels, outputs.aux, self.settings, self.cross_entropy)


def guided_loss(logits, labels, pairs, settings, cross_entropy=losses.cross_entropy):
  """Total loss of the low-precision student S and the full-precision teacher T, which hint at each other.

      L = CE(z_T, y) + CE(z_S, y) + w_T R_T + w_S R_S
      features:  R_S = R_T = sum_k mean (Q(F_T^k) - F_S^k)^2,  with Q(F_T) a constant in R_S, F_S in R_T
      logits:    R_S = tau^2 KL(p_T || p_S),  R_T = tau^2 KL(p_S || p_T),  their first argument a constant

  Args:
    logits: `{'student': z_S, 'teacher': z_T}`, float [B, C], finite.
    labels: y, int32 [B] in 0..C-1.
    pairs: `{tap: (Q(F_T), F_S)}`, the teacher's map through the student's quantizer, and the student's, float
      [B, H, W, C'] of one shape; for hints by features only.
    settings: `Settings`: the hint, w_T and w_S >= 0, tau > 0.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar >= 0, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: guided training (Zhuang et al., CVPR 2018).
  """
  constant = jax.lax.stop_gradient
  z_s, z_t = logits[STUDENT], logits['teacher']
  ce_s, ce_t = cross_entropy(z_s, labels), cross_entropy(z_t, labels)
  if settings.hint == 'features':
    to_student = sum(losses.fitnet_loss(constant(f_t), f_s) for f_t, f_s in pairs.values())
    to_teacher = sum(losses.fitnet_loss(constant(f_s), f_t) for f_t, f_s in pairs.values())
  else:
    to_student = losses.kl_divergence(constant(z_t), z_s, settings.temperature)
    to_teacher = losses.kl_divergence(constant(z_s), z_t, settings.temperature)
  total = ce_t + ce_s + settings.teacher_weight * to_teacher + settings.student_weight * to_student
  return total, {
    'student/cross_entropy': ce_s,
    'teacher/cross_entropy': ce_t,
    'student/guidance': to_student,
    'teacher/guidance': to_teacher,
  }


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`.

  Raises:
    UserError: the backbone has no plain quantizer to send the teacher's features through.
  """
  check_teachers(teachers, 'guided')
  student = student_network(config, num_classes)
  if settings.hint == 'features' and student.make().activate_normalizes:
    raise UserError(
      f"config.method.guided.hint='features' does not fit config.model.name={config.model.name!r}, whose taps lie "
      "before a normalization: the student's would see the teacher's features; use 'logits'"
    )
  make_teacher = network_builder(config, FULL_PRECISION, FULL_PRECISION, num_classes)
  return Guided((student, NetworkSpec('teacher', make_teacher, FULL_PRECISION)), settings)
