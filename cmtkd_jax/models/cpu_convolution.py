"""Forms of a convolution and its gradients that run faster on a CPU.

XLA's CPU backend is slow in a few cases: kernels that are larger than the map, few features, strided 1x1 kernels,
gradients of weights whose operands do not fit into the cache, gradients of small maps with many features, gradients of
large maps with few channels and a stride. Each has an equal form in terms of operations that are fast. The forms sum in
another order: sums of levels are exact either way, others agree to rounding.

Shapes: x [B, H, W, C], kernel [k, k, C, F], y and its gradient g [B, H', W', F].
"""

import jax
import jax.numpy as jnp

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_IN_CACHE = 2**19  # bytes of the operands of a weight gradient
_MOST_PARTS = 8  # of a batch, where each is an operation of its own


def forward(x, kernel, *, plain, stride, padding, sums=None):
  """Returns y [B, H', W', F] of type `sums`, by default that of x; `plain(x, kernel)` is XLA's own convolution."""
  size, (channels, features) = kernel.shape[0], kernel.shape[2:]
  if size == 1 and padding == 0:
    return jnp.matmul(x[:, ::stride, ::stride], kernel[0, 0], preferred_element_type=sums)
  if size > min(x.shape[1:3]):
    columns = jnp.concatenate(shifted(x, size, stride, padding), axis=-1)
    return jnp.matmul(columns, kernel.reshape(-1, features), preferred_element_type=sums)
  count = 4 if channels + features <= 20 else 2
  width = x.shape[2] + 2 * padding - size + 1
  if stride == 1 and features <= 16 and width % count == 0 and size + count - 1 <= x.shape[2]:
    return _neighbors_together(x, kernel, padding, count, sums)
  return plain(x, kernel)


def shifted(x, size, stride, padding):
  """What each position of the kernel is multiplied with: size^2 arrays [B, H', W', C], row by row."""
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  height, width = (side - size + 1 for side in x.shape[1:3])
  return [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]


def _neighbors_together(x, kernel, padding, count, sums=None):
  """Stride 1, where `count` neighbors of a row are features of one position: a wider window, zeros in the kernel."""
  size, _, channels, features = kernel.shape
  pad = lambda i: jnp.pad(kernel, ((0, 0), (i, count - 1 - i), (0, 0), (0, 0)))
  wide = jnp.stack([pad(i) for i in range(count)], axis=3).reshape(size, size + count - 1, channels, count * features)
  y = jax.lax.conv_general_dilated(
    x,
    wide,
    (1, count),
    ((padding, padding), (padding, padding)),
    dimension_numbers=DIMENSIONS,
    preferred_element_type=sums,
  )
  return y.reshape(*y.shape[:2], -1, features)


def gradient_of_x(x, kernel, g, *, plain, stride, padding):
  """Returns the gradient of x [B, H, W, C], in its type; `plain(x, kernel, g)` is XLA's own."""
  size, _, channels, features = kernel.shape
  if size == 1 or features >= 256 or size > min(g.shape[1:3]):
    columns = jnp.matmul(g, kernel.reshape(-1, features).T).reshape(*g.shape[:3], size, size, channels)
    return added(columns, x.shape[1:3], stride, padding)
  if stride == 1 and channels <= 16 and padding < size:
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    unchanged = lambda *_: plain(x, kernel, g)
    return forward(g, flipped, plain=unchanged, stride=1, padding=size - 1 - padding)
  if 1 < stride <= size and 8 < channels <= 16:
    return _phases(kernel, g, x.shape[1:3], stride, padding)
  return plain(x, kernel, g)


