"""What a feature loss and a logit loss offer to the methods: one signature each, with their settings as fields."""

import dataclasses
from typing import ClassVar

from cmtkd_jax.losses.mean_softmax import mean_softmax
from cmtkd_jax.options import Options, option

ADAPTORS = ('identity', 'conv', 'conv_norm')


def check_maps(teacher, student):
  """Raises `ValueError` unless both are [B, H, W, C] and equal."""
  if teacher.ndim != 4 or teacher.shape != student.shape:
    raise ValueError(f'teacher and student must both be [B, H, W, C]; got {teacher.shape} and {student.shape}')


def check_logits(target_logits, logits, labels=None):
  """Raises `ValueError` unless both are [B, C] and equal, and labels, if given, [B]."""
  if logits.ndim != 2 or target_logits.shape != logits.shape:
    raise ValueError(f'target_logits and logits must both be [B, C]; got {target_logits.shape} and {logits.shape}')
  if labels is not None and labels.shape != logits.shape[:1]:
    raise ValueError(f'labels must be [B]; got {labels.shape} for logits {logits.shape}')


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

  def __call__(self, teacher, student):
    """Returns the loss, a float32 scalar, of maps [B, H, W, C]."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LogitLoss(Options):
  """How far logits are from target logits, `loss(target_logits, logits, labels, temperature)`.

  The loss has its minimum where both are equal. It is 0 there, but for DIST, which counts what hardly varies as
  uncorrelated. Methods give it logits of one kind on both sides: those that the
  networks return, with a target from `combine`, or both counted from the true class (CMT-KD eq. (7)).
  """

  def combine(self, teacher_logits, temperature):
    """Returns the target logits, float32 [B, C], of one or more teachers, a sequence of [B, C].

    By default their softmax at `temperature` is the mean softmax of the teachers, and their shift is arbitrary. A loss
    that sees a shift of the logits, z + constant, must override this method.
    """
    return mean_softmax(teacher_logits, temperature)

  def __call__(self, target_logits, logits, labels, temperature):
    """Returns the loss, a float32 scalar, of logits [B, C] and labels int32 [B]."""
    raise NotImplementedError
