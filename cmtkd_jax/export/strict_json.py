"""JSON whose numbers are finite and whose names are unique in an object, which Python's `json` does not ask for."""

import json
import math

from cmtkd_jax.errors import one_line
from cmtkd_jax.export.schema import InvalidError, display_name


def parse(data):
  """Returns the value of the JSON text `data`, str or bytes.

  Raises:
    InvalidError: it is not JSON in this sense, or nested too deeply.
  """
  try:
    return json.loads(data, object_pairs_hook=_unique, parse_constant=_not_a_number, parse_float=_finite)
  except RecursionError:
    raise InvalidError('its JSON is nested too deeply') from None
  except InvalidError:
    raise
  except ValueError as e:  # no JSON, no UTF-8, an integer of thousands of digits
    raise InvalidError(f'its JSON cannot be read: {one_line(e)}') from None


def dump(value, indent=None):
  """Returns the JSON text of `value`.

  Raises:
    InvalidError: JSON cannot hold it, or `parse` would refuse it.
  """
  try:
    text = json.dumps(value, indent=indent, allow_nan=False)
  except (TypeError, ValueError, RecursionError) as e:
    raise InvalidError(f'JSON cannot hold it: {one_line(e)}') from None
  parse(text)
  return text


def _unique(pairs):
  found = {}
  for name, value in pairs:
    if name in found:
      raise InvalidError(f'its JSON has the name {display_name(name)} twice in one object')
    found[name] = value
  return found


def _not_a_number(text):
  raise InvalidError(f'its JSON has the number {text}, which is not finite')


def _finite(text):
  value = float(text)
  if not math.isfinite(value):
    raise InvalidError(f'its JSON has the number {display_name(text)}, which is not finite')
  return value
