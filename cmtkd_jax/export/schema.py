"""Kinds of values in JSON, and what an exported file may say of its network: `ABOUT`.

A value is checked before a file is used and before it is written. `check` of a kind raises `InvalidError`, as do the
checks of operations (`operations`, `graph_check`) and the parser (`strict_json`); the reader or writer adds the name of
the file.
"""

import dataclasses
import math
import reprlib
from typing import Any

from cmtkd_jax.data.sources import base

LONGEST_SIDE = 2**14  # of a feature map, and of images before they are cropped
MOST_VALUES = 2**28  # of one feature map of one image


class InvalidError(ValueError):
  """A value is not what the schema asks for. The message is one line that names the place and the value."""


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


def display_name(value):
  """`value` in short, in printable characters."""
  text = _brief.repr(value).encode('ascii', 'backslashreplace').decode()
  return text if len(text) <= 100 else f'{text[:97]}...'


def newer(found, kind, readable):
  """Returns what to say of a file in a newer version of its format than this program reads; '' where it is not.

  Args:
    found: what its JSON holds, anything at all.
    kind: entry 'format' of such a file.
    readable: the newest version that this program reads.
  """
  version = found.get('version') if isinstance(found, dict) and found.get('format') == kind else None
  if type(version) is not int or version <= readable:
    return ''
  return (
    f'has version {min(version, 10**9)} of the format, but this cmtkd_jax reads versions up to {readable}; '
    'update cmtkd_jax'
  )


@dataclasses.dataclass(frozen=True)
class Integer:
  """An integer from `low` to `high`, or one of `also`; true and false are not integers."""

  low: int
  high: int
  also: tuple[int, ...] = ()

  def check(self, value, where):
    if type(value) is not int or not (self.low <= value <= self.high or value in self.also):
      allowed = ' or '.join([f'{self.low}..{self.high}', *map(str, self.also)])
      raise InvalidError(f'{where} is {display_name(value)}, not an integer in {allowed}')


@dataclasses.dataclass(frozen=True)
class Text:
  """Up to `longest` characters that can be shown: no control characters, line breaks or lone surrogates."""

  longest: int = base.LONGEST_NAME

  def check(self, value, where):
    if not isinstance(value, str) or not 0 < len(value) <= self.longest:
      raise InvalidError(f'{where} is {display_name(value)}, not a text of 1..{self.longest} characters')
    if character := base.unprintable(value):
      raise InvalidError(f'{where} is {display_name(value)}, which has the control character {character!a}')


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of some texts."""

  values: tuple[str, ...]

  def check(self, value, where):
    if not isinstance(value, str) or value not in self.values:
      raise InvalidError(f'{where} is {display_name(value)}, not one of {", ".join(self.values)}')


@dataclasses.dataclass(frozen=True)
class Items:
  """A list of `fewest` to `most` values of one kind."""

  kind: Any
  fewest: int
  most: int

  def check(self, value, where):
    if not isinstance(value, list) or not self.fewest <= len(value) <= self.most:
      raise InvalidError(f'{where} is {display_name(value)}, not a list of {self.fewest}..{self.most} values')
    for i, item in enumerate(value):
      self.kind.check(item, f'{where}[{i}]')


@dataclasses.dataclass(frozen=True)
class Record:
  """An object with all of the fields `required`, some of `optional`, and no others."""

  required: dict[str, Any]
  optional: dict[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, value, where):
    if not isinstance(value, dict):
      raise InvalidError(f'{where} is {display_name(value)}, not an object')
    kinds = self.required | self.optional
    for name in value:
      if name not in kinds:
        raise InvalidError(f'{where} has the unknown field {display_name(name)}')
    for name in self.required:
      if name not in value:
        raise InvalidError(f'{where} has no field {name}')
    for name, item in value.items():
      kinds[name].check(item, f'{where}.{name}')


@dataclasses.dataclass(frozen=True)
class Mapping:
  """An object with any names; its values are of `kind`, or anything that `strict_json.parse` lets through."""

  kind: Any = None

  def check(self, value, where):
    if not isinstance(value, dict):
      raise InvalidError(f'{where} is {display_name(value)}, not an object')
    if self.kind is not None:
      for name, item in value.items():
        Text().check(name, f'a name in {where}')
        self.kind.check(item, f'{where}.{name}')


@dataclasses.dataclass(frozen=True)
class Digest:
  """A SHA-256 as 64 hexadecimal digits."""

  def check(self, value, where):
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set('0123456789abcdef'):
      raise InvalidError(f'{where} is {display_name(value)}, not a SHA-256')


IMAGE_SHAPE = Items(Integer(1, LONGEST_SIDE), 3, 3)
CLASSES = Items(Text(), 1, 2**20)
ABOUT = Record(
  {'classes': CLASSES, 'image_shape': IMAGE_SHAPE, 'resize': Integer(0, LONGEST_SIDE)},
  {
    'network': Text(),
    'step': Integer(0, 2**53),
    'bits': Items(Mapping(), 0, 2**14),
    'metrics': Mapping(),
    'config': Mapping(),
    'versions': Mapping(),
  },
)


def check_about(about, image_shape=None, logits=None):
  """Raises `InvalidError` unless `about`, as JSON has it, says what readers need, and fits the network.

  Args:
    about: dict, see `ABOUT`.
    image_shape: (H, W, C) that the network takes; None where it is not known.
    logits: how many it returns; None where it is not known.
  """
  ABOUT.check(about, 'about')
  if math.prod(about['image_shape']) > MOST_VALUES:
    raise InvalidError(f'about.image_shape is {about["image_shape"]}, more than {MOST_VALUES} values')
  if image_shape is not None and tuple(about['image_shape']) != tuple(image_shape):
    raise InvalidError(f'about.image_shape is {about["image_shape"]}, but the network takes {list(image_shape)}')
  if logits is not None and len(about['classes']) != logits:
    raise InvalidError(f'about.classes has {len(about["classes"])} names, but the network returns {logits} logits')
