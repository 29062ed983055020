"""Reads serialized `tf.train.Example`s without TensorFlow: bytes and whole numbers, every bound checked.

Wire format: a message is a sequence of fields (key, value); key = number << 3 | kind; kind 0 is a varint, 2 a length
and so many bytes. Reference: protobuf.dev/programming-guides/encoding; messages: tensorflow/core/example/*.proto.
"""

from collections.abc import Iterator
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def parse(data: bytes, names: tuple[str, ...]) -> dict[str, list]:
  """Returns those of the features `names` that exist, as lists of bytes or of int.

  Example {Features features = 1}; Features {map<string, Feature> feature = 1}; Feature {oneof: BytesList = 1,
  FloatList = 2, Int64List = 3}; each list {repeated value = 1}. As in protobuf, the later of two equal keys counts.

  Raises:
    ValueError: the bytes are no Example, or a wanted feature holds floats.
  """
  wanted = {name.encode(): name for name in names}
  features = {}
  for _, example in _messages(data, 1):
    for _, entry in _messages(example, 1):
      key, feature = b'', memoryview(b'')
      for number, kind, value in fields(entry):
        if kind == _BYTES and number == 1:
          key = bytes(value)
        elif kind == _BYTES and number == 2:
          feature = value
      if key in wanted:
        features[wanted[key]] = _values(feature)
  return features


def _values(feature):
  values = []
  for number, content in _messages(feature, 1, 2, 3):
    if number == 1:
      values = [bytes(value) for _, value in _messages(content, 1)]
    elif number == 3:
      values = list(_int64s(content))
    else:
      raise ValueError('a feature of floats')
  return values


def _int64s(content) -> Iterator[int]:
  """Int64List, packed (as everybody writes it) or not."""
  for number, kind, value in fields(content):
    if number == 1 and kind == _VARINT:
      yield _signed(value)
    elif number == 1 and kind == _BYTES:
      at = 0
      while at < len(value):
        one, at = _varint(value, at)
        yield _signed(one)


def _messages(data, *numbers):
  """(number, content) of the fields of these numbers that are bytes, strings or messages."""
  return ((number, value) for number, kind, value in fields(data) if kind == _BYTES and number in numbers)


def fields(data) -> Iterator[tuple[int, int, Any]]:
  """(number, kind, value) of every field of a message."""
  data, at = memoryview(data), 0
  while at < len(data):
    key, at = _varint(data, at)
    number, kind = key >> 3, key & 7
    if kind == _VARINT:
      value, at = _varint(data, at)
    else:
      if kind == _BYTES:
        size, at = _varint(data, at)
      elif kind in _FIXED:
        size = _FIXED[kind]
      else:
        raise ValueError(f'a field of unknown kind {kind}')
      if size > len(data) - at:
        raise ValueError(f'a field of {size} bytes where {len(data) - at} are left')
      value, at = data[at : at + size], at + size
    yield number, kind, value


def _varint(data, at) -> tuple[int, int]:
  """(value, where it ends): seven bits a byte, the lowest first; the last byte has its top bit clear."""
  value = 0
  for shift in range(0, 70, 7):
    if at == len(data):
      break
    byte = data[at]
    value, at = value | (byte & 127) << shift, at + 1
    if byte < 128:
      return value & 2**64 - 1, at
  raise ValueError('a number that does not end')


def _signed(value: int) -> int:
  return value - 2**64 if value >= 2**63 else value
