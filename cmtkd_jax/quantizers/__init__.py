"""Quantizers: pure functions of arrays with straight-through gradients. They know no Flax.

In one line: `quantizers.hwgq.fake_quantize_activation(x, 2)`, or under the common contract
`quantizers.hwgq.Activation(bits=2).fake_quantize(x)`.
"""

import importlib
import pkgutil

from cmtkd_jax.quantizers.base import MAX_BITS, QTensor, Quantized, Quantizer, dequantize

# Every file of this folder is a quantizer under its name, and offers the classes `Weight` and `Activation`, or one.
QUANTIZERS = {
  file.name: importlib.import_module(f'{__name__}.{file.name}')
  for file in pkgutil.iter_modules(__path__)
  if file.name != 'base'
}

__all__ = ['MAX_BITS', 'QUANTIZERS', 'QTensor', 'Quantized', 'Quantizer', 'dequantize']
