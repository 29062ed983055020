"""Quantizers: pure functions of arrays with straight-through gradients. They know no Flax.

In one line: `quantizers.hwgq.quantize_activation(x, 2)`, or under the common contract
`quantizers.hwgq.Activation(bits=2).quantize(x)`.
"""

from cmtkd_jax.quantizers import hwgq, lsq
from cmtkd_jax.quantizers.base import MAX_BITS, Coded, Quantizer, dequantize

# Adding a quantizer: its file, one line here, its test. A module offers the classes `Weight` and `Activation`.
QUANTIZERS = {
    'hwgq': hwgq,
    'lsq': lsq,
}

__all__ = ['MAX_BITS', 'QUANTIZERS', 'Coded', 'Quantizer', 'dequantize', 'hwgq', 'lsq']
