"""What every quantizer offers: pure functions of arrays under one signature, and integer codes with the map back."""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.options import Options

MAX_BITS = 8
SMALLEST = 1e-6  # scales and widths of intervals, learned or measured, stay above it


class QTensor(NamedTuple):
  """Integer codes and the map back to values: `value = scale * (level(code) - zero) + offset`.

  codes:  int32, shape of the quantized tensor, each in [0, 2^b - 1], or [-2^(b-1), 2^(b-1) - 1] for signed grids.
  scale:  float32, scalar or broadcastable to `codes` (per output channel).
  zero:   a multiple of 1/2, exact in float32; halves belong to mid-rise grids, which have no zero level.
  offset: float32 like `scale`, or None.
  levels: float32 table of a non-uniform grid, [n] or one a channel [C, n], indexed by code; None: `level(code) = code`.
  """

  codes: jax.Array
  scale: jax.Array
  zero: float = 0.0
  offset: jax.Array | None = None
  levels: jax.Array | None = None


def dequantize(coded):
  """Returns the float32 values that `coded` stands for, bit for bit those of the fake-quantized tensor."""
  if coded.levels is None:
    level = coded.codes.astype(jnp.float32)
  elif coded.levels.ndim == 1:
    level = coded.levels[coded.codes]
  else:
    level = coded.levels[jnp.arange(coded.levels.shape[0]), coded.codes]
  value = coded.scale * (level - coded.zero)
  return value if coded.offset is None else value + coded.offset


def dequantize_keeping_nan(x, coded):
  """Returns `dequantize(coded)`, with NaN where `x` is NaN: integer codes have none, and the activations of a network
  that has diverged must not come out looking healthy.

  Raises:
    ValueError: there are no int32 codes of the shape of `x`.
  """
  if not isinstance(coded, QTensor):
    raise ValueError(f'quantize() returned {type(coded).__name__}; return a QTensor')
  codes = coded.codes
  if codes.shape != x.shape or codes.dtype != jnp.int32:
    raise ValueError(
      f'quantize() returned {codes.dtype} codes of shape {codes.shape} for an input of shape {x.shape}; '
      'return int32 codes of its shape'
    )
  return jnp.where(jnp.isnan(x), x, dequantize(coded))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A fake-quantized tensor beside the levels that it stands for: `value = scale * level`, bit for bit.

  Levels are whole or half numbers of at most 8 significant bits, so that bfloat16 and TF32 hold them, which they do not
  hold the values. Gradients flow through `value` alone. It is a pytree and no array: what adds or averages it takes
  `value`.

  value: float32, from `fake_quantize`.
  level: float32, `code - zero`, NaN where the value is NaN; None for a grid with a table of levels or an offset.
  scale: float32, scalar or broadcastable to `level` (per output channel), or None like `level`.
  """

  value: jax.Array
  level: jax.Array | None = None
  scale: jax.Array | None = None

  @property
  def shape(self):
    return self.value.shape


@jax.custom_vjp
def ste(value, surrogate):
  """Returns `value` with the gradient of `surrogate`, a function of the same shape: a quantizer's backward pass."""
  del surrogate
  return value


ste.defvjp(lambda value, surrogate: (value, None), lambda _, g: (jnp.zeros_like(g), g))


def ste_round(x):
  """Returns `x` rounded to integers, half to even, with the gradient of `x`."""
  return ste(jnp.round(jax.lax.stop_gradient(x)), x)


def clip(x, low, high):
  """Clips `x`. Gradient: strictly inside to `x`, else to the bound that holds, which may be learned."""
  return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def mask_gradient(mask, x):
  """Returns `x`, whose gradient is kept where `mask`, and 0 elsewhere."""
  return jnp.where(mask, x, jax.lax.stop_gradient(x))


@jax.custom_vjp
def scale_gradient(x, factor):
  """Returns `x` with its gradient times `factor`."""
  del factor
  return x


scale_gradient.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, jnp.zeros_like(factor)))


def nearest_level(x, levels):
  """Returns for each value of `x` the int32 index of the nearest of the ascending `levels` [n]; midway the lower."""
  thresholds = (levels[1:] + levels[:-1]) / 2
  # Few thresholds: a sum of comparisons, which compilers fuse. Many: a binary search.
  method = 'compare_all' if len(thresholds) < 16 else 'scan'
  return jnp.searchsorted(thresholds, x, side='left', method=method).astype(jnp.int32)


