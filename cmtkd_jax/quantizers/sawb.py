"""SAWB: statistics-aware weight binning, the weights of later PACT (Choi et al., SysML 2019)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from cmtkd_jax.quantizers import base, pact

# (c1, c2) of the clip, for 2^b levels; those of 7 bits are published for 127 levels. There are none for 1 and 6 bits.
COEFFICIENTS = {
  2: (3.12, 2.064),
  3: (7.509, 6.892),
  4: (12.68, 12.80),
  5: (17.74, 18.64),
  7: (28.24, 30.81),
  8: (31.76, 35.04),
}

Activation = pact.Activation


def weight_clip(w, bits):
  """Clip that nearly minimizes the squared error for bell-shaped weights: a = c1 sqrt(E w^2) - c2 E|w|.

  Args:
    w: float32, any shape.
    bits: a key of `COEFFICIENTS`.

  Returns:
    float32 scalar, positive. Weights so far from a bell that a <= 0, such as equal ones with
    4 bits or more, are clipped at max|w|.
  """
  c1, c2 = COEFFICIENTS[bits]
  root, mean = c1 * jnp.sqrt(jnp.mean(jnp.square(w))), c2 * jnp.mean(jnp.abs(w))
  clip = jnp.maximum(root, 0) - jnp.maximum(mean, 0)  # both are >= 0; a compiler could fuse a bare product with the sum
  return jnp.maximum(jnp.where(clip > 0, clip, jnp.max(jnp.abs(w))), base.SMALLEST)


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """Weights on 2^b evenly spaced levels from -a to a, ends included; a = `weight_clip`.

      w_hat = a (2 round(n (w / a + 1) / 2) / n - 1),  w / a clipped to [-1, 1], n = 2^b - 1

  Gradient: the identity everywhere, as in IBM's "SAWB+"; its plain SAWB has 0 outside of [-a, a].

  Source: Choi et al., "Accurate and Efficient 2-bit Quantized Neural Networks", SysML 2019; coefficients from IBM's
  fms-model-optimizer.
  """

  bit_widths = tuple(COEFFICIENTS)

  def quantize(self, x, parameters=None):
    n, a = 2**self.bits - 1, weight_clip(x, self.bits)
    # Added before it is multiplied: compilers may or may not fuse a product with a sum, and the codes must be the same
    # wherever they are computed.
    codes = jnp.round(jnp.clip((x + a) * (n / (2 * a)), 0, n))
    return base.QTensor(codes.astype(jnp.int32), a * np.float32(2 / n), n / 2)

  def surrogate(self, x, parameters):
    return x
