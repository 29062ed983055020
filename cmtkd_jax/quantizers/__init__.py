"""Quantizers: pure functions of arrays with straight-through gradients. They know no Flax.

In one line: `quantizers.hwgq.fake_quantize_activation(x, 2)`, or under the common contract
`quantizers.hwgq.Activation(bits=2).fake_quantize(x)`.

QUANTIZERS: `{name: module}` with the classes `Weight` and `Activation`, or one of them. MAX_BITS: the largest width.
"""

import importlib
import pkgutil

from cmtkd_jax.quantizers.base import MAX_BITS, QTensor, Quantized, Quantizer, dequantize

# Every file of this folder with the classes `Weight` and `Activation`, or one of them, is a quantizer under its name.
_FILES = {file.name: importlib.import_module(f'{__name__}.{file.name}') for file in pkgutil.iter_modules(__path__)}
QUANTIZERS = {name: file for name, file in _FILES.items() if {'Weight', 'Activation'} & vars(file).keys()}

__all__ = ['MAX_BITS', 'QUANTIZERS', 'QTensor', 'Quantized', 'Quantizer', 'dequantize']
