"""KDCL: online distillation via collaborative learning (Guo et al., CVPR 2020), with its four ensembles.

Each network sees its own augmentation of every image; the ensemble of all of them is the target of each.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import MultiNetwork, Outputs, check_teachers, peer_networks, student_network
from cmtkd_jax.options import Options, option

STATE = 'ensemble'  # variable collection of the weights of the general ensemble
_TARGETS = {'naive': losses.naive_target, 'linear': losses.linear_target, 'min_logit': losses.min_logit_target}


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """The student and its peers, each of which learns from the ensemble of all."""

  peer_bits: tuple = option((4, 6, 8), "bits of the peers, each a network of the student's architecture", items=8)
  # 'naive': the best of each sample; 'linear': the best mixture of logits of each batch; 'min_logit'; 'general':
  # the mixture of probabilities with the least error on minival, found again after every epoch.
  ensemble: str = option(
    'min_logit',
    'ensemble of the logits, the target of each network',
    choices=(*_TARGETS, 'general'),
  )
  distillation_weight: float = option(1.0, 'lambda, weight of the distillation terms')
  temperature: float = option(
    2.0, 'temperature of the distillation terms', above=0, unread_with={'distillation_weight': (0,)}
  )
  own_views: bool = option(
    True, 'each network sees its own augmentation; random crops of streamed images are common to all'
  )


class KDCL(MultiNetwork):
  """The student and its peers."""

  @property
  def views(self):
    return len(self.networks) if self.settings.own_views else 1

  @property
  def uses_minival(self):
    return self.settings.ensemble == 'general'

  def setup(self):
    super().setup()
    if self.uses_minival:
      uniform = lambda: jnp.full(len(self.networks), 1 / len(self.networks), jnp.float32)
      self.weights = self.variable(STATE, 'weights', uniform)

  def __call__(self, images, train):
    return Outputs(self.logits(images, train), self.weights.value if self.uses_minival else ())

  def loss(self, outputs, labels):
    return kdcl_loss(outputs.logits, labels, outputs.aux, self.settings, self.cross_entropy)

  def minival_statistics(self, logits, labels, mask):
    return {'errors': losses.error_sums(jnp.stack(list(logits.values())), labels, mask), 'count': jnp.sum(mask)}

  def update_from_minival(self, sums, model_state):
    return model_state | {STATE: {'weights': losses.general_weights(sums['errors'] / sums['count'])}}


def kdcl_loss(logits, labels, weights, settings, cross_entropy=losses.cross_entropy):
  """Total loss of M networks that learn from their ensemble.

      L = sum_i [ CE(z_i, y) + lambda tau^2 KL(softmax(z_t / tau) || softmax(z_i / tau)) ]

  with z_t, the ensemble of the networks, a constant.

  Args:
    logits: `{name: z_i}`, float [B, C], finite.
    labels: y, int32 [B] in 0..C-1.
    weights: float32 [M], of the networks in the general ensemble, sum 1; the others do not read it.
    settings: `Settings`: lambda >= 0, tau > 0, and which ensemble.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: KDCL (Guo et al., CVPR 2020); the ensembles are in `losses.kdcl_targets`.
  """
  stacked = jnp.stack(list(logits.values()))
  if settings.ensemble == 'general':
    target = losses.general_target(stacked, weights)
  else:
    target = _TARGETS[settings.ensemble](stacked, labels)
  target = jax.lax.stop_gradient(target)
  ce = {i: cross_entropy(z, labels) for i, z in logits.items()}
  kl = {i: losses.kl_divergence(target, z, settings.temperature) for i, z in logits.items()}
  total = sum(ce.values()) + settings.distillation_weight * sum(kl.values())
  terms = {f'{i}/cross_entropy': value for i, value in ce.items()}
  return total, terms | {f'{i}/distillation': value for i, value in kl.items()}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`.

  Raises:
    UserError: the general ensemble has no held-out slice, or a width does not exist.
  """
  check_teachers(teachers, 'kdcl')
  if settings.ensemble == 'general' and not config.data.minival:
    raise UserError(
      "config.method.kdcl.ensemble='general' weights the networks on a held-out slice of train; set "
      'config.data.minival to e.g. 0.1'
    )
  peers = peer_networks(config, settings.peer_bits, 'method.kdcl.peer_bits', num_classes)
  return KDCL((student_network(config, num_classes), *peers), settings)
