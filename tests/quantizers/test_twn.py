"""TWN: ternary weights against a reference, and by hand."""

import numpy as np

from tests.quantizers.cases import Case


def twn_weight(v, p, bits, g):
  threshold = 0.7 * np.abs(v).mean()
  big = np.abs(v) > threshold
  return np.where(big, np.sign(v) * np.abs(v)[big].mean(), 0), np.abs(np.abs(v) - threshold) > 1e-5, {'x': g}


CASES = {
  'Weight': Case(
    twn_weight,
    masks=((dict(bits=2), {}, [1] * 11),),
    by_hand=(
      # E|w| = 2, D = 1.4: 3 and -4 stay, alpha = 3.5
      (dict(bits=2), {}, [3, 0.5, -0.5, -4], [3.5, 0, 0, -3.5]),
      # D = E|w| = 2, which 2 itself does not exceed
      (dict(bits=2, threshold=1.0), {}, [-4, 1, 1, 2], [-4, 0, 0, 0]),
      # columns are channels: D = 1.4 and 10.5, alpha = 3 and 25
      (
        dict(bits=2, per_channel=True),
        {},
        [[-4, 10], [1, 20], [1, -30], [2, 0]],
        [[-3, 0], [0, 25], [0, -25], [3, 0]],
      ),
    ),
    refused=((dict(bits=2, threshold=0.0), ('twn.weight: threshold=0.0', 'positive')),),
    is_symmetric=True,
  ),
}
# (weight, activation) bits of two layers and of the teacher in a training step; 32 means no quantizer.
TRAINED_BITS = ((2, 32), (2, 32), (2, 32))
