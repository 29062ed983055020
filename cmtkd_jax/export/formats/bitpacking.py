"""Integer codes of 1 to 8 bits in bytes, without gaps."""

import jax.numpy as jnp
import numpy as np


def pack(codes, bits):
  """Returns uint8 [ceil(n * bits / 8)]: code i, of n in row-major order, is bits i * bits to (i + 1) * bits - 1.

  The lowest bit comes first, in the bytes and in the codes; what is left of the last byte is 0.

  Args:
    codes: uint8, any shape, each below 2^bits.
    bits: 1..8.

  Raises:
    ValueError: a code does not fit.
  """
  if codes.size and codes.max() >> bits:
    raise ValueError(f'code {codes.max()} does not fit into {bits} bits')
  single = np.unpackbits(codes.astype(np.uint8).reshape(-1, 1), axis=1, count=bits, bitorder='little')
  return np.packbits(single.reshape(-1), bitorder='little')


def size(count, bits):
  """Returns how many bytes `count` codes take."""
  return -(-count * bits // 8)


def unpack(data, bits, shape):
  """Returns the codes, uint8 of `shape`, of which `pack` made `data`.

  Raises:
    ValueError: `data` has another length.
  """
  count = int(np.prod(shape))
  if data.dtype != np.uint8 or data.shape != (size(count, bits),):
    raise ValueError(f'{count} codes of {bits} bits take {size(count, bits)} bytes, not {data.dtype}{list(data.shape)}')
  single = np.unpackbits(data, count=count * bits, bitorder='little').reshape(count, bits)
  return np.packbits(single, axis=1, bitorder='little').reshape(shape)


def unpack_by_shifts(data, bits, shape):
  """`unpack` as a function of jax arrays: int32 of `shape`."""
  count = int(np.prod(shape))
  single = (data[:, None] >> np.arange(8, dtype=np.uint8)[None]) & np.uint8(1)
  single = single.reshape(-1)[: count * bits].reshape(count, bits).astype(jnp.int32)
  return jnp.sum(single << np.arange(bits, dtype=np.int32)[None], axis=1).reshape(shape)
