"""What every quantizer offers: pure functions of arrays under one signature, and integer codes with the map back."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

MAX_BITS = 8


class Coded(NamedTuple):
  """Integer codes and the map back to values: `value = scale * (level(code) - zero) + offset`.

  codes:  int32, shape of the quantized tensor, each in [0, 2^b - 1], or [-2^(b-1), 2^(b-1) - 1] for signed grids.
  scale:  float32, scalar or broadcastable to `codes` (per output channel).
  zero:   a multiple of 1/2, exact in float32; halves belong to mid-rise grids, which have no zero level.
  offset: float32 like `scale`, or None.
  levels: float32 table of a non-uniform grid, indexed by code; None means `level(code) = code`.
  """
  codes: jax.Array
  scale: jax.Array
  zero: float = 0.0
  offset: jax.Array | None = None
  levels: jax.Array | None = None


def dequantize(coded):
  """Returns the float32 values that `coded` stands for, bit for bit those of the fake-quantized tensor."""
  level = coded.codes.astype(jnp.float32) if coded.levels is None else coded.levels[coded.codes]
  value = coded.scale * (level - coded.zero)
  return value if coded.offset is None else value + coded.offset


def fake_quantize(x, coded):
  """Returns `dequantize(coded)`, with NaN where `x` is NaN: integer codes have none, and a network that has diverged
  must not come out of its quantizers looking healthy."""
  return jnp.where(jnp.isnan(x), x, dequantize(coded))


@dataclasses.dataclass(frozen=True)
class Quantizer:
  """One quantizer of one tensor role (weight or activation) at one bit-width.

  A subclass names its learned parameters in `learned` (trained by gradient, never decayed) and its other state in
  `fitted` (replaced by `update` at each training step, e.g. a basis that is re-fitted). All methods are pure.
  """
  bits: int

  learned: ClassVar[tuple[str, ...]] = ()
  fitted: ClassVar[tuple[str, ...]] = ()
  widths: ClassVar[tuple[int, ...]] = tuple(range(1, MAX_BITS + 1))
  choices: ClassVar[dict[str, tuple]] = {}

  def __post_init__(self):
    name = f'{type(self).__module__.rpartition(".")[2]}.{type(self).__name__.lower()}'
    if type(self.bits) is not int or self.bits not in self.widths:
      raise ValueError(f'{name}: bits={self.bits} is not supported; allowed: {", ".join(map(str, self.widths))}')
    for field, allowed in self.choices.items():
      if getattr(self, field) not in allowed:
        raise ValueError(f'{name}: {field}={getattr(self, field)!r} is not one of {", ".join(map(repr, allowed))}')

  def init(self, x):
    """Returns the initial learned and fitted values, `{name: float32 array}`, from data `x` (float32)."""
    del x
    return {}

  def encode(self, x, parameters=None):
    """Returns the `Coded` form of `x` (float32); `parameters` holds the learned and fitted values by name."""
    raise NotImplementedError

  def quantize(self, x, parameters=None):
    """Returns the fake-quantized `x` (float32, same shape), differentiable in `x` and in the learned values."""
    raise NotImplementedError

  def update(self, x, parameters):
    """Returns the fitted values after one training step that saw `x`."""
    del x
    return {name: parameters[name] for name in self.fitted}


def broadcast_to_channels(scale, x):
  """Views `scale`, a scalar or one value a channel [C], as broadcastable to `x` [..., C]."""
  return scale if scale.ndim == 0 else scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def reduction_axes(x, per_channel):
  """Returns the axes that share one scale: all, or all but the last (the output channel)."""
  return tuple(range(x.ndim - 1 if per_channel else x.ndim))
