"""Augmentations that are off by default: TrivialAugment against Pillow, cutout, random erasing, mixup and CutMix."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cmtkd_jax.data.transforms import augment, erasing, mix, trivial_augment
from cmtkd_jax.errors import UserError
from tests.batches import load, take

ALL = dict(trivial_augment=True, cutout=3, random_erasing=0.5)


def photograph(height, width, channels):
  """Blobs in few colors, so that histograms have gaps and ends: uint8[H, W, C]."""
  coarse = np.random.default_rng(height).integers(20, 220, (4, 5, 3), dtype=np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(image)[..., :channels]


# --- TrivialAugment.


ENHANCE = {
  'brightness': ImageEnhance.Brightness,
  'color': ImageEnhance.Color,
  'contrast': ImageEnhance.Contrast,
  'sharpness': ImageEnhance.Sharpness,
}


def with_pillow(image, name, level):
  """What torchvision's TrivialAugmentWide calls on a PIL image, at a signed level of -30..30."""
  strength = float(np.float32(0.99 * level / 30))
  affine = lambda *matrix: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
  if name in ENHANCE:
    return ENHANCE[name](image).enhance(1 + strength)
  return {
    'identity': lambda: image,
    'shear_x': lambda: affine(1, strength, 0, 0, 1, 0),
    'shear_y': lambda: affine(1, 0, 0, strength, 1, 0),
    'translate_x': lambda: affine(1, 0, -int(32 * level / 30), 0, 1, 0),
    'translate_y': lambda: affine(1, 0, 0, 0, 1, -int(32 * level / 30)),
    'rotate': lambda: image.rotate(4.5 * level, Image.Resampling.NEAREST),
    'posterize': lambda: ImageOps.posterize(image, 8 - round(abs(level) / 5)),
    'solarize': lambda: ImageOps.solarize(image, 255 - 8.5 * abs(level)),
    'autocontrast': lambda: ImageOps.autocontrast(image),
    'equalize': lambda: ImageOps.equalize(image),
  }[name]()


@pytest.mark.parametrize('shape', [(32, 32, 3), (24, 37, 1)])
def test_pixels_are_those_of_pillow(shape):
  """All operations at all levels; 1 level less is Pillow's floating point, just below a whole number."""
  image, levels = photograph(*shape), np.arange(-30, 31)
  stored = Image.fromarray(image if shape[-1] == 3 else image[..., 0])
  operations = np.repeat(np.arange(len(trivial_augment.OPERATIONS)), 61)
  signed = np.tile(levels, len(trivial_augment.OPERATIONS))
  found = jax.jit(trivial_augment.apply)(image[None].repeat(len(signed), 0), operations, abs(signed), signed < 0)
  assert found.dtype == np.uint8
  found = np.asarray(found).reshape(-1, 61, *shape).astype(int)
  for name, ours in zip(trivial_augment.OPERATIONS, found):
    theirs = np.stack([np.asarray(with_pillow(stored, name, level)).reshape(shape) for level in levels.tolist()])
    above = ours - theirs
    if name in (*ENHANCE, 'autocontrast'):
      assert above.min() >= 0 and above.max() <= 1 and above.mean() < 0.05, name
    else:
      np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_flat_or_thin_images_stay_as_they_are():
  """A channel of one level has no contrast to stretch, and two rows have no pixel inside to smooth."""
  image = np.full((4, 20, 20, 1), 77, np.uint8)
  operation = np.array(
    [trivial_augment.OPERATIONS.index(n) for n in ('autocontrast', 'equalize', 'contrast', 'sharpness')]
  )
  out = jax.jit(trivial_augment.apply)(image, operation, np.array([0, 3, 30, 30]), np.array([0, 1, 0, 1], bool))
  np.testing.assert_array_equal(out, image)
  thin = photograph(2, 20, 3)[None]
  assert trivial_augment._smoothed(thin) is thin


def test_draws_are_equally_likely():
  operation, level, negative = trivial_augment.draw(jax.random.key(0), 42_000)
  assert np.abs(np.bincount(operation, minlength=14) - 3000).max() < 5 * math.sqrt(3000)
  assert np.abs(np.bincount(level, minlength=31) - 42_000 / 31).max() < 5 * math.sqrt(42_000 / 31)
  assert abs(int(negative.sum()) - 21_000) < 5 * math.sqrt(10_500)
  assert np.abs(np.corrcoef([operation, level, negative]) - np.eye(3)).max() < 0.03


def test_crops_between_two_levels_are_rounded():
  """Resident images that are resized have fractions of levels; streamed ones are whole."""
  whole = photograph(12, 12, 3)[None].repeat(16, 0).astype(np.float32)
  apply = jax.jit(lambda images: trivial_augment.trivial_augment(jax.random.key(4), images))
  out = np.asarray(apply(whole + np.float32(0.3)))
  assert out.dtype == np.float32
  np.testing.assert_array_equal(out, apply(whole))
  np.testing.assert_array_equal(out, out.round())


