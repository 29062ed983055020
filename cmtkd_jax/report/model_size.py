"""Accuracy and size of the networks of a run."""

import math
from typing import NamedTuple

from cmtkd_jax.models import STUDENT, bit_table
from cmtkd_jax.models.bit_policy import FULL_PRECISION
from cmtkd_jax.runs.run_reader import results


class Point(NamedTuple):
  """One evaluated network.

  run: name of its run.
  network: e.g. 'student'.
  bits: size of its weights.
  top1: percent, on the test split at the last evaluation.
  parameters: number of its weights.
  """

  run: str
  network: str
  bits: int
  top1: float
  parameters: int = 0

  @property
  def kib(self):
    """Size of the weights in KiB."""
    return self.bits / 8 / 1024

  @property
  def ratio(self):
    """How many times smaller the weights are than in float32."""
    return FULL_PRECISION * self.parameters / self.bits if self.bits else 1.0


def layers(rows, network, evaluated):
  """Returns the `bit_table.LayerCost`s of a network.

  A network without layers of its own, such as the combined teacher, is made of all layers that belong to no
  evaluated network: the teachers and the classifier on their mixture; or where there are none, of all networks.

  Args:
    rows: `bit_table.LayerCost`s of a run.
    network: name of the network.
    evaluated: names of all evaluated networks.
  """
  owner = lambda row: row.layer.split('/')[0]
  own = [row for row in rows if owner(row) == network]
  rest = [row for row in rows if owner(row) not in evaluated]
  return own or rest or rows


def points(run, name=''):
  """Returns the `Point`s of one run, called `name` or else like its directory; [] before its first evaluation."""
  last = {
    key.removeprefix('test/'): result['last']['top1'] for key, result in results(run).items() if key.startswith('test/')
  }
  found = []
  for network in sorted(last, key=lambda network: network != STUDENT):
    rows = layers(run.bits, network, last)
    total = bit_table.total(rows)
    found.append(Point(name or run.name, network, total.size, last[network], total.parameters))
  return found


def front(found):
  """Returns the points that no other beats: none is as small, or smaller, and more accurate; by size."""
  best, kept = -math.inf, []
  for point in sorted(found, key=lambda point: (point.bits, -point.top1)):
    equals = point.top1 == best and point.bits == kept[-1].bits  # which do not beat each other
    if point.top1 > best or equals:
      best = point.top1
      kept.append(point)
  return kept
