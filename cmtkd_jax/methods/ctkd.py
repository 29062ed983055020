"""CTKD: collaborative teaching knowledge distillation (Zhao, Sun, Dong, Chen, Dong, 2019).

A scratch teacher trains together with the student, which imitates its current logits. A pretrained, frozen expert
teacher guides the student with its attention maps.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax import data, losses, models
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import (
  MultiNetwork,
  NetworkSpec,
  Outputs,
  check_teachers,
  network_builder,
  run_stages,
  student_network,
  trained_networks,
)
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import BIT_WIDTHS, FULL_PRECISION
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """CTKD: a scratch teacher beside the student, and an expert, the student of the run in `config.teacher_workdirs`."""

  teacher_model: str = option('wrn40_1', 'the scratch teacher', choices=models.MODELS)
  teacher_bits: int = option(FULL_PRECISION, 'bits of the scratch teacher', choices=BIT_WIDTHS)
  shared_stem: bool = option(True, 'student and scratch teacher share the first convolution')
  gamma: float = option(0.03, 'weight of the logits of the scratch teacher')
  beta: float = option(1000.0, 'weight of the attention maps of the expert')
  # The published code computes this term and leaves it out.
  alpha: float = option(0.0, "weight of tau^2 KL to the expert's logits; published: 2 alpha tau^2 / C")
  temperature: float = option(4.0, "temperature of the expert's logits", above=0, unread_with={'alpha': (0,)})
  # As in the paper; the published code compares the expert with the scratch teacher.
  attention_to: str = option(
    'student', 'whom the expert shows where to look', choices=('student', 'scratch_teacher'), unread_with={'beta': (0,)}
  )


class CTKD(MultiNetwork):
  """Student, scratch teacher and expert, in this order."""

  def __call__(self, images, train):
    stem = self.student.embed(images, train)
    student_maps, _, student = run_stages(self.student, stem, train)
    shared = stem if self.settings.shared_stem else self.scratch_teacher.embed(images, train)
    scratch_maps, _, scratch = run_stages(self.scratch_teacher, shared, train)
    expert_maps, _, expert = jax.lax.stop_gradient(
      run_stages(self.expert, self.expert.embed(images, train=False), train=False)
    )
    maps = {STUDENT: student_maps, 'scratch_teacher': scratch_maps, 'expert': expert_maps}
    return Outputs({STUDENT: student, 'scratch_teacher': scratch, 'expert': expert}, maps)

  def loss(self, outputs, labels):
    return ctkd_loss(outputs.logits, labels, outputs.aux, self.settings, self.cross_entropy)


def ctkd_loss(logits, labels, maps, settings, cross_entropy=losses.cross_entropy):
  """Total loss of student s, scratch teacher t and expert e.

      L = CE(z_t, y) + CE(z_s, y) + gamma mean_b ||z_t - z_s||^2 + beta sum_j mean (a(F_s^j) - a(F_e^j))^2
          + alpha tau^2 KL(p_e || p_s)

  with z_t a constant in the third term, j the groups of blocks, a the attention map. With
  `attention_to='scratch_teacher'`, F_t takes the place of F_s.

  Args:
    logits: of 'student', 'scratch_teacher' and 'expert', float [B, C], finite.
    labels: y, int32 [B] in 0..C-1.
    maps: by the same names, lists of float [B, H, W, C'], the output of each group.
    settings: `Settings`: alpha, beta, gamma >= 0, tau > 0.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar >= 0, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit, or the lists of maps have other lengths.

  Source: CTKD, from its abstract and published code; `alpha` is 0 in both, and its published factor 2 alpha tau^2 / C.
  """
  z_s, z_t, z_e = (logits[name] for name in (STUDENT, 'scratch_teacher', 'expert'))
  ce_s, ce_t = cross_entropy(z_s, labels), cross_entropy(z_t, labels)
  imitation = losses.logits_regression(jax.lax.stop_gradient(z_t), z_s, 'sum')
  kl = losses.kl_divergence(jax.lax.stop_gradient(z_e), z_s, settings.temperature)
  receiver = settings.attention_to
  attention = [
    losses.attention_loss(jax.lax.stop_gradient(f_e), f_r)
    for f_e, f_r in zip(maps['expert'], maps[receiver], strict=True)
  ]
  total = ce_t + ce_s + settings.gamma * imitation + settings.beta * sum(attention)
  if settings.alpha:
    total += settings.alpha * kl
  terms = {
    'student/cross_entropy': ce_s,
    'scratch_teacher/cross_entropy': ce_t,
    'student/imitation': imitation,
    'student/expert_distillation': kl,
  }
  return total, terms | {f'{receiver}/attention/group{j}': value for j, value in enumerate(attention, 1)}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`.

  Raises:
    UserError: the networks or their maps cannot be compared, or have no stem to share.
  """
  check_teachers(teachers, 'ctkd', 1, 1)
  scratch_config = config.copy_and_resolve_references()
  scratch_config.model.name = settings.teacher_model
  bits = settings.teacher_bits
  scratch = NetworkSpec('scratch_teacher', network_builder(scratch_config, bits, bits, num_classes), bits)
  specs = (student_network(config, num_classes), scratch, *trained_networks(teachers, ('expert',), num_classes))
  networks = [spec.make() for spec in specs]
  if len({len(network.taps) for network in networks}) > 1:
    raise UserError(
      f'config.method.ctkd.teacher_model={settings.teacher_model!r} and config.model.name='
      f'{config.model.name!r} and the expert have different numbers of stages; take one family'
    )
  if settings.shared_stem and not all(network.make_stem for network in networks[:2]):
    raise UserError(
      'config.method.ctkd.shared_stem=True needs wide residual networks (wrn16_1, ...), whose stem stands '
      'apart; set it to False'
    )
  method = CTKD(specs, settings)
  _check_sizes(config, method, teachers[0].config.model)
  return method


def _check_sizes(config, method, expert):
  """Raises `UserError` unless the maps of the expert, whose `model` is given, have the size of the receiver's."""
  receiver = method.settings.attention_to
  images = jax.ShapeDtypeStruct((1, *data.input_shape(config.data)), jnp.float32)
  maps = jax.eval_shape(lambda x: method.init_with_output(jax.random.key(0), x, train=False)[0].aux, images)
  own, other = ([f'{f.shape[1]}x{f.shape[2]}' for f in maps[name]] for name in (receiver, 'expert'))
  if own == other:
    return
  field, value, of_expert = 'model.stem', config.model.stem, expert.stem
  if value == of_expert:
    field, value, of_expert = 'model.name', config.model.name, expert.name
    if receiver != STUDENT:
      field, value = 'method.ctkd.teacher_model', method.settings.teacher_model
  raise UserError(
    f"config.{field}={value!r} gives maps of {', '.join(own)}, the expert's {of_expert!r} maps of {', '.join(other)}; "
    'make them equal, or name another expert in config.teacher_workdirs'
  )
