"""Durations in one field: '120 epochs', '3000 steps' or '2000000 examples', so that exactly one unit is given."""

import re

from cmtkd_jax.errors import UserError

_NUMBER = r'\d{1,15}(?:\.\d+)?'
_MOST_STEPS = 2**31 - 2  # steps are counted in int32
_FORM = re.compile(rf'\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*(steps?|epochs?|examples?)\s*')


def check(text, field, several):
  """Raises `UserError` unless `text` is '' or of the form of a duration, or of several where the field takes them."""
  if not text.strip():
    return
  match = _FORM.fullmatch(text)
  if not match:
    form = (
      "numbers and one unit, such as '120 epochs', '3000 steps' or '50, 100 epochs'"
      if several
      else "a number and a unit, such as '120 epochs' or '3000 steps'"
    )
    raise UserError(f'{field}={text!r} is not a duration; give {form} (steps, epochs or examples)')
  if not several and ',' in match[1]:
    raise UserError(f'{field}={text!r} gives {match[1].count(",") + 1} durations where one is wanted; leave one')


def parse(text, field, *, steps_per_epoch, batch_size, several=True):
  """Returns the durations in `text`, e.g. '50, 100 epochs', as a tuple of whole training steps.

  Args:
    text: numbers separated by commas, then one unit; '' is not a duration.
    field: name of the config field, for the error.
    steps_per_epoch, batch_size: what an epoch and a step are.
    several: whether there may be more than one.

  Returns:
    tuple of ascending ints >= 0, rounded to the nearest step.

  Raises:
    UserError: `text` is not of that form, a number other than 0 comes down to no step, or the steps do not ascend.
  """
  check(text, field, several)
  if not text.strip():
    return ()
  numbers, unit = _FORM.fullmatch(text).groups()
  steps_per_unit = {'step': 1, 'epoch': steps_per_epoch, 'example': 1 / batch_size}[unit.removesuffix('s')]
  steps = tuple(round(float(number) * steps_per_unit) for number in numbers.split(','))
  for number, count in zip(numbers.split(','), steps, strict=True):
    if float(number) and not count:
      raise UserError(
        f'{field}={text!r} is less than one step (an epoch has {steps_per_epoch}); give at least '
        "'1 steps', or '' for none"
      )
    if count > _MOST_STEPS:
      raise UserError(f'{field}={text!r} is more than {_MOST_STEPS:,} steps; shorten it')
  if list(steps) != sorted(set(steps)):
    raise UserError(f'{field}={text!r} must ascend; list each step once, in order')
  return steps


def parse_one(text, field, **sizes):
  """Returns the single duration in `text` as steps; 0 for ''. Raises `UserError` where there are several."""
  return next(iter(parse(text, field, several=False, **sizes)), 0)
