"""PACT: activations against a reference, at the edges of their mask, and by hand; its weights are DoReFa's."""

from cmtkd_jax.quantizers import dorefa, pact
from tests.quantizers.cases import Case, grid, nearest


def pact_activation(v, p, bits, g):
  level, clear = nearest(v, p['clip'] * grid(bits))
  return level, clear, {'x': g * ((v > 0) & (v < p['clip'])), 'clip': g[v >= p['clip']].sum()}


CASES = {
  'Activation': Case(
    pact_activation,
    parameters=lambda bits: {'clip': 1.7},
    masks=((dict(bits=2), {'clip': 1.0}, [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]),),
    # a = 3: levels 0, 1, 2, 3; 0.5 -> 0 and 1.5 -> 2 go to even
    by_hand=((dict(bits=2), {'clip': 3}, [-1, 0.5, 0.6, 1.5, 9], [0, 0, 1, 2, 3]),),
    refused=((dict(bits=2, init_clip=0.0), ('pact.activation: init_clip=0.0', 'positive')),),
  ),
}


def test_weights_are_those_of_dorefa():
  assert pact.Weight is dorefa.Weight
