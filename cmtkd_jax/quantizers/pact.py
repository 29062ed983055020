"""PACT: activations with a learned clip (Choi et al., 2018); its weights are DoReFa's."""

import dataclasses

import jax.numpy as jnp

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base, dorefa

Weight = dorefa.Weight


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """Activations on 2^b levels from 0 to the learned clip a.

      x_hat = a / n * round(n clip(x / a, 0, 1)),  n = 2^b - 1

  Gradients: dx_hat/dx = 1[0 < x < a], dx_hat/da = 1[x >= a]. The clip is decayed like a weight, which is what makes it
  small. init_clip: its start, 10 in the paper, 6 in some codes. Source: PACT eqs. (1)-(3).
  """

  init_clip: float = option(10.0, 'where the clip starts', above=0)
  learned = ('clip',)
  decayed = ('clip',)

  def init(self, x):
    return {'clip': jnp.float32(self.init_clip)}

  def quantize(self, x, parameters):
    n, a = 2**self.bits - 1, base.magnitude(parameters['clip'])
    return base.QTensor(jnp.round(jnp.clip(x * (n / a), 0, n)).astype(jnp.int32), a / n)

  def surrogate(self, x, parameters):
    return base.clip(x, 0, base.magnitude(parameters['clip']))
