"""Frozen dataclasses whose fields users set: what each may be, checked where the object is made."""

import dataclasses


def check(options):
  """Raises `ValueError`, naming field and value, unless the fields of the dataclass `options` can be honored.

  Its class may have `choices`, `{field: allowed values}`, and `positive`, names of fields; other numbers are >= 0.
  """
  for field, allowed in getattr(options, 'choices', {}).items():
    if getattr(options, field) not in allowed:
      raise ValueError(f'{field}={getattr(options, field)!r} is not one of {", ".join(map(repr, allowed))}')
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      positive = field.name in getattr(options, 'positive', ())
      if not (value > 0 if positive else value >= 0):
        raise ValueError(f'{field.name}={value!r} must {"be positive" if positive else "not be negative"}')


def defaults(cls, exclude=()):
  """Returns `{field: default}` of a dataclass, without those in `exclude`."""
  return {field.name: field.default for field in dataclasses.fields(cls) if field.name not in exclude}
