"""XNOR-Net: binary weights and activations against references, at the edges of the mask, and by hand."""

import numpy as np

from tests.quantizers.cases import Case, everywhere


def xnor_weight(v, p, bits, g):
  alpha = np.abs(v).mean((0, 1, 2))
  return np.where(v >= 0, alpha, -alpha), everywhere(v), {'x': g * (1 / 36 + alpha * (np.abs(v) <= 1))}


def xnor_activation(v, p, bits, g):
  return np.where(v >= 0, 1, -1), everywhere(v), {'x': g * (np.abs(v) <= 1)}


CASES = {
  'Weight': Case(
    xnor_weight,
    # columns are channels: mean|w| = 2, 3
    by_hand=(
      (dict(bits=1), {}, [[1, -2], [-3, 4]], [[2, -3], [-2, 3]]),
      (dict(bits=1), {}, [[0], [-4]], [[2], [-2]]),
    ),
    # The 11 points have mean|w| = (24 + 2 e) / 11, with e = 2^-12.
    masks=(
      (dict(bits=1), {}, [1 / 11 + inside * (24 + 2**-11) / 11 for inside in (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0)]),
      (dict(bits=1, gradient='identity'), {}, 11 * [1]),
    ),
    refused=((dict(bits=1, gradient='ste'), ("gradient='ste'", "'paper', 'identity'")),),
  ),
  'Activation': Case(xnor_activation, masks=((dict(bits=1), {}, [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]),)),
}
# (weight, activation) bits of two layers and of the teacher in a training step; 32 means no quantizer.
TRAINED_BITS = ((1, 1), (1, 32), (1, 1))