# --- In the pipeline.


def test_recipes_without_them_keep_their_bits():
  image, key = photograph(12, 12, 3)[None].repeat(8, 0), jax.random.key(2)
  fields = dict(size=12, resize=0, pad=2, mean=(0.4,) * 3, std=(0.2,) * 3, raw=True)
  augment_fn, _ = augment.build('pad_crop_flip', **fields)
  plain = lambda key, image: augment.standardize(augment.pad_crop(key, image, 2, True), (0.4,) * 3, (0.2,) * 3)
  assert str(jax.make_jaxpr(augment_fn)(key, image)) == str(jax.make_jaxpr(plain)(key, image))
  off, _ = augment.build('pad_crop_flip', trivial_augment=False, cutout=0, random_erasing=0.0, **fields)
  assert str(jax.make_jaxpr(off)(key, image)) == str(jax.make_jaxpr(plain)(key, image))


@pytest.mark.integration
def test_the_same_streamed_or_kept_on_any_number_of_devices():
  fields = dict(name='generated:12x12x3:3:32', image_size=12, mean=(0.5,) * 3, std=(0.25,) * 3, mixup=1.0, cutmix=1.0)
  runs = []
  for on_device, devices in (('yes', 1), ('no', 8)):
    dataset = load(batch_size=16, devices=devices, on_device=on_device, augment='pad_crop_flip', **fields, **ALL)
    (batch,) = itertools.islice(dataset.train.batches(0), 1)
    assert batch['image'].dtype == np.uint8 and len(batch['image'].sharding.device_set) == devices

    @jax.jit
    def step(key, image, dataset=dataset):
      image = dataset.augment(key, image)
      return image, *dataset.mix(key, image)

    runs.append(jax.device_get(step(jax.random.key(5), batch['image'])))
  image, mixture, share = runs[0]
  for one, other in zip(*runs):
    np.testing.assert_allclose(one, other, atol=1e-6)
  assert image.dtype == np.float32 and (image == 0).any()
  assert 0 < share < 1 and (mixture != image).any()


def test_each_part_has_numbers_of_its_own():
  """Crops are those of the recipe without the other parts, whose keys are not the crops' either."""
  image = photograph(12, 12, 3)[None].repeat(64, 0)
  fields = dict(size=12, resize=0, pad=2, mean=(0.5,) * 3, std=(0.25,) * 3, raw=True)
  run = lambda **parts: np.asarray(
    jax.jit(augment.build('pad_crop_flip', **fields, **parts)[0])(jax.random.key(1), image)
  )
  plain, cut, erased = run(), run(cutout=4), run(random_erasing=1.0)
  for changed in (cut, erased):
    assert (changed != plain).any()
    np.testing.assert_allclose(np.where(changed == 0, plain, changed), plain, atol=1e-6)  # fused otherwise
  assert ((cut == 0) != (erased == 0)).any()


# --- Boxes that are erased.


def boxes(erased):
  """(top, left, bottom, right) of the box of each image that is erased, all of it. bool[B, H, W] -> ints."""
  found = []
  for mask in np.asarray(erased):
    y, x = np.nonzero(mask)
    box = (y.min(), x.min(), y.max() + 1, x.max() + 1) if len(y) else (0, 0, 0, 0)
    assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
    found.append(tuple(map(int, box)))
  return found


@pytest.mark.parametrize('side', [1, 4, 5, 7])
def test_cutout_is_a_square_around_any_pixel(side):
  out = jax.jit(erasing.cutout, static_argnums=2)(jax.random.key(0), np.ones((2000, 5, 7, 2), np.float32), side)
  allowed = set()
  for y in range(5):
    for x in range(7):
      top, left = y - side // 2, x - side // 2
      allowed.add((max(top, 0), max(left, 0), min(top + side, 5), min(left + side, 7)))
  assert set(boxes(out[..., 0] == 0)) == allowed
  np.testing.assert_array_equal(out[..., 0], out[..., 1])


def test_random_erasing_has_the_promised_boxes():
  image = np.ones((4000, 40, 50, 1), np.float32)
  out = np.asarray(jax.jit(erasing.random_erasing, static_argnums=2)(jax.random.key(0), image, 0.25))
  top, left, bottom, right = np.array(boxes(out[..., 0] == 0)).T
  changed = bottom > top
  assert abs(changed.sum() - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)
  h, w = (bottom - top)[changed], (right - left)[changed]
  area, ratio = h * w / 2000, h / w
  assert 0.018 <= area.min() < 0.024 and 0.3 < area.max() < 0.35  # sides are whole numbers
  assert 3 / 12 <= ratio.min() < 0.34 and 2.9 < ratio.max() <= 12 / 3
  assert 0.9 < np.exp(np.log(ratio).mean()) < 1.1
  assert top[changed].min() == left[changed].min() == 0 and bottom.max() == 40 and right.max() == 50


