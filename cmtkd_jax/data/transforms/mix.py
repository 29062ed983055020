"""mixup and CutMix: each image of a batch is mixed with the one before it, on the device, after standardizing."""

import jax
import jax.numpy as jnp

from cmtkd_jax.data.transforms import erasing


def mix(key: jax.Array, images: jax.Array, mixup_alpha: float, cutmix_alpha: float) -> tuple[jax.Array, jax.Array]:
  """Mixes image i with image i - 1 (the first with the last), and says how much of its own each keeps.

  With s ~ Beta(a, a), one number per batch:

    mixup    s x_i + (1 - s) x_(i-1)                                    Zhang et al., mixup, ICLR 2018
    CutMix   x_i, but for a box of sides sqrt(1 - s) H, sqrt(1 - s) W    Yun et al., CutMix, ICCV 2019
             around any pixel, which is that of x_(i-1)

  Sides are rounded down, what lies outside the image is cut off, and the share is that of the pixels that are left.
  With both alphas each batch takes either with probability 1/2, as in timm.

  Args:
    key: jax random key.
    images: float32[..., B, H, W, C]; leading axes, as of several views, are mixed alike.
    mixup_alpha: a of mixup, >= 0; 0 for none.
    cutmix_alpha: a of CutMix, >= 0; 0 for none.

  Returns:
    (images, share): float32, shape of `images`; float32 scalar in [0, 1], the weight of the label of image i, where
    that of image i - 1 has the rest.
  """
  if not (mixup_alpha or cutmix_alpha):
    return images, jnp.ones((), jnp.float32)
  height, width = images.shape[-3:-1]
  which_key, share_key, row_key, column_key = jax.random.split(key, 4)
  cuts = jax.random.bernoulli(which_key, (0.5 if mixup_alpha else 1.0) if cutmix_alpha else 0.0)
  alpha = jnp.where(cuts, jnp.float32(cutmix_alpha), jnp.float32(mixup_alpha))
  share = jax.random.beta(share_key, alpha, alpha)
  side = jnp.sqrt(1 - share)
  top, bottom = erasing.around(jax.random.randint(row_key, (), 0, height), jnp.int32(side * height))
  left, right = erasing.around(jax.random.randint(column_key, (), 0, width), jnp.int32(side * width))
  outside = ~erasing.in_box(top, left, bottom, right, height, width)
  own = jnp.where(cuts, outside.astype(jnp.float32), share)
  # Of the same number of dimensions as the images: ranks are not promoted silently.
  weight = jnp.expand_dims(own[..., None], tuple(range(images.ndim - 3)))
  mixed = weight * images + (1 - weight) * jnp.roll(images, 1, axis=-4)
  return mixed, jnp.where(cuts, outside.mean(dtype=jnp.float32), share)
