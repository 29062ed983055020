"""Forms of a depthwise convolution and its gradients, of one filter per channel, that run faster on a CPU.

Sums of shifted maps, in float32. They sum in another order than XLA's convolution: sums of levels are exact either way,
others agree to rounding.

Shapes: x [B, H, W, C], kernel [k, k, 1, C], y and its gradient g [B, H', W', C].
"""

import jax
import jax.numpy as jnp

from cmtkd_jax.models.cpu_convolution import shifted


def forward(x, kernel, *, plain, stride, padding, sums=None):
  """Returns y [B, H', W', C] of type `sums`, by default that of x; `plain` is not needed."""
  del plain
  weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[3]).astype(jnp.float32)
  views = shifted(x, kernel.shape[0], stride, padding)
  products = (view.astype(jnp.float32) * weight for view, weight in zip(views, weights, strict=True))
  return sum(products).astype(sums or x.dtype)


def gradient_of_x(x, kernel, g, *, plain, stride, padding):
  """Returns the gradient of x [B, H, W, C], in its type; `plain` is not needed.

  It is the convolution of g, with zeros between its positions, and the flipped kernel.
  """
  size = kernel.shape[0]
  around = lambda side, out: (size - 1 - padding, side + padding - 1 - (out - 1) * stride, stride - 1)
  edges = [around(*sides) for sides in zip(x.shape[1:3], g.shape[1:3], strict=True)]
  spread = jax.lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
  return forward(spread, jnp.flip(kernel, (0, 1)), plain=plain, stride=1, padding=0, sums=x.dtype)


def gradient_of_kernel(x, kernel, g, *, plain, stride, padding):
  """Returns the gradient of the kernel [k, k, 1, C], in its type; `plain` is not needed.

  Products are summed image by image, so that they stay in the cache.
  """
  del plain
  size = kernel.shape[0]

  def add(total, image):
    x, g = (array.astype(jnp.float32) for array in image)
    products = [view[0] * g for view in shifted(x[None], size, stride, padding)]
    return total + jnp.stack([product.sum((0, 1)) for product in products]), None

  total = jax.lax.scan(add, jnp.zeros((size**2, x.shape[-1])), (x, g))[0]
  return total.reshape(kernel.shape).astype(x.dtype)
