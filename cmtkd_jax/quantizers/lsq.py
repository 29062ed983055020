"""LSQ: learned step size quantization (Esser et al., ICLR 2020)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from cmtkd_jax.options import option
from cmtkd_jax.quantizers import base


def bounds(bits, signed):
  """Returns (Q_N, Q_P): (0, 2^b - 1) unsigned, (2^(b-1), 2^(b-1) - 1) signed."""
  return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def is_binary(bits, signed):
  """Whether the signed grid has no room for a positive level (Q_P = 0), so that sign(v) * s takes its place."""
  base.check_bits(bits)
  return signed and bits == 1


def init_step(v, bits, signed, per_channel=False):
  """Initial step s = 2 mean|v| / sqrt(Q_P); s = mean|v| for binary weights.

  Args:
    v: float32 [..., C]; an unsigned quantizer sees max(v, 0).
    bits: 1..8.
    signed: weights are signed, activations unsigned.
    per_channel: one step per channel.

  Returns:
    float32 scalar or [C], positive; 1 where v is so close to zero that s <= 1e-6.

  Raises:
    ValueError: there is no such bit-width.
  """
  magnitude = jnp.mean(jnp.abs(v) if signed else jnp.maximum(v, 0), base.reduction_axes(v, per_channel))
  s = magnitude if is_binary(bits, signed) else 2 * magnitude / math.sqrt(bounds(bits, signed)[1])
  return jnp.where(s > base.SMALLEST, s, 1.0)


def gradient_scale(v, bits, signed, per_channel=False, count='features'):
  """Factor on the step's gradient: 1 / sqrt(N Q_P), with Q_P = 1 for binary weights.

  N is the number of weights that share the step; for activations the number of features of one example
  (count='features', the paper) or of the batch (count='batch', as public codes have it). That batch is the `v` at hand:
  with `config.grad_accum_steps` k it is one of k parts, so that the factor is sqrt(k) times that of the whole batch.
  """
  shape = v.shape
  if signed and per_channel:
    shape = shape[:-1]
  elif not signed and count == 'features':
    shape = shape[1:]
  n = math.prod(shape)
  return 1 / math.sqrt(n * max(1, bounds(bits, signed)[1]))


def quantize(v, step, bits, signed):
  """Codes round(clip(v / s, -Q_N, Q_P)), half to even; binary weights: 1[v >= 0], value s * (2 code - 1).

  Args:
    v: float32 [..., C].
    step: float32 scalar or [C], of which the `base.magnitude` is used.
    bits: 1..8.
    signed: see `bounds`.

  Returns:
    `QTensor` with codes in -Q_N..Q_P (binary: 0..1).

  Raises:
    ValueError: there is no such bit-width.
  """
  s = base.broadcast_to_channels(base.magnitude(step), v)
  if is_binary(bits, signed):
    return base.QTensor((v >= 0).astype(jnp.int32), 2 * s, 0.5)
  q_n, q_p = bounds(bits, signed)
  return base.QTensor(jnp.round(jnp.clip(_ratio(v, step), -q_n, q_p)).astype(jnp.int32), s)


def _ratio(v, step):
  # v / s. The reciprocal is written out: compilers may or may not replace a division by one value with it, and the
  # codes must be the same wherever they are computed.
  return v * (1 / base.broadcast_to_channels(base.magnitude(step), v))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def fake_quantize(v, step, bits, signed, step_gradient_scale=1.0):
  """Learned step quantization: v_hat = s * round(clip(v / s, -Q_N, Q_P)).

  Gradients:
    dv_hat/dv = 1 inside (-Q_N < v/s < Q_P), 0 outside
    dv_hat/ds = round(v/s) - v/s inside, -Q_N below, Q_P above; times `step_gradient_scale`
  The `base.magnitude` of a step is used; the gradient of a step below zero has the other sign.
  Binary weights: v_hat = s * sign(v), sign(0) = 1, dv_hat/dv = 1, dv_hat/ds = sign(v).

  Args and errors: as `quantize`; `step_gradient_scale` is a float, see `gradient_scale`. Returns float32 of v's shape.

  Source: LSQ sections 2 and 2.1.
  """
  del step_gradient_scale
  return base.dequantize_keeping_nan(v, quantize(v, step, bits, signed))


def _fake_quantize_forward(v, step, bits, signed, step_gradient_scale):
  # A step may be a number of Python.
  return fake_quantize(v, step, bits, signed, step_gradient_scale), (v, jnp.asarray(step))


def _fake_quantize_backward(bits, signed, step_gradient_scale, residuals, g):
  v, step = residuals
  ratio = _ratio(v, step)
  if is_binary(bits, signed):
    dv, ds = g, jnp.where(v >= 0, 1.0, -1.0)
  else:
    q_n, q_p = bounds(bits, signed)
    below, above = ratio <= -q_n, ratio >= q_p
    dv = jnp.where(below | above, 0, g)
    ds = jnp.where(below, -q_n, jnp.where(above, q_p, jnp.round(ratio) - ratio))
  ds = jnp.sum(g * ds, base.reduction_axes(v, per_channel=step.ndim > 0))
  return dv, step_gradient_scale * jnp.where(step < 0, -ds, ds)


fake_quantize.defvjp(_fake_quantize_forward, _fake_quantize_backward)


@dataclasses.dataclass(frozen=True)
class Activation(base.Quantizer):
  """LSQ's activations: unsigned multiples of one learned step a layer.

  See `fake_quantize`.
  """

  count: str = option(
    'features',
    "N in the gradient's factor: features of one example, or of the batch (of a part of it with grad_accum_steps)",
    choices=('features', 'batch'),
  )
  learned = ('step',)

  def init(self, x):
    return {'step': init_step(x, self.bits, signed=False)}

  def quantize(self, x, parameters=None):
    return quantize(x, parameters['step'], self.bits, signed=False)

  def fake_quantize(self, x, parameters=None):
    scale = gradient_scale(x, self.bits, signed=False, count=self.count)
    return fake_quantize(x, parameters['step'], self.bits, False, scale)


@dataclasses.dataclass(frozen=True)
class Weight(base.Quantizer):
  """LSQ's weights: signed multiples of a learned step a layer or a channel.

  See `fake_quantize`.
  """

  per_channel: bool = option(False, 'one step for each output channel')
  learned = ('step',)

  def init(self, x):
    return {'step': init_step(x, self.bits, signed=True, per_channel=self.per_channel)}

  def quantize(self, x, parameters=None):
    return quantize(x, parameters['step'], self.bits, signed=True)

  def fake_quantize(self, x, parameters=None):
    scale = gradient_scale(x, self.bits, signed=True, per_channel=self.per_channel)
    return fake_quantize(x, parameters['step'], self.bits, True, scale)