# --- Mixtures.


def mixed(images, mixup, cutmix, count):
  """(images, share) of `count` batches, stacked."""
  one = functools.partial(mix.mix, images=jnp.asarray(images), mixup_alpha=mixup, cutmix_alpha=cutmix)
  out, share = jax.jit(jax.vmap(lambda seed: one(jax.random.key(seed))))(jnp.arange(count))
  assert out.dtype == share.dtype == np.float32 and share.shape == (count,)
  assert (share >= 0).all() and (share <= 1).all()
  return np.asarray(out), np.asarray(share)


def test_mixup_is_its_formula():
  images = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
  out, share = mixed(images, 0.4, 0.0, 2000)
  s = share.reshape(-1, *[1] * images.ndim)
  np.testing.assert_allclose(out, s * images + (1 - s) * np.roll(images, 1, -4), atol=1e-6)
  assert abs(share.mean() - 0.5) < 0.04
  assert share.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.06)  # of Beta(a, a)


def test_cutmix_shows_a_box_of_the_image_before():
  """The same box in all images of a batch, and in two views of it."""
  images = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None, None], (2, 3, 6, 8, 1))
  out, share = mixed(images, 0.0, 1.0, 500)
  own = out == images
  np.testing.assert_array_equal(out, np.where(own, images, np.roll(images, 1, -4)))
  own = own.reshape(500, -1, 6, 8)
  assert (own == own[:, :1]).all()
  boxes(~own[:, 0])
  np.testing.assert_allclose(own[:, 0].mean((1, 2)), share, atol=1e-7)
  assert len(set(share.tolist())) > 10


def test_sides_of_cutmix():
  """Beta(a, a) of a large a is one half, whose box has 0.707 of both sides, rounded down and cut off at the border."""
  images = np.stack([np.zeros((20, 30, 1)), np.ones((20, 30, 1))]).astype(np.float32)
  out, _ = mixed(images, 0.0, 1e5, 200)
  top, left, bottom, right = np.array(boxes(out[:, 0, :, :, 0] == 1)).T
  h, w = bottom - top, right - left
  assert h.max() == 14 and w.max() == 21
  np.testing.assert_array_equal((h < 14)[w == 21], ((top == 0) | (bottom == 20))[w == 21] & (h < 14)[w == 21])
  assert h.min() == 7 and w.min() in (10, 11)  # half of it, around a pixel at the border


def test_both_take_turns_and_none_is_none():
  images = np.stack([np.zeros((4, 4, 1)), np.ones((4, 4, 1))]).astype(np.float32)
  out, _ = mixed(images, 1.0, 1.0, 1000)
  blended = ((out > 0) & (out < 1)).any((1, 2, 3, 4))
  assert abs(blended.sum() - 500) < 5 * math.sqrt(250)
  same, share = mix.mix(jax.random.key(0), images, 0.0, 0.0)
  assert same is images and share == 1


def test_data_sets_mix_what_was_augmented():
  fields = dict(name='generated:6x6x1:3:32', image_size=6, batch_size=8)
  assert load(**fields).mix is None
  dataset = load(**fields, mixup=0.2, cutmix=1.0)
  (batch,) = take(dataset.train, 0, 1)

  @jax.jit
  def step(key, batch):
    images = dataset.augment(key, batch)
    return images, *dataset.mix(key, images)

  images, out, share = step(jax.random.key(1), batch['image'])
  assert out.shape == images.shape and share.shape == () and (out != images).any()
  alphas = [load(**fields, **chosen).mix.keywords for chosen in ({'mixup': 0.2}, {'cutmix': 1.0})]
  assert alphas == [{'mixup_alpha': 0.2, 'cutmix_alpha': 0.0}, {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0}]


# --- Fields.


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'cutout': 9}, 'config.data.cutout=9 must be a whole number, from 0 (none) to config.data.image_size=8'),
    ({'cutout': -1}, 'config.data.cutout=-1 must not be negative'),
    ({'random_erasing': 1.5}, 'config.data.random_erasing=1.5 must lie in [0, 1]'),
    ({'mixup': -0.1}, 'config.data.mixup=-0.1 must not be negative'),
    ({'cutmix': math.nan}, 'config.data.cutmix=nan must be finite'),
    ({'trivial_augment': 1}, 'config.data.trivial_augment=1 is int; it must be True or False'),
    (
      {'trivial_augment': True, 'mean': (0.5,) * 2, 'std': (0.5,) * 2},
      'config.data.trivial_augment=True works for images of 1 or 3 channels, and config.data.mean has 2; set it to '
      'False',
    ),
  ],
)
def test_fields_that_do_not_fit(fields, words):
  with pytest.raises(UserError) as e:
    load(**fields)
  assert str(e.value) == words
