"""Quantizers: pure functions of arrays with straight-through gradients. They know no Flax.

In one line: `quantizers.hwgq.quantize_activation(x, 2)`, or under the common contract
`quantizers.hwgq.Activation(bits=2).quantize(x)`.
"""

from cmtkd_jax.quantizers import apot, dorefa, ewgs, hwgq, lq_nets, lsq, lsq_plus, n2uq, pact, qil, sawb, twn, xnor
from cmtkd_jax.quantizers.base import MAX_BITS, Coded, Quantizer, dequantize

# Adding a quantizer: its file, one line here, its test. A module offers the classes `Weight` and `Activation`, or one.
QUANTIZERS = {
  'apot': apot,
  'dorefa': dorefa,
  'ewgs': ewgs,
  'hwgq': hwgq,
  'lq_nets': lq_nets,
  'lsq': lsq,
  'lsq_plus': lsq_plus,
  'n2uq': n2uq,
  'pact': pact,
  'qil': qil,
  'sawb': sawb,
  'twn': twn,
  'xnor': xnor,
}

__all__ = [
  'MAX_BITS',
  'QUANTIZERS',
  'Coded',
  'Quantizer',
  'apot',
  'dequantize',
  'dorefa',
  'ewgs',
  'hwgq',
  'lq_nets',
  'lsq',
  'lsq_plus',
  'n2uq',
  'pact',
  'qil',
  'sawb',
  'twn',
  'xnor',
]
