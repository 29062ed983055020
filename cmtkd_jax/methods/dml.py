"""Deep mutual learning (Zhang, Xiang, Hospedales, Lu, CVPR 2018): peers that learn from each other's predictions."""

import dataclasses

import jax

from cmtkd_jax import losses
from cmtkd_jax.methods.base import Joint, check_teachers, peer_members, student_member


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fields of `config.dml`."""

  peer_bits: tuple = (4, 6, 8)  # networks of the student's architecture beside it
  beta: float = 1.0  # weight of the mutual terms
  temperature: float = 1.0


class DML(Joint):
  """The student and its peers."""

  def loss(self, outputs, labels):
    """L = sum_i [CE(z_i, y) + beta mean_{j != i} tau^2 KL(p_j || p_i)], where p_j is a constant."""
    return dml_loss(outputs.logits, labels, self.settings)


def dml_loss(logits, labels, settings):
  """Returns (L, terms) of `{name: logits [B, C]}`."""
  ce = {i: losses.cross_entropy(z, labels) for i, z in logits.items()}
  mutual = {
    i: sum(losses.kl_divergence(jax.lax.stop_gradient(logits[j]), z, settings.temperature) for j in logits if j != i)
    / (len(logits) - 1)
    for i, z in logits.items()
  }
  total = sum(ce.values()) + settings.beta * sum(mutual.values())
  return total, {f'cross_entropy/{i}': value for i, value in ce.items()} | {
    f'mutual/{i}': value for i, value in mutual.items()
  }


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`."""
  check_teachers(teachers, 'dml', 0, 0)
  peers = peer_members(config, settings.peer_bits, 'dml.peer_bits', num_classes)
  return DML((student_member(config, num_classes), *peers), settings)