def nearest_level_by_channel(x, levels):
  """Returns `nearest_level` of each channel of `x` [..., C] among its own ascending `levels` [C, n]; shape of `x`."""
  # As rows: XLA for CPUs (jaxlib 0.10) miscompiles the batched search along a last axis where `x` is a constant.
  rows = jax.vmap(nearest_level)(x.reshape(-1, x.shape[-1]).T, levels)
  return rows.T.reshape(x.shape)


def _of_arrays(method):
  """Returns `method` of a quantizer, which casts its input to float32 and names the values that it lacks."""

  @functools.wraps(method)
  def checked(self, x, parameters=None):
    needed = (*self.learned, *self.fitted)
    fault = lambda: ValueError(
      f'{self._name} has values that are learned or fitted, {", ".join(needed)}; '
      f'call q.{method.__name__}(x, q.init(x)), or with those of a trained network'
    )
    if needed and not parameters:
      raise fault()
    try:
      return method(self, jnp.asarray(x, jnp.float32), parameters)
    except KeyError as e:
      if e.args[0] in needed:
        raise fault() from None
      if parameters is not None and e.args[0] in parameters:
        raise
      raise ValueError(
        f'{self._name}: there is no value {e.args[0]!r}; return it from init(), and name it in `learned` or `fitted`'
      ) from e

  return checked


def _of_float32(init):
  """Returns `init` of a quantizer, which casts its input to float32."""
  return functools.wraps(init)(lambda self, x: init(self, jnp.asarray(x, jnp.float32)))


def _check_declarations(cls):
  """Raises `TypeError` where the names or bit-widths that a quantizer declares cannot be meant."""
  where = f'{cls.__module__}.{cls.__name__}'
  # A property depends on the settings; nothing is known of it yet.
  names = {
    kind: getattr(cls, kind)
    for kind in ('learned', 'decayed', 'fitted')
    if not isinstance(getattr(cls, kind), property)
  }
  for kind, found in names.items():
    if not isinstance(found, tuple):
      raise TypeError(f"{where}: {kind}={found!r} is not a tuple of names; write ('step',)")
  if 'learned' in names and (unknown := set(names.get('decayed', ())) - set(names['learned'])):
    raise TypeError(f'{where}: {min(unknown)!r} is decayed, but not learned; name it in `learned`')
  if 'update' in vars(cls) and names.get('fitted') == ():
    raise TypeError(f'{where} has update(), but nothing is fitted; name the values that it returns in `fitted`')
  if unknown := set(cls.bit_widths) - set(range(1, MAX_BITS + 1)):
    raise TypeError(f'{where}: bit_widths={cls.bit_widths} has {min(unknown)}; allowed: 1 to {MAX_BITS}')


