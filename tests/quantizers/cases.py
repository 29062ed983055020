"""What a quantizer's test file says about it, `CASES`, and what references are made of.

`test_quantizers.py` puts every quantizer under the common contract, and compares it with its cases.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cmtkd_jax import quantizers


class Case(NamedTuple):
  """The cases of `Weight` or `Activation` of one quantizer.

  reference: function (v, parameters, bits, g) -> (values, whether each is clear of thresholds, gradients by name, 'x'
    that of v), float64.
  parameters: function of bits -> learned and fitted values that put samples into every zone; None if there are none.
  masks: (options, parameters, gradients at 11 points around -1, 0 and 1), see `test_masks_beside_their_edges`.
  by_hand: (options, parameters, x, values), worked by hand.
  refused: (options, words of the error message).
  is_signed: codes begin at -2^(b-1) instead of 0.
  is_symmetric: 2^b - 1 levels, as many below 0 as above.
  options are a dict, and 'bits' is one of them.
  """

  reference: Callable
  parameters: Callable | None = None
  masks: tuple[tuple[dict, dict, list], ...] = ()
  by_hand: tuple[tuple[dict, dict, Any, Any], ...] = ()
  refused: tuple[tuple[dict, tuple[str, ...]], ...] = ()
  is_signed: bool = False
  is_symmetric: bool = False


def nearest(x, levels):
  """Returns the nearest level of each x, and whether the next one is clearly farther."""
  distance = np.sort(np.abs(x[..., None] - levels), -1)
  clear = distance[..., 1] - distance[..., 0] > 1e-5 * (levels[-1] - levels[0])
  return levels[np.abs(x[..., None] - levels).argmin(-1)], clear


def grid(bits, low=0.0, high=1.0):
  return np.linspace(low, high, 2**bits)


def everywhere(x):
  return np.ones(np.shape(x), bool)


def binary(scale):
  return lambda v, p, bits, g: (np.where(v >= 0, 1, -1) * scale(v), everywhere(v), {'x': g})


def files():
  """`{name: test file}` of the quantizers that have one of their own."""
  here = pathlib.Path(__file__).parent
  return {
    name: importlib.import_module(f'tests.quantizers.test_{name}')
    for name in quantizers.QUANTIZERS
    if (here / f'test_{name}.py').exists()
  }


def all_cases():
  """`{'pact-Activation': Case}` of all test files."""
  return {f'{name}-{role}': case for name, file in files().items() for role, case in getattr(file, 'CASES', {}).items()}
