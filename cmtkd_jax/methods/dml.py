"""Deep mutual learning (Zhang, Xiang, Hospedales, Lu, CVPR 2018): peers that learn from each other's predictions."""

import dataclasses

import jax

from cmtkd_jax import losses
from cmtkd_jax.methods.base import MultiNetwork, check_teachers, peer_networks, student_network
from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """The student and its peers, each of which learns from the predictions of all others."""

  peer_bits: tuple = option((4, 6, 8), "bits of the peers, each a network of the student's architecture", items=8)
  beta: float = option(1.0, 'weight of the mutual terms')
  temperature: float = option(1.0, 'temperature of the mutual terms', above=0, unread_with={'beta': (0,)})


class DML(MultiNetwork):
  """The student and its peers."""

  def loss(self, outputs, labels):
    return dml_loss(outputs.logits, labels, self.settings, self.cross_entropy)


def dml_loss(logits, labels, settings, cross_entropy=losses.cross_entropy):
  """Total loss of M >= 2 networks that learn from each other.

      L = sum_i [ CE(z_i, y) + beta / (M - 1) sum_{j != i} tau^2 KL(softmax(z_j / tau) || softmax(z_i / tau)) ]

  with z_j a constant, so that each term trains network i alone.

  Args:
    logits: `{name: z_i}`, float [B, C], finite.
    labels: y, int32 [B] in 0..C-1.
    settings: `Settings`: beta >= 0, tau > 0.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: Deep mutual learning (Zhang et al., CVPR 2018), where tau = 1.
  """
  ce = {i: cross_entropy(z, labels) for i, z in logits.items()}
  mutual = {
    i: sum(losses.kl_divergence(jax.lax.stop_gradient(logits[j]), z, settings.temperature) for j in logits if j != i)
    / (len(logits) - 1)
    for i, z in logits.items()
  }
  total = sum(ce.values()) + settings.beta * sum(mutual.values())
  terms = {f'{i}/cross_entropy': value for i, value in ce.items()}
  return total, terms | {f'{i}/mutual': value for i, value in mutual.items()}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'dml')
  peers = peer_networks(config, settings.peer_bits, 'method.dml.peer_bits', num_classes)
  return DML((student_network(config, num_classes), *peers), settings)
