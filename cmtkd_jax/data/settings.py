"""The fields of `config.data`."""

import dataclasses

from cmtkd_jax.data.transforms.augments import AUGMENTS
from cmtkd_jax.options import Options, option

_MOST_WORKERS = 1024
_LARGEST_SIDE = 2**14


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """Which images, and what is done to them before a network sees them."""

  name: str = option('digits', "'digits', a tfds name, 'folder:PATH', 'npy:PATH', 'generated:HxWxC:CLASSES:N'")
  dir: str = option('', 'folder of tfds data sets, its data_dir')
  minival: float = option(0.0, 'fraction of train that is held out, for choosing', least=0, below=1)
  test_fraction: float = option(
    0.2, 'fraction of every class of a folder without test/ that is held out to test on', above=0, most=0.5
  )
  augment: str = option('pad_crop', 'augmentation of training images', choices=tuple(AUGMENTS))
  pad: int = option(1, 'pixels that pad_crop adds on each side')
  pad_mode: str = option('zeros', 'what the added pixels hold', choices=('zeros', 'reflect', 'symmetric'))
  trivial_augment: bool = option(False, 'one random operation for each image, after crop and flip: TrivialAugment-Wide')
  cutout: int = option(0, 'side of a square of each image that becomes the mean, in pixels; 0 = none')
  random_erasing: float = option(0.0, 'probability that a random box of an image becomes the mean', least=0, most=1)
  mixup: float = option(0.0, 'alpha of the Beta distribution of mixup; 0 = none')
  cutmix: float = option(0.0, 'alpha of the Beta distribution of CutMix; 0 = none')
  image_size: int = option(8, "side of the network's input, in pixels", least=1, most=_LARGEST_SIDE)
  resize: int = option(0, 'shorter side after resizing, in pixels; 0 = images are not resized', most=_LARGEST_SIDE)
  mean: tuple = option((0.5,), 'mean of each channel, for pixels from 0 to 1', items=0.5)
  std: tuple = option((0.5,), 'standard deviation of each channel, in the same unit', items=0.5)
  on_device: str = option('auto', 'whether the images are kept on the device', choices=('auto', 'yes', 'no'))
  cache: bool = option(False, 'keep streamed training images in memory, once decoded and scaled to data.resize')
  num_workers: int = option(4, 'workers that read and decode streamed images; 0 = the main thread', most=_MOST_WORKERS)
  workers: str = option(
    'threads', "what workers are; 'processes' if one Python is too slow", choices=('threads', 'processes')
  )
  decoder: str = option(
    'pil',
    "decoder of streamed images; 'tensorflow' must be installed, is faster, resizes without antialiasing",
    choices=('pil', 'tensorflow'),
  )
  max_corrupt_fraction: float = option(
    0.01, 'fraction of training images that may be broken, and are replaced by the next ones', least=0, below=1
  )

  def __post_init__(self):
    super().__post_init__()
    for field, is_wrong, problem in self._rules():
      if is_wrong:
        raise ValueError(f'{field}={getattr(self, field)!r} {problem}')

  def _rules(self):
    """What fields must fulfill together: (field, whether it does not, what to say then)."""
    size = f'config.data.image_size={self.image_size}'
    return (
      ('name', not self.name, "is empty; give the name of a data set, such as 'digits' or 'cifar100'"),
      ('pad', self.pad >= self.image_size, f'must be a whole number, from 0 to below {size}'),
      ('cutout', self.cutout > self.image_size, f'must be a whole number, from 0 (none) to {size}'),
      (
        'trivial_augment',
        self.trivial_augment and len(self.mean) not in (1, 3),
        f'works for images of 1 or 3 channels, and config.data.mean has {len(self.mean)}; set it to False',
      ),
      (
        'num_workers',
        self.workers == 'processes' and not self.num_workers,
        "is too few for workers='processes'; set workers='threads' to read in the main thread",
      ),
      ('resize', 0 < self.resize < self.image_size, f'must be 0 (no resizing) or from {size} to {_LARGEST_SIDE}'),
      (
        'resize',
        AUGMENTS[self.augment].needs_resize and not self.resize,
        f'does not go with augment={self.augment!r}; set config.data.resize to the shorter side after resizing',
      ),
      (
        'cache',
        self.cache and not self.resize,
        'does not go with resize=0; set config.data.resize to the shorter side that images are kept with',
      ),
      (
        'cache',
        self.cache and self.workers == 'processes',
        "would keep the images in each worker process; set config.data.workers='threads'",
      ),
      (
        'trivial_augment',
        self.trivial_augment and self.image_size**2 >= 2**23,
        f'works for images of fewer than 2^23 pixels, and {size}; set it to False',
      ),
      ('std', len(self.std) != len(self.mean), f'must have one number per channel, as mean={tuple(self.mean)}'),
      ('std', min(self.std, default=1) <= 0, 'must be positive'),
      (
        'mean',
        not all(0 <= m <= 1 for m in self.mean),
        'must lie between 0 and 1 (the pixels 0..255 are divided by 255)',
      ),
    )


def input_shape(data):
  """Returns (H, W, C) of one image as a network sees it; `data` has the fields of `Settings`."""
  return data.image_size, data.image_size, len(data.mean)
