"""A backbone cut into stages at its tapped layers: what every method sees of a network."""

import re
from collections.abc import Callable

import flax.linen as nn

from cmtkd_jax.errors import UserError

STUDENT = 'student'  # the name of the network that a run is for, among those that train together


class Network(nn.Module):
  """Stages 0..K-1, each closed by an activation whose output is the tap, and a head.

  Stage k is `stage{k+1}` in paths of parameters, and closes at layer `taps[k]`.

  A method that fuses maps runs the parts itself: `stage` takes a quantized map (stage 0: what `embed` returns) and
  returns the map before its closing quantizer, `activate` applies that quantizer, after a normalization where
  `activate_normalizes`, `classify` turns the last map into logits. `stage` and `classify` also take arrays, such as
  mixtures of maps. The parts are given as functions that build modules, so that a method can build a second head from
  the same recipe. A stem that stands apart can serve two networks: one that never runs its own has no parameters for
  it.

  taps: number of the layer that closes each stage, counting the first convolution as 1 and no 1x1 shortcuts.
  remat: regex of networks whose stages are computed again in the backward pass, to save the memory of their maps.
  activate_normalizes: whether a normalization comes before the closing quantizer and is part of `activate`, as in wide
    residual networks, whose taps are raw sums. Such a map must go through `activate` once, and that of its own network.
  """

  taps: tuple[int, ...]
  make_stages: tuple[Callable[[], nn.Module], ...]
  make_activation: Callable[[], nn.Module]
  make_head: Callable[[], nn.Module]
  make_stem: Callable[[], nn.Module] | None = None
  remat: str = ''
  activate_normalizes: bool = False

  def setup(self):
    if len(self.taps) != len(self.make_stages) or list(self.taps) != sorted(set(self.taps)):
      raise ValueError(f'taps={self.taps} are not one ascending number for each of {len(self.make_stages)} stages')
    for k, make_stage in enumerate(self.make_stages, 1):
      setattr(self, f'stage{k}', make_stage())
      setattr(self, f'stage{k}_activation', self.make_activation())
    self.head = self.make_head()
    if self.make_stem is not None:
      self.stem = self.make_stem()

  def embed(self, images, train):
    """Returns what stage 0 takes: the images, through the stem where it stands apart from the stages."""
    return images if self.make_stem is None else self.stem(images, train)

  def stage(self, k, x, train):
    """Returns the map [B, H, W, C] before the closing quantizer of stage `k` (from 0)."""
    stage = getattr(self, f'stage{k + 1}')
    if train and self.remat and re.fullmatch(self.remat, '/'.join(self.path)):
      return nn.remat(lambda stage, x: stage(x, True))(stage, x)
    return stage(x, train)

  def activate(self, k, x, train):
    """Returns `x` through the closing quantizer of stage `k`; `products.values` makes an array of it."""
    return getattr(self, f'stage{k + 1}_activation')(x, train)

  def classify(self, x, train):
    """Returns logits float32 [B, classes] from the last map."""
    return self.head(x, train)

  def __call__(self, x, train):
    """Returns the logits of images [B, H, W, C]: the network on its own."""
    x = self.embed(x, train)
    for k in range(len(self.taps)):
      x = self.activate(k, self.stage(k, x, train), train)
    return self.classify(x, train)


def scaled(features, width):
  """Returns the features of a layer in a network of `config.model.width`: features * width, rounded, at least 1."""
  return max(1, round(features * width))


def check_form(name, field, value, allowed):
  """Raises `UserError` unless `config.model.<field>`, 'stem' or 'block_order', has a form that network `name` has."""
  if value not in allowed:
    raise UserError(f'config.model.{field}={value!r} does not exist for {name}; use {" or ".join(map(repr, allowed))}')