@dataclasses.dataclass(frozen=True)
class Quantizer(Options):
  """One quantizer of one tensor role (weight or activation) at one bit-width.

  A subclass defines `quantize`, which returns integer codes with the map back to values, and `surrogate`, whose
  gradient replaces that of the steps; or else it defines `fake_quantize` itself. `learned` names its trained
  parameters, `decayed` those of them with weight decay, and `fitted` its other state, such as a basis, which `update`
  replaces at each training step. All methods are pure. `quantize`, `fake_quantize` and `with_levels` cast `x` to
  float32.
  """

  bits: int

  learned: ClassVar[tuple[str, ...]] = ()
  decayed: ClassVar[tuple[str, ...]] = ()
  fitted: ClassVar[tuple[str, ...]] = ()
  bit_widths: ClassVar[tuple[int, ...]] = tuple(range(1, MAX_BITS + 1))

  def __init_subclass__(cls, **settings):
    super().__init_subclass__(**settings)
    _check_declarations(cls)
    for name in {'quantize', 'fake_quantize'} & vars(cls).keys():
      setattr(cls, name, _of_arrays(vars(cls)[name]))
    if 'init' in vars(cls):
      cls.init = _of_float32(vars(cls)['init'])

  def __post_init__(self):
    try:
      super().__post_init__()
    except ValueError as e:
      raise ValueError(f'{self._name}: {e}') from None
    if type(self.bits) is not int:
      raise ValueError(f'{self._name}: bits={self.bits!r} is not a Python int; write int(bits)')
    if self.bits not in self.bit_widths:
      allowed = ', '.join(map(str, self.bit_widths))
      raise ValueError(f'{self._name}: bits={self.bits!r} is not supported; allowed: {allowed}')

  @property
  def _name(self):
    return f'{type(self).__module__.rpartition(".")[2]}.{type(self).__name__.lower()}'

  def init(self, x):
    """Returns the initial learned and fitted values for data `x` (float32), `{name: float32}`.

    A value is a scalar, or has an entry for each output channel or level.
    """
    del x
    return {}

  def quantize(self, x, parameters=None):
    """Returns the `QTensor` form of `x` (float32); `parameters` holds the learned and fitted values by name."""
    raise NotImplementedError(f'{self._name} defines no quantize')

  def surrogate(self, x, parameters):
    """Returns what `fake_quantize` is differentiated as, shape of `x`."""
    raise NotImplementedError(f'{self._name} defines no surrogate; without one, a quantizer defines fake_quantize')

  def fake_quantize(self, x, parameters=None):
    """Returns the fake-quantized `x` (float32, same shape), differentiable in `x` and in the learned values."""
    x = jnp.asarray(x, jnp.float32)
    coded, surrogate = self.quantize(x, parameters), self.surrogate(x, parameters)
    try:
      value = jax.lax.stop_gradient(dequantize_keeping_nan(x, coded))
    except ValueError as e:
      raise ValueError(f'{self._name}: {e}') from None
    if (shape := getattr(surrogate, 'shape', type(surrogate).__name__)) != x.shape:
      raise ValueError(f'{self._name}: surrogate() returns {shape} for an input of shape {x.shape}; return its shape')
    return ste(value, surrogate)

  def with_levels(self, x, parameters=None):
    """Returns the `Quantized` form of `x` (float32): `fake_quantize` and the levels that it stands for."""
    x = jnp.asarray(x, jnp.float32)
    value, coded = self.fake_quantize(x, parameters), self.quantize(x, parameters)
    if coded.levels is not None or coded.offset is not None:
      return Quantized(value)
    level = jnp.where(jnp.isnan(x), x, coded.codes.astype(jnp.float32) - coded.zero)
    return Quantized(value, *jax.lax.stop_gradient((level, jnp.asarray(coded.scale, jnp.float32))))

  def update(self, x, parameters):
    """Returns the fitted values, those of `fitted`, after one training step that saw `x` (float32)."""
    del x
    return {name: parameters[name] for name in self.fitted}


def running_average(average, value, updates, momentum):
  """Returns the average v_t of the values f_1 .. f_t with falling weights.

      v_t = (1 - m) / (1 - m^t) sum_i m^(t-i) f_i = k v_(t-1) + (1 - k) f_t,  k = (m - m^t) / (1 - m^t)

  Args:
    average: v_(t-1), float32, any shape; has no weight at t = 1.
    value: f_t, of the same shape.
    updates: t, float32 scalar >= 1.
    momentum: m in [0, 1).
  """
  decayed = momentum**updates
  kept = (momentum - decayed) / (1 - decayed)
  return kept * average + (1 - kept) * value


def ste_maximum(x, low=SMALLEST):
  """Returns max(x, low), whose gradient always reaches `x`, so that training can bring a lost value back."""
  return ste(jnp.maximum(jax.lax.stop_gradient(x), low), x)


def magnitude(scale):
  """Returns max(|scale|, SMALLEST) of a learned scale, float32 of its shape, with gradient 1, or -1 where scale < 0.

  So a scale that training pushes through zero soon has a usual size again. Kept at `SMALLEST` instead, it would scale
  its layer to almost zero, and the normalization that follows would multiply the gradient.
  """
  return ste_maximum(jnp.where(scale < 0, -scale, scale))


def half_gaussian_deviation(x, axes=None):
  """Returns the standard deviation along `axes` of the centered Gaussian whose positive values are those of `x`.

  sigma = sqrt(2 mean(max(x, 0)^2)), float32: half of a Gaussian's values are positive
  """
  return jnp.sqrt(2 * jnp.mean(jnp.square(jnp.maximum(x, 0)), axes))


def step_gradient_scale(x, levels):
  """Returns LSQ's factor on the gradient of a value that all of an activation shares: 1 / sqrt(features * levels)."""
  return np.float32(1 / np.sqrt(math.prod(x.shape[1:]) * levels))


def check_bits(bits):
  """Raises `ValueError` unless `bits` is a bit-width of quantizers."""
  if bits not in range(1, MAX_BITS + 1):
    raise ValueError(f'bits={bits!r} is not supported; allowed: 1 to {MAX_BITS}')


def broadcast_to_channels(scale, x):
  """Views `scale`, a scalar or one value per channel [C], as broadcastable to `x` [..., C]."""
  return scale if scale.ndim == 0 else scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def reduction_axes(x, per_channel):
  """Returns the axes that share one scale: all, or all but the last (the output channel)."""
  return tuple(range(x.ndim - 1 if per_channel else x.ndim))
