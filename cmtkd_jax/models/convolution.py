"""The 2-D convolution of every layer, and on a CPU the forms of it that run faster there.

XLA's CPU backend is slow in a few cases: kernels that are larger than the map, few features, strided 1x1 kernels,
gradients of weights whose operands do not fit into the cache, gradients of small maps with many features, one filter a
channel (depthwise). Each has an equal form in terms of operations that are fast. Which form is taken is decided when a
program is lowered, so that programs for TPU and GPU hold the convolution alone. Both are traced once for all layers of
the same shapes. The forms sum in another order: sums of levels are exact either way, others agree to rounding.

Shapes: x [B, H, W, C], kernel [k, k, C / groups, F], y and its gradient g [B, H', W', F].
"""

import functools

import jax
import jax.numpy as jnp

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_IN_CACHE = 2**19  # bytes of the operands of a weight gradient
_MOST_PARTS = 8  # of a batch


@functools.partial(jax.jit, static_argnames=('stride', 'padding', 'preferred_element_type', 'groups'))
def convolve(x, kernel, stride, padding, preferred_element_type=None, groups=1):
  """Cross-correlation with zero padding: y[h, w] = sum_ij x[s h + i - p, s w + j - p] kernel[i, j].

  Args:
    x: [B, H, W, C]; kernel: [k, k, C / groups, F], of the same type.
    stride, padding: s and p, >= 1 and >= 0.
    preferred_element_type: of the sums and of the result; None for that of x.
    groups: parts of the channels and, in the same order, of the features: each feature sees its own part alone.

  Returns:
    [B, (H + 2 p - k) // s + 1, .., F].
  """
  return _convolve(x, kernel, stride, padding, preferred_element_type, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(x, kernel, stride, padding, preferred_element_type, groups):
  plain = functools.partial(_plain(stride, padding, groups), preferred_element_type=preferred_element_type)
  forms = dict(stride=stride, padding=padding, groups=groups)
  on_cpu = functools.partial(_forward, plain=plain, sums=preferred_element_type, **forms)
  return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _plain(stride, padding, groups):
  """The convolution as XLA has it, a function (x, kernel)."""
  return functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=_DIMENSIONS,
    feature_group_count=groups,
  )


def _backward(stride, padding, preferred_element_type, groups, operands, g):
  x, kernel = operands
  convolution = _plain(stride, padding, groups)
  of_x = lambda x, kernel, g: jax.vjp(lambda x: convolution(x, kernel), x)[1](g)[0]
  of_kernel = lambda x, kernel, g: jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](g)[0]
  args = (x, kernel, g.astype(x.dtype))
  forms = dict(stride=stride, padding=padding, groups=groups)
  return (
    jax.lax.platform_dependent(*args, cpu=functools.partial(_gradient_of_x, plain=of_x, **forms), default=of_x),
    jax.lax.platform_dependent(
      *args, cpu=functools.partial(_gradient_of_kernel, plain=of_kernel, **forms), default=of_kernel
    ),
  )


_convolve.defvjp(lambda x, kernel, *settings: (_convolve(x, kernel, *settings), (x, kernel)), _backward)


def _forward(x, kernel, *, plain, stride, padding, sums=None, groups=1):
  size, (channels, features) = kernel.shape[0], kernel.shape[2:]
  if groups > 1:
    if not _is_depthwise(kernel, groups):
      return plain(x, kernel)
    views, weights = _shifted(x, size, stride, padding), kernel.reshape(-1, 1, 1, 1, features).astype(jnp.float32)
    products = (view.astype(jnp.float32) * weight for view, weight in zip(views, weights, strict=True))
    return sum(products).astype(sums or x.dtype)
  if size == 1 and padding == 0:
    return jnp.matmul(x[:, ::stride, ::stride], kernel[0, 0], preferred_element_type=sums)
  if size > min(x.shape[1:3]):
    columns = jnp.concatenate(_shifted(x, size, stride, padding), axis=-1)
    return jnp.matmul(columns, kernel.reshape(-1, features), preferred_element_type=sums)
  count = 4 if channels + features <= 20 else 2
  width = x.shape[2] + 2 * padding - size + 1
  if stride == 1 and features <= 16 and width % count == 0 and size + count - 1 <= x.shape[2]:
    return _neighbors_together(x, kernel, padding, count, sums)
  return plain(x, kernel)


def _is_depthwise(kernel, groups):
  """Whether every feature sees one channel, its own."""
  return kernel.shape[2:] == (1, groups)


def _shifted(x, size, stride, padding):
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
    dimension_numbers=_DIMENSIONS,
    preferred_element_type=sums,
  )
  return y.reshape(*y.shape[:2], -1, features)


def _gradient_of_x(x, kernel, g, *, plain, stride, padding, groups):
  size, _, channels, features = kernel.shape
  if groups > 1:
    if not _is_depthwise(kernel, groups):
      return plain(x, kernel, g)
    columns = g[:, :, :, None, None].astype(jnp.float32) * kernel[None, None, None, :, :, 0].astype(jnp.float32)
    return _added(columns, x.shape[1:3], stride, padding).astype(x.dtype)
  if size == 1 or features >= 256 or size > min(g.shape[1:3]):
    columns = jnp.matmul(g, kernel.reshape(-1, features).T).reshape(*g.shape[:3], size, size, channels)
    return _added(columns, x.shape[1:3], stride, padding)
  if stride == 1 and channels <= 16 and padding < size:
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    unchanged = lambda *_: plain(x, kernel, g)
    return _forward(g, flipped, plain=unchanged, stride=1, padding=size - 1 - padding)
  return plain(x, kernel, g)


def _added(columns, shape, stride, padding):
  """The adjoint of `_shifted`: [B, H', W', k, k, C] -> [B, H, W, C], where `shape` is (H, W)."""
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


def _gradient_of_kernel(x, kernel, g, *, plain, stride, padding, groups):
  if groups > 1:
    if not _is_depthwise(kernel, groups):
      return plain(x, kernel, g)
    return _sum_of_products(x, g, kernel.shape[0], stride, padding).reshape(kernel.shape).astype(x.dtype)
  if kernel.shape[0] == 1 and padding == 0:
    channels, features = kernel.shape[2:]
    return (x[:, ::stride, ::stride].reshape(-1, channels).T @ g.reshape(-1, features))[None, None]
  operands = x.nbytes + g.nbytes
  most = min(_MOST_PARTS, operands // _IN_CACHE, operands // kernel.nbytes)
  parts = next((count for count in (8, 4, 2) if count <= most and x.shape[0] % count == 0), 1)
  # Row r of the batch goes to part r % parts, so that no row changes its device.
  part = lambda array, i: array.reshape(-1, parts, *array.shape[1:])[:, i]
  return sum(plain(part(x, i), kernel, part(g, i)) for i in range(parts))


def _sum_of_products(x, g, size, stride, padding):
  """[size^2, C]: g times what `_shifted` gives, summed image by image, so that the products stay in the cache."""

  def add(total, image):
    x, g = (array.astype(jnp.float32) for array in image)
    products = [view[0] * g for view in _shifted(x[None], size, stride, padding)]
    return total + jnp.stack([product.sum((0, 1)) for product in products]), None

  return jax.lax.scan(add, jnp.zeros((size**2, x.shape[-1])), (x, g))[0]
