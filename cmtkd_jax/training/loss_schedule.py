"""Weights and temperatures of the loss that change during training.

They follow `config.beta_schedule`, `config.gamma_schedule` and `config.temperature_schedule`.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cmtkd_jax.config import durations, recipes, unread
from cmtkd_jax.config.defaults import flat
from cmtkd_jax.errors import UserError

# By section: where a method holds the value, (attribute of the method, field), the first that exists. Each is named as
# in the method's paper.
_PLACES = {
  'beta_schedule': (('settings', 'beta'), ('settings', 'distillation_weight')),
  'gamma_schedule': (('feature_loss', 'weight'), ('settings', 'gamma')),
  'temperature_schedule': (('settings', 'temperature'),),
}
VALUES = tuple(section.removesuffix('_schedule') for section in _PLACES)


class _Change(NamedTuple):
  """A value that changes: its name, where the method holds it, and the factor on it as a function of the step."""

  name: str  # of `VALUES`
  place: tuple[str, str]
  factor: Callable

  def value(self, method, step):
    holder, field = self.place
    return getattr(getattr(method, holder), field) * self.factor(step)


class LossSchedule(NamedTuple):
  """The loss of a method as a function of the step."""

  method: Any
  changes: list[_Change]

  def __call__(self, step):
    """Returns the function `loss(outputs, labels)` of the method with the values of `step`."""
    return _changed(self.method, self.changes, step).loss if self.changes else self.method.loss

  def values(self, step):
    """Returns `{'train/beta': float, ..}`, the values at `step` that change."""
    return {f'train/{change.name}': float(change.value(self.method, step)) for change in self.changes}


def create(config, method, total_steps, **sizes):
  """Returns the `LossSchedule` of a configuration.

  Args:
    config: the run's configuration.
    method: a `methods.Method`.
    total_steps: of the training.
    **sizes: as for `durations.parse`.

  Raises:
    UserError: a field is not a duration, lies after the training, or changes nothing; or the method has no such value,
      or does not read it.
  """
  changes = [
    _Change(section.removesuffix('_schedule'), _place(method, section, config), factor)
    for section in _PLACES
    if (factor := _factor(config[section], section, total_steps, **sizes))
  ]
  return LossSchedule(method, changes)


def factor_at(step, warmup, first_factor, change_at, change_factor):
  """Returns the factor on a value at `step`, float32.

      f(t) = (first + (1 - first) min(1, t / warmup)) change^{number of changes up to t}

  Args:
    step: finished steps t, int32 scalar.
    warmup: in steps, 0 for none.
    first_factor, change_factor: factors.
    change_at: steps of the changes.
  """
  t = jnp.asarray(step, jnp.float32)
  rise = first_factor + (1 - first_factor) * jnp.minimum(1.0, t / warmup) if warmup else jnp.float32(1)
  return rise * change_factor ** sum((jnp.asarray(t >= at, jnp.float32) for at in change_at), jnp.float32(0))


def _factor(options, section, total_steps, **sizes):
  """The factor of a section as a function of the step, None for a constant."""
  warmup = durations.parse_one(options.warmup, f'config.{section}.warmup', **sizes)
  change_at = durations.parse(options.change_at, f'config.{section}.change_at', **sizes)
  for field, steps in (('warmup', [warmup]), ('change_at', change_at)):
    if max(steps, default=0) >= total_steps:
      raise UserError(
        f'config.{section}.{field}={options[field]!r} does not lie before the end of training, step {total_steps}; '
        'lower it'
      )
  for factor, field, steps in (('first_factor', 'warmup', warmup), ('change_factor', 'change_at', change_at)):
    if steps and options[factor] == 1:
      raise UserError(
        f'config.{section}.{factor}=1 changes nothing; give another factor, or empty config.{section}.{field}'
      )
    if not steps and options[factor] != getattr(recipes.LossSchedule, factor):
      raise UserError(
        f'config.{section}.{factor}={options[factor]!r} changes nothing without config.{section}.{field}; set that, too'
      )
  if section == 'temperature_schedule' and warmup and not options.first_factor:
    raise UserError(
      f'config.{section}.first_factor={options.first_factor!r} makes the first temperature 0; give a positive factor'
    )
  if not warmup and not change_at:
    return None
  return lambda step: factor_at(step, warmup, options.first_factor, change_at, options.change_factor)


def _place(method, section, config):
  name = config.method.name
  for holder, field in _PLACES[section]:
    if hasattr(getattr(method, holder, None), field):
      if holder == 'settings' and (why := unread.reason(f'method.{name}.{field}', flat(config))):
        raise UserError(
          f'config.{section}: {why}, with which nothing reads config.method.{name}.{field}; leave the schedule empty'
        )
      if not getattr(getattr(method, holder), field):
        owner = f'method.{name}' if holder == 'settings' else f'{holder}.{config[holder].name}'
        raise UserError(
          f'config.{owner}.{field}=0 stays 0 under config.{section}; raise it, or leave the schedule empty'
        )
      return holder, field
  value = section.removesuffix('_schedule')
  raise UserError(f'config.{section}: the method {name!r} has no {value} that could change; leave its fields empty')


def _changed(method, changes, step):
  """`method` with the values of `step`, which may be tracers: only its loss may be used, and must not compare them."""
  holders = {}
  for change in changes:
    holder, field = change.place
    values = holders.setdefault(holder, copy.copy(getattr(method, holder)))
    # A traced number cannot be compared with the bounds of an option, as the constructor would.
    object.__setattr__(values, field, change.value(method, step))
  return method.clone(**holders)
