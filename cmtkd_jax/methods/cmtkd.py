"""CMT-KD: collaborative multi-teacher knowledge distillation (Pham, Hoang, Do, WACV 2023).

Several teachers of one architecture, quantized to different higher bit-widths, train together with the student. At
each tap their quantized maps are mixed by learned importance factors into the shared knowledge, which is every
teacher's next input and the student's target; the logits of the combined teacher and of the student are ensembled
into the target of mutual learning.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import (
  IMPORTANCE,
  MultiNetwork,
  NetworkSpec,
  Outputs,
  check_teachers,
  configured_feature_loss,
  configured_logit_loss,
  network_builder,
  student_network,
)
from cmtkd_jax.methods.shared_knowledge import importance, shared_knowledge
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.batch_norm import BatchNorm
from cmtkd_jax.models.bit_policy import check_bits
from cmtkd_jax.models.products import values
from cmtkd_jax.options import Options, option

COMBINED = 'combined_teacher'

READS = ('feature_loss', 'logit_loss')  # sections of the configuration that it reads in addition to its own


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """CMT-KD. D of its eq. (4) is `config.feature_loss`, L_KL of eqs. (8), (9) `config.logit_loss`.

  Where the paper leaves a question open, an option stands for each answer.
  """

  teacher_bits: tuple = option((4, 6, 8), 'bits of each teacher: an int, or (weight bits, activation bits)')
  taps: tuple = option((), 'numbers of the tapped layers; () = every stage of the backbone', items=5)
  alpha: float = option(1.0, 'weight of the cross entropies, eq. (10)')
  beta: float = option(0.5, 'weight of the mutual KL terms; 0 = without mutual learning')
  temperature: float = option(
    2.0,
    'tau, temperature of the mutual KL terms',
    above=0,
    unread_with={'beta': (0,), 'logit_loss.name': losses.WITHOUT_TEMPERATURE},
  )
  ce_temperature: float = option(1.0, 'temperature of the cross entropies', above=0)
  stop_gradient_target: bool = option(
    True, 'the min-logit ensemble is a constant for the KL terms', unread_with={'beta': (0,)}
  )
  stop_gradient_shared: bool = option(
    False,
    'the feature loss does not reach teachers and importance factors',
    unread_with={'feature_loss.name': ('none',)},
  )
  combined_head: str = option(
    'shared', "one classifier on the last shared map, or the 'mean' of a head per teacher", choices=('shared', 'mean')
  )
  fused: str = option(
    'quantized',
    "what eq. (1) mixes; with 'pre_quantizer' each teacher quantizes the mixture",
    choices=('quantized', 'pre_quantizer'),
  )
  student_map: str = option(
    'quantized',
    "the student's side of attention, fitnet, similarity; 'quantized' cannot follow fused='pre_quantizer' below 0",
    choices=('quantized', 'pre_quantizer'),
    unread_with={'feature_loss.name': ('none', *losses.BEFORE_THE_QUANTIZER)},
  )
  requantize: bool = option(False, 'each teacher quantizes the mixture again before its next stage')
  importance_init: tuple = option((), 'initial theta of each teacher; () = zeros, uniform importance', items=0.5)


class CMTKD(MultiNetwork):
  """Student and teachers (`networks`, the student first), importance factors, combined classifier and adaptors."""

  has_importance = True

  make_combined_head: Callable | None  # None: the mean of the teachers' own heads
  make_norm: Callable  # as in the networks
  taps: tuple[int, ...]  # the taps in use
  feature_loss: losses.FeatureLoss | None
  mutual_loss: losses.LogitLoss

  def setup(self):
    super().setup()
    if self.make_combined_head is not None:
      self.combined_head = self.make_combined_head()
    theta = jnp.array(self.settings.importance_init or (0.0,) * len(self.teacher_names), jnp.float32)
    self.importance = self.param(IMPORTANCE, lambda _: {f'tap{tap}': theta for tap in self.taps})
    if self.feature_loss is not None:
      for tap in self.taps:
        setattr(self, f'adaptor_tap{tap}', Adaptor(self.feature_loss.adaptor, self.make_norm))

  @property
  def teacher_names(self):
    return tuple(network.name for network in self.networks[1:])

  def pretrained_candidates(self, name):
    return (name, f'{STUDENT}/head') if name == 'combined_head' else super().pretrained_candidates(name)

  def __call__(self, images, train):
    settings = self.settings
    teachers = [getattr(self, name) for name in self.teacher_names]
    teacher_maps = [teacher.embed(images, train) for teacher in teachers]
    student_map = self.student.embed(images, train)
    pairs = {}
    for k, tap in enumerate(self.student.taps):
      before = [teacher.stage(k, x, train) for teacher, x in zip(teachers, teacher_maps)]
      student_before = self.student.stage(k, student_map, train)
      student_map = self.student.activate(k, student_before, train)
      if tap not in self.taps:
        teacher_maps = self._activate(k, before, train)
        continue
      mixed = before
      if settings.fused != 'pre_quantizer':
        mixed = [values(x) for x in self._activate(k, before, train and not settings.requantize)]
      shared = shared_knowledge(mixed, self.importance[f'tap{tap}'])  # eq. (1)
      teacher_maps = self._next_inputs(k, shared, train)
      if train and settings.requantize:
        # Fitted values move last, so that both quantizations of a step read those from before it.
        self._activate(k, before, train)
      if self.feature_loss is not None:
        pairs[f'tap{tap}'] = self._pair(tap, before, shared, student_before, student_map, train)
    if self.make_combined_head is not None:
      # After the last tap all teachers hold the same map; mixed before the quantizer, it lacks its non-linearity.
      last = nn.relu(shared) if settings.fused == 'pre_quantizer' else shared
      combined = self.combined_head(last, train)
    else:
      combined = sum(teacher.classify(x, train) for teacher, x in zip(teachers, teacher_maps)) / len(teachers)
    return Outputs({STUDENT: self.student.classify(student_map, train), COMBINED: combined}, pairs)

  def _next_inputs(self, k, shared, train):
    """The input of each teacher's next stage: the shared map, quantized by the teacher where the settings say so."""
    maps = [shared] * len(self.teacher_names)
    if self.settings.fused == 'pre_quantizer':
      return self._activate(k, maps, train)
    if self.settings.requantize:  # not fitted again: fitted values belong to each teacher's own map
      return self._activate(k, maps, train=False)
    return maps

  def _pair(self, tap, before, shared, student_before, student_map, train):
    """(F_T, F_S) of eq. (4) at one tap: the maps that the feature loss compares, the student's after its adaptor."""
    pre_quantizer = self.feature_loss.maps == 'pre_quantizer'
    target = shared_knowledge(before, self.importance[f'tap{tap}']) if pre_quantizer else shared
    own = student_before if pre_quantizer or self.settings.student_map == 'pre_quantizer' else values(student_map)
    return target, getattr(self, f'adaptor_tap{tap}')(own, target.shape[-1], train)

  def _activate(self, k, maps, train):
    """The maps after the closing quantizer of stage k of each teacher."""
    return [getattr(self, name).activate(k, x, train) for name, x in zip(self.teacher_names, maps)]

  def loss(self, outputs, labels):
    return cmtkd_loss(
      teacher_logits=outputs.logits[COMBINED],
      student_logits=outputs.logits[STUDENT],
      labels=labels,
      pairs=outputs.aux,
      settings=self.settings,
      feature_loss=self.feature_loss,
      mutual_loss=self.mutual_loss,
      cross_entropy=self.cross_entropy,
    )

  def summary(self, params):
    return {
      f'{IMPORTANCE}/tap{tap}/{name}': pi
      for tap in self.taps
      for name, pi in zip(self.teacher_names, jnp.unstack(importance(params[IMPORTANCE][f'tap{tap}'])))
    }


