"""Which record is read when: pure functions of seeds and positions, so that any step can be computed directly."""

import numpy as np

# The held-out slice must not move with the training seed, or runs could not be compared on it.
_MINIVAL_KEY = 20240229


def epoch_permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of one epoch.

  Args:
    num_examples: length of the permutation.
    seed: any integer (taken modulo 2**64).
    epoch: epoch number, from 0.

  Returns:
    int64[num_examples], a permutation of 0..num_examples-1.
  """
  bits = np.random.Philox(key=_key(seed, epoch))
  return np.random.Generator(bits).permutation(num_examples)


def record_rng(seed: int, position: int, record: int) -> np.random.Generator:
  """Returns the random numbers for one reading of one record.

  Args:
    seed: any integer (taken modulo 2**64).
    position: global position of the reading, step * batch_size + row.
    record: record number.

  Returns:
    A NumPy generator of its own; the last counter word keeps its numbers apart from the permutations'.
  """
  return np.random.Generator(np.random.Philox(key=_key(seed, record), counter=[0, 0, position, 1]))


def _key(seed, number):
  return np.array([seed % 2**64, number], np.uint64)  # a list with a number from 2^63 on would become floats


def split_minival(num_examples: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """Splits record numbers into a training part and a held-out part, the same for every seed.

  Args:
    num_examples: number of training records.
    fraction: share to hold out, 0 <= fraction < 1.

  Returns:
    (train, minival), both sorted int64 and disjoint; minival has round(fraction * num_examples) records.
  """
  held = round(fraction * num_examples)
  permutation = epoch_permutation(num_examples, _MINIVAL_KEY, 0)
  return np.sort(permutation[held:]), np.sort(permutation[:held])