def _phases(kernel, g, shape, stride, padding):
  """The gradient of x by phase r = 0..s-1 of its rows and columns: dx[s q + r] = sum_m g[q + m] kernel[r + p - s m].

  The s columns of one q are features of one position. The rows of each r are a convolution.
  """
  size, _, channels, features = kernel.shape
  height, width = (-(-side // stride) for side in shape)  # of q
  first = lambda r: -((size - 1 - r - padding) // stride)  # m
  last = lambda r: (r + padding) // stride
  start, end = first(0), last(stride - 1)
  # Index r + p - s m rises by one as r rises, and from r = s - 1 to r = 0 of the next smaller m: a reshape is enough.
  zeros = stride * end - padding, stride - 1 + padding - stride * start - (size - 1)
  wide = jnp.pad(kernel, ((0, 0), zeros, (0, 0), (0, 0))).reshape(size, -1, stride, channels, features)
  wide = wide.transpose(0, 1, 4, 2, 3).reshape(size, -1, features, stride * channels)
  rows = [
    jax.lax.conv_general_dilated(
      g,
      jnp.flip(wide[(r + padding) % stride :: stride], (0, 1)),
      (1, 1),
      ((-first(r), height + last(r) - g.shape[1]), (-start, width + end - g.shape[2])),
      dimension_numbers=DIMENSIONS,
    )
    for r in range(stride)
  ]
  return jnp.stack(rows, 2).reshape(-1, height * stride, width * stride, channels)[:, : shape[0], : shape[1]]


def added(columns, shape, stride, padding):
  """The adjoint of `shifted`: [B, H', W', k, k, C] -> [B, H, W, C], where `shape` is (H, W)."""
  _, height, width, size = columns.shape[:4]
  zero = jnp.zeros((), columns.dtype)
  rest = lambda side, count, first: side + 2 * padding - first - (count - 1) * stride - 1
  total = sum(
    jax.lax.pad(
      columns[:, :, :, i, j],
      zero,
      (
        (0, 0, 0),
        (i, rest(shape[0], height, i), stride - 1),
        (j, rest(shape[1], width, j), stride - 1),
        (0, 0, 0),
      ),
    )
    for i in range(size)
    for j in range(size)
  )
  return total[:, padding : padding + shape[0], padding : padding + shape[1]]


def gradient_of_kernel(x, kernel, g, *, plain, stride, padding):
  """Returns the gradient of the kernel [k, k, C, F], in its type; `plain(x, kernel, g)` is XLA's own."""
  if kernel.shape[0] == 1 and padding == 0:
    channels, features = kernel.shape[2:]
    return (x[:, ::stride, ::stride].reshape(-1, channels).T @ g.reshape(-1, features))[None, None]
  operands = x.nbytes + g.nbytes
  if stride == 1 and padding < kernel.shape[0] and max(kernel.shape[2:]) < 32:
    parts = _parts(x.shape[0], operands // _IN_CACHE)
    if parts > 1 and operands // parts <= 4 * _IN_CACHE:
      return _rows_by_columns(x, kernel.shape, g, padding, parts)
  parts = _parts(x.shape[0], min(_MOST_PARTS, operands // _IN_CACHE, operands // kernel.nbytes))
  # Row r of the batch goes to part r % parts, so that no row changes its device.
  part = lambda array, i: array.reshape(-1, parts, *array.shape[1:])[:, i]
  return sum(plain(part(x, i), kernel, part(g, i)) for i in range(parts))


def _parts(batch, most):
  """Into how many equal parts a batch is divided: at most `most`, and at least one."""
  return max(count for count in range(1, max(most, 1) + 1) if batch % count == 0)


def _rows_by_columns(x, shape, g, padding, parts):
  """The gradient of the kernel, stride 1: rows of x, shifted, times columns of g, shifted, over parts of the batch.

  dkernel[i, j] = sum_hv x[h + i - p, v] g[h, v - j + p], so k shifts of both give k^2 products at once.
  """
  size, _, channels, features = shape
  by_part = lambda array: array.reshape(-1, parts, *array.shape[1:])  # as in `gradient_of_kernel`

  def add(i, total):
    part_x, part_g = (jax.lax.dynamic_index_in_dim(by_part(array), i, 1, keepdims=False) for array in (x, g))
    part_x = jnp.pad(part_x, ((0, 0), (padding, padding), (0, 0), (0, 0)))
    part_g = jnp.pad(part_g, ((0, 0), (0, 0), (size - 1 - padding,) * 2, (0, 0)))
    rows = jnp.concatenate([part_x[:, j : j + g.shape[1]] for j in range(size)], -1)
    columns = jnp.concatenate([part_g[:, :, j : j + x.shape[2]] for j in range(size)], -1)
    rows, columns = rows.reshape(-1, size * channels), columns.reshape(-1, size * features)
    return total + jnp.matmul(rows.T, columns, preferred_element_type=jnp.float32)

  total = jax.lax.fori_loop(0, parts, add, jnp.zeros((size * channels, size * features)))
  total = total.reshape(size, channels, size, features).transpose(0, 2, 1, 3)
  return jnp.flip(total, 1).astype(x.dtype)