class Adaptor(nn.Module):
  """r of eq. (6): brings the student's map [B, H, W, C] to the shared map's channels, see `losses.FeatureLoss`."""

  kind: str
  make_norm: Callable

  @nn.compact
  def __call__(self, x, features, train):
    x = x.astype(jnp.float32)
    if self.kind == 'identity':
      return x
    x = nn.Conv(features, (1, 1), use_bias=False, name='conv')(x)
    return self.make_norm(name='norm')(x, train) if self.kind == 'conv_norm' else x


def cmtkd_loss(
  teacher_logits, student_logits, labels, pairs, settings, feature_loss, mutual_loss, cross_entropy=losses.cross_entropy
):
  """Total loss: L = alpha (L_CE^S + L_CE^T) + beta (L_KL^S + L_KL^T) + gamma sum_k D(F_T^k, F_S^k).

  With a `tap_factor` f of D, the term of tap k of K counts f^(K - k) times.

  Args:
    teacher_logits, student_logits: float [B, C], of the combined teacher and the student.
    labels: int32 [B] in 0..C-1.
    pairs: `{'tap5': (F_T, F_S), ..}`, shared and adapted student map of each tap, float [B, H, W, C'].
    settings: `Settings`.
    feature_loss: D, whose weight is gamma; None for no pairs.
    mutual_loss: L_KL. It compares logits that are counted from the true class, as eq. (7) counts its target.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit, or `labels` is not of an integer dtype.

  Source: CMT-KD eqs. (4)-(10).
  """
  ce_s = cross_entropy(student_logits, labels, settings.ce_temperature)
  ce_t = cross_entropy(teacher_logits, labels, settings.ce_temperature)

  target = losses.min_logit(teacher_logits, student_logits, labels)
  if settings.stop_gradient_target:
    target = jax.lax.stop_gradient(target)
  # The target counts from the true class, so both networks do: a mutual loss may see a shift of the logits.
  kl_s = mutual_loss(target, losses.from_true_class(student_logits, labels), labels, settings.temperature)
  kl_t = mutual_loss(target, losses.from_true_class(teacher_logits, labels), labels, settings.temperature)

  total = settings.alpha * (ce_s + ce_t) + settings.beta * (kl_s + kl_t)
  feature = {}
  depth = lambda tap: int(tap.removeprefix('tap'))  # under `jit`, JAX has ordered them by name
  for k, tap in enumerate(sorted(pairs, key=depth), 1):
    f_t, f_s = pairs[tap]
    if settings.stop_gradient_shared:
      f_t = jax.lax.stop_gradient(f_t)
    feature[tap] = feature_loss(f_t, f_s)
    gamma, f = feature_loss.weight, feature_loss.tap_factor
    total += gamma * f ** (len(pairs) - k) * feature[tap]
  terms = {
    f'{STUDENT}/cross_entropy': ce_s,
    f'{COMBINED}/cross_entropy': ce_t,
    f'{STUDENT}/mutual': kl_s,
    f'{COMBINED}/mutual': kl_t,
  }
  return total, terms | {f'{STUDENT}/feature/{tap}': value for tap, value in feature.items()}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`, whose `config.method.cmtkd` is `settings`.

  Raises:
    UserError: teachers, taps or initial importances do not fit.
  """
  check_teachers(teachers, 'cmtkd')
  bits = _teacher_bits(settings)
  _check_combinations(settings, len(bits))
  student = student_network(config, num_classes)
  teacher_specs = tuple(
    NetworkSpec(f'teacher{i}_{_bits_name(*pair)}', network_builder(config, *pair, num_classes), pair[0])
    for i, pair in enumerate(bits, 1)
  )
  backbone = student.make()
  if backbone.activate_normalizes:
    _check_normalizing(config, settings)
  make_head = None
  if settings.combined_head == 'shared':  # that of the teacher with the most bits
    make_head = teacher_specs[bits.index(max(bits))].make().make_head
  return CMTKD(
    networks=(student, *teacher_specs),
    settings=settings,
    make_combined_head=make_head,
    make_norm=functools.partial(BatchNorm, config.model.bn_groups, config.model.bn_momentum, config.model.bn_affine),
    taps=_taps(config, settings, backbone.taps),
    feature_loss=configured_feature_loss(config),
    mutual_loss=configured_logit_loss(config),
  )


def _teacher_bits(settings):
  """`settings.teacher_bits` as pairs (weight bits, activation bits)."""
  if not settings.teacher_bits:
    raise UserError(
      'config.method.cmtkd.teacher_bits=() names no teacher; give at least one bit-width, such as (4, 6, 8), '
      "or train the student alone with config.method.name='single'"
    )
  pairs = [tuple(bits) if isinstance(bits, (tuple, list)) else (bits, bits) for bits in settings.teacher_bits]
  for pair in pairs:
    if len(pair) != 2:
      raise UserError(
        f'config.method.cmtkd.teacher_bits={pair!r} is neither a bit-width nor (weight bits, activation bits)'
      )
    for bits in pair:
      check_bits(bits, 'config.method.cmtkd.teacher_bits')
  return pairs


def _check_combinations(settings, num_teachers):
  if settings.importance_init and len(settings.importance_init) != num_teachers:
    raise UserError(
      f'config.method.cmtkd.importance_init={settings.importance_init!r} has {len(settings.importance_init)} '
      f'values for {num_teachers} teachers; give one each, or () for uniform importance'
    )
  if settings.requantize and settings.fused == 'pre_quantizer':
    raise UserError(
      "config.method.cmtkd.requantize=True has no meaning with config.method.cmtkd.fused='pre_quantizer', where each "
      'teacher quantizes the mixture anyway; set it to False'
    )


def _check_normalizing(config, settings):
  """Refuses what assumes that nothing but the quantizer lies between a tap and the next stage."""
  backbone = f'config.model.name={config.model.name!r}, whose taps lie before a normalization'
  feature_loss = configured_feature_loss(config)
  if feature_loss is not None and feature_loss.maps == 'pre_quantizer':
    raise UserError(
      f'config.feature_loss.name={config.feature_loss.name!r} would compare maps that are not normalized with '
      f"{backbone}; use 'attention', 'fitnet' or 'similarity'"
    )
  if settings.requantize:
    raise UserError(
      f'config.method.cmtkd.requantize=True would normalize the mixture twice with {backbone}; set it to False'
    )
  if settings.fused == 'pre_quantizer' and settings.combined_head == 'shared':
    raise UserError(
      f"config.method.cmtkd.fused='pre_quantizer' has no normalized map for a shared head with {backbone}; set "
      "config.method.cmtkd.combined_head to 'mean'"
    )
  if feature_loss is not None and settings.student_map != settings.fused:
    raise UserError(
      f'config.method.cmtkd.student_map={settings.student_map!r} and config.method.cmtkd.fused={settings.fused!r}: the '
      f'feature loss would compare maps before and after the normalization of {backbone}; set both to the same value'
    )


def _taps(config, settings, of_backbone):
  """The taps in use, of those that the backbone has."""
  taps = tuple(settings.taps) or of_backbone
  if len(set(taps)) < len(taps):
    raise UserError(f'config.method.cmtkd.taps={taps!r} names a layer twice; name each once')
  if not set(taps) <= set(of_backbone):
    raise UserError(f'config.method.cmtkd.taps={taps!r}; {config.model.name} can be tapped at {of_backbone!r}')
  if settings.combined_head == 'shared' and of_backbone[-1] not in taps:
    raise UserError(
      f"config.method.cmtkd.combined_head: 'shared' needs a tap at the last stage, layer "
      f"{of_backbone[-1]}, but config.method.cmtkd.taps is {taps!r}; add it or use 'mean'"
    )
  if settings.combined_head == 'shared' and settings.requantize and len(taps) == 1:
    raise UserError(
      f'config.method.cmtkd.requantize=True changes nothing with config.method.cmtkd.taps={taps!r}: the shared head '
      'reads the mixture itself; tap an earlier layer, too, or set it to False'
    )
  return taps


def _bits_name(weight_bits, activation_bits):
  return f'{weight_bits}bit' if weight_bits == activation_bits else f'w{weight_bits}a{activation_bits}'
