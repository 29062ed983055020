"""Options: dataclasses of fields that users set, each with its default, its meaning and its allowed values in one line.

    @dataclasses.dataclass(frozen=True)
    class Settings(Options):
      temperature: float = option(2.0, 'of the softmax', above=0)
      ensemble: str = option('mean', 'of the logits', choices=('mean', 'min_logit'))

The checks of the configuration, its error messages and `--mode=config` all come from these lines.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from cmtkd_jax.errors import UserError

_ALLOWED = {'choices', 'least', 'above', 'most', 'below', 'items', 'regex', 'durations', 'unread_with'}
LARGEST = 1e9  # beyond it float32 sums overflow, and int32 counts


def option(default: Any, doc: str, **allowed: Any) -> Any:
  """Returns the dataclass field of one option.

  Args:
    default: its value if the user does not set it. Its type is the type that is allowed: a float also takes whole
      numbers, a tuple also lists; None stands for an optional float.
    doc: what it means, a phrase of one line.
    **allowed: what else a value must fulfill.
      choices: a collection that it is one of; a registry may grow later.
      least, above, most, below: bounds of a number, inclusive and exclusive. A number without `least` or `above` must
        not be negative.
      items: an example of what a tuple is made of.
      regex: whether it is a regular expression.
      durations: 'one' or 'several': how many durations the text gives, see `config.durations`.
      unread_with: {field: values}: values of other options with which nothing reads this one. A field of another
        section is named in full, such as 'feature_loss.name'.
  """
  if unknown := allowed.keys() - _ALLOWED:
    raise TypeError(f'option: {", ".join(sorted(unknown))}')
  if isinstance(default, dict):
    return dataclasses.field(default_factory=default.copy, metadata={'doc': doc, **allowed})
  return dataclasses.field(default=default, metadata={'doc': doc, **allowed})


@dataclasses.dataclass(frozen=True)
class Options:
  """Base of frozen dataclasses of `option`s.

  Raises:
    ValueError: a value is not allowed. The message begins with 'field=value'.
  """

  def __post_init__(self):
    for field in fields(type(self)):
      field.check(getattr(self, field.name))


@dataclasses.dataclass(frozen=True)
class Field:
  """One option of a class: name, default, meaning, and what `option` was given as `allowed`."""

  name: str
  default: Any
  doc: str
  allowed: dict[str, Any]

  @property
  def choices(self):
    """The values that it may take where `option` lists them, else ()."""
    return self.allowed.get('choices', ())

  def check(self, value):
    """Raises `ValueError`, whose message begins with 'field=value', unless the option may take `value`."""
    if problem := self._problem(value):
      raise ValueError(f'{self.name}={value!r} {problem}')

  def describe(self):
    """Returns the allowed values as a phrase, e.g. "one of 'step', 'cosine'" or '> 0'; '' for any of its type."""
    if self.choices:
      return f'one of {", ".join(map(repr, self.choices))}'
    if self._is_number():
      return _short_bounds(self._bounds())
    if 'items' in self.allowed:
      return f'a tuple of values like {self.allowed["items"]!r}'
    if isinstance(self.default, bool):
      return 'True or False'
    if 'durations' in self.allowed:
      return 'a duration' if self.allowed['durations'] == 'one' else 'durations'
    return 'a regular expression' if self.allowed.get('regex') else ''

  def _is_number(self):
    return self.default is None or (isinstance(self.default, (int, float)) and not isinstance(self.default, bool))

  def _bounds(self):
    bounds = {name: self.allowed[name] for name in ('least', 'above', 'most', 'below') if name in self.allowed}
    return bounds if bounds.keys() & {'least', 'above'} else {'least': 0, **bounds}

  def _problem(self, value):
    if value is None and self.default is None:
      return ''
    example = 1.0 if self.default is None else self.default
    if not _same_kind(value, example):
      wanted = 'True or False' if isinstance(example, bool) else f'{type(example).__name__}, such as {example!r}'
      return f'is {type(value).__name__}; it must be {wanted}'
    numbers = [value]
    if 'items' in self.allowed:
      if not all(_same_kind(item, self.allowed['items']) for item in value):
        return f'must hold values like {self.allowed["items"]!r}'
      numbers = value
    for number in numbers:
      if isinstance(number, float) and not math.isfinite(number):
        return 'must be finite'
      if isinstance(number, (int, float)) and abs(number) > LARGEST and not self._bounds().keys() & {'most', 'below'}:
        return f'must be at most {LARGEST:g}' if number > 0 else f'must be at least -{LARGEST:g}'
    if self.choices and value not in self.choices:
      close = difflib.get_close_matches(str(value), [choice for choice in self.choices if isinstance(choice, str)], 1)
      return f'is not one of {", ".join(map(repr, self.choices))}' + (f'; perhaps {close[0]!r}' if close else '')
    if self._is_number() and not self.choices and not _within(value, self._bounds()):
      return f'must {_describe_bounds(self._bounds())}'
    if self.allowed.get('regex'):
      try:
        re.compile(value)
      except re.error as e:
        return f'is not a regular expression ({e}); fix or empty it'
    return ''


T = TypeVar('T', bound=Options)


@functools.cache
def fields(cls: type[Options]) -> list[Field]:
  """Returns the `Field`s of a class of options, in their order.

  Raises:
    TypeError: the class is not a dataclass, which would drop its options, or has a field with a default but no doc.
  """
  for kind in cls.__mro__:
    if lost := [name for name, value in vars(kind).items() if isinstance(value, dataclasses.Field)]:
      raise TypeError(
        f'{kind.__module__}.{kind.__name__}: {lost[0]} is an option of a class that is no dataclass; write '
        '@dataclasses.dataclass(frozen=True) above the class'
      )
  if plain := [f.name for f in dataclasses.fields(cls) if not f.metadata and f.default is not dataclasses.MISSING]:
    raise TypeError(f'{cls.__module__}.{cls.__name__}: {plain[0]} has a default; give it as option(default, meaning)')
  return [
    Field(
      field.name,
      field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
      field.metadata['doc'],
      {name: value for name, value in field.metadata.items() if name != 'doc'},
    )
    for field in dataclasses.fields(cls)
    if field.metadata
  ]


def create(cls: type[T], section: str, values: Mapping[str, Any], **others: Any) -> T:
  """Returns a `cls` of the `values` of `config.<section>`, or defaults; `others` are fields that are not options.

  Raises:
    UserError: a value is not allowed; the line begins with 'config.SECTION.FIELD=VALUE'.
  """
  given = {field.name: values.get(field.name, field.default) for field in fields(cls)}  # type: ignore[arg-type]
  given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
  try:
    # Before the class itself does: some put a name of their own in front of the message.
    for field in fields(cls):  # type: ignore[arg-type]
      field.check(given[field.name])
    return cls(**given, **others)
  except ValueError as e:
    raise UserError(f'config.{section}{"." if section else ""}{e}') from None


def _within(value, bounds):
  return (
    ('least' not in bounds or value >= bounds['least'])
    and ('above' not in bounds or value > bounds['above'])
    and ('most' not in bounds or value <= bounds['most'])
    and ('below' not in bounds or value < bounds['below'])
  )


def _describe_bounds(bounds):
  """Completes 'it must ...'."""
  if bounds == {'above': 0}:
    return 'be positive'
  if bounds == {'least': 0}:
    return 'not be negative'
  if bounds.keys() == {'least'}:
    return f'be at least {bounds["least"]}'
  return f'lie {_short_bounds(bounds)}'


def _short_bounds(bounds):
  """As '> 0' or 'in [0, 1)'."""
  if not bounds.keys() & {'most', 'below'}:
    return f'>= {bounds["least"]}' if 'least' in bounds else f'> {bounds["above"]}'
  low = f'[{bounds["least"]}' if 'least' in bounds else f'({bounds.get("above", -math.inf)}'
  high = f'{bounds["most"]}]' if 'most' in bounds else f'{bounds.get("below", math.inf)})'
  return f'in {low}, {high}'


def _same_kind(value, expected):
  if isinstance(expected, bool) or isinstance(value, bool):
    return isinstance(expected, bool) and isinstance(value, bool)
  if isinstance(expected, float):
    return isinstance(value, (int, float))
  if isinstance(expected, tuple):
    return isinstance(value, (tuple, list))
  return isinstance(value, type(expected))
