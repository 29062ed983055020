"""What a feature loss and a logit loss offer to the methods: one signature each, with their settings as fields."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from cmtkd_jax.losses.mean_softmax import mean_softmax
from cmtkd_jax.options import Options, option

ADAPTORS = ('identity', 'conv', 'conv_norm')
MAPS = ('quantized', 'pre_quantizer')  # which feature maps a loss compares


def check_maps(teacher, student):
  """Raises `ValueError` unless both are [B, H, W, C] and equal."""
  if teacher.ndim != 4 or teacher.shape != student.shape:
    raise ValueError(f'teacher and student must both be [B, H, W, C]; got {teacher.shape} and {student.shape}')


def check_logits(target_logits, logits):
  """Raises `ValueError` unless both are [B, C] and equal."""
  if logits.ndim != 2 or target_logits.shape != logits.shape:
    raise ValueError(f'targets and logits must both be [B, C]; got {target_logits.shape} and {logits.shape}')


def check_labels(logits, labels):
  """Raises `ValueError` unless logits are [B, C], and labels [B] and integers."""
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(f'logits must be [B, C] and labels [B]; got {logits.shape} and {labels.shape}')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'labels must be integers; got {labels.dtype}')


def root(x):
  """Returns the square root of `x` >= 0, float32 of any shape; its gradient at 0 is 0, not infinite."""
  positive = x > 0
  # The inner `where` keeps the slope out of the gradient.
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def absolute(d):
  """Returns |d| of `d`, float of any shape; its gradient at 0 is 0, where that of `jnp.abs` is 1."""
  return d * jnp.sign(d)


def unit(v):
  """Returns v / ||v||_2 along the last axis of `v`, float32; zero, without a gradient, where ||v||^2 underflows."""
  squared_norm = jnp.sum(jnp.square(v), axis=-1, keepdims=True)
  has_norm = squared_norm >= jnp.finfo(jnp.float32).tiny
  # The inner `where` keeps the infinite slope of the root at 0 out of the gradient.
  return jnp.where(has_norm, v / jnp.sqrt(jnp.where(has_norm, squared_norm, 1.0)), 0.0)


def of_class(x, labels, keepdims=False):
  """Returns x[..., b, c_b] of `x` [..., B, C] and labels c [B]; 0 where a label lies outside [0, C).

  A masked sum, whose gradient is a select: that of an indexed read would be a scatter.
  """
  true_class = jax.nn.one_hot(labels, x.shape[-1], dtype=jnp.bool_)
  true_class = true_class.reshape((1,) * (x.ndim - 2) + true_class.shape)
  return jnp.sum(jnp.where(true_class, x, 0.0), axis=-1, keepdims=keepdims)


def weight_option(default):
  """Returns the option `weight` of a feature loss."""
  return option(default, 'gamma of eq. (10), weight of the loss in the total')


def tap_factor_option(default):
  """Returns the option `tap_factor` of a feature loss."""
  return option(default, 'weight of each tap relative to the next deeper one', above=0)


def adaptor_option(default):
  """Returns the option `adaptor` of a feature loss."""
  return option(
    default,
    "what brings the student's map to the teacher's channels: nothing, a 1x1 'conv', or one with batch normalization",
    choices=ADAPTORS,
  )


@dataclasses.dataclass(frozen=True)
class FeatureLoss(Options):
  """D of CMT-KD eq. (4): how far the student's map is from the teachers' at one tap, `loss(teacher, student)`.

  `maps` says which maps it compares: 'quantized', or 'pre_quantizer'.
  """

  weight: float = weight_option(1.0)
  tap_factor: float = tap_factor_option(1.0)
  adaptor: str = adaptor_option('identity')

  maps: ClassVar[str] = 'quantized'

  def __init_subclass__(cls, **settings):
    super().__init_subclass__(**settings)
    if cls.maps not in MAPS:
      raise TypeError(f'{cls.__module__}.{cls.__name__}: maps={cls.maps!r} is not one of {", ".join(MAPS)}')

  def __call__(self, teacher, student):
    """Returns the loss, a float32 scalar, of maps [B, H, W, C]."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LogitLoss(Options):
  """How far logits are from target logits, `loss(target_logits, logits, labels, temperature)`.

  The loss has its minimum where both are equal. It is 0 there, except for DIST, which treats nearly constant
  predictions as uncorrelated. Methods give it logits of one kind on both sides: those that the networks return, with a
  target from `combine`, or both counted from the true class (CMT-KD eq. (7)).
  `reads_temperature` says whether the temperature matters.
  """

  reads_temperature: ClassVar[bool] = True

  def combine(self, teacher_logits, temperature):
    """Returns the target logits, float32 [B, C], of one or more teachers, a sequence of [B, C].

    By default their softmax at `temperature` is the mean softmax of the teachers, and their shift is arbitrary. A loss
    that sees a shift of the logits, z + constant, must override this method.
    """
    return mean_softmax(teacher_logits, temperature)

  def __call__(self, target_logits, logits, labels, temperature):
    """Returns the loss, a float32 scalar, of logits [B, C] and labels int32 [B]."""
    raise NotImplementedError
