"""Data sets that are described and not opened: a run can be planned before there are any images."""

from cmtkd_jax.data.sources import base

# {name: ((h, w, C), or None where images differ in size; images to train on, to test on; classes)}
# Sources: the pages of the data sets in the catalog of TensorFlow Datasets.
KNOWN: dict[str, tuple[tuple[int, int, int] | None, int, int, int]] = {
  'cifar10': ((32, 32, 3), 50_000, 10_000, 10),
  'cifar100': ((32, 32, 3), 50_000, 10_000, 100),
  'svhn_cropped': ((32, 32, 3), 73_257, 26_032, 10),
  'imagenet2012': (None, 1_281_167, 50_000, 1000),
}
_TYPICAL = (375, 500, 3)  # of photographs that differ in size


class Described(base.Source):
  """So many images of one shape, or of no common one, none of which can be read."""

  def __init__(self, count, shape):
    self._count, self._shape = count, shape

  def __len__(self):
    return self._count

  @property
  def first_shape(self):
    return self._shape or _TYPICAL

  @property
  def shape(self):
    return self._shape


def describe(name: str) -> base.Splits | None:
  """Returns the splits of a data set that is known or described by its name, config.data.name; else None.

  Raises:
    UserError: the name of generated images does not parse.
  """
  shape: tuple[int, int, int] | None
  if name.startswith('generated:'):
    h, w, c, classes, train = base.parse_generated(name.removeprefix('generated:'))
    shape, test = (h, w, c), max(1, train // 5)
  elif (key := name.removeprefix('tfds:').partition(':')[0]) in KNOWN:
    shape, train, test, classes = KNOWN[key]
  else:
    return None
  return base.Splits(Described(train, shape), Described(test, shape), tuple(map(str, range(classes))))
