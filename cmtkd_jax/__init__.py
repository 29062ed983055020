"""Low bit-width training by collaborative distillation, in JAX."""

__version__ = '0.1.0'
