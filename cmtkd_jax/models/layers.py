"""Convolution, dense and activation layers with a quantizer in them, and the pieces every backbone is built from."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.errors import UserError
from cmtkd_jax.models.batch_norm import BatchNorm
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.models.convolution import convolve
from cmtkd_jax.models.products import flatten, product
from cmtkd_jax.quantizers import Quantized, Quantizer

QUANTIZER_STATE = 'quantizer_state'  # the variable collection of values that are fitted, not trained
QUANTIZER_SUFFIX = '_quantizer'  # ends the names of the modules that hold a quantizer, and of no others


def quantizer_name(role):
  """Returns the name, within its layer, of the module with the quantizer of the 'weight' or the 'activation'."""
  return f'{role}{QUANTIZER_SUFFIX}'


@dataclasses.dataclass(frozen=True)
class Initializers:
  """How a network starts: kernels of convolutions and hidden dense layers, the classifier's, scales of normalizations.

  Biases start at 0.
  """

  kernel: Callable
  classifier: Callable
  scale: Callable


_he = lambda fan: nn.initializers.variance_scaling(2.0, fan, 'normal')
INITIALIZERS = {
  # He normal by fan-out; the classifier starts small, uniform(-1, 1) / sqrt(fan-in). Fans are those of the kernel, as
  # in PyTorch: with groups the fan-in is that of one group, and the fan-out still counts the features of all, so that
  # torchvision's MobileNetV2 starts its depthwise kernels at sqrt(2 / (F k^2)). Normalizations undo the scale.
  'he_fan_out': Initializers(
    _he('fan_out'), nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'), nn.initializers.ones
  ),
  # The published code of CTKD, and of attention transfer before it: He normal by fan-in also for the classifier,
  # scales uniform in [0, 1).
  'ctkd': Initializers(_he('fan_in'), _he('fan_in'), nn.initializers.uniform(1.0)),
}
DEFAULT_INITIALIZERS = INITIALIZERS['he_fan_out']


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers and networks with this quantizer and shape
def _with_levels(quantizer, x, parameters):
  return quantizer.with_levels(x, parameters)


def _initial(quantizer, x):
  values = quantizer.init(x)
  if not isinstance(values, dict):
    raise ValueError(f'{type(quantizer).__module__}: init() returns {type(values).__name__}; return a dict of arrays')
  if missing := {*quantizer.learned, *quantizer.fitted} - values.keys():
    raise ValueError(f'{type(quantizer).__module__}: init() returns no {min(missing)!r}, which is learned or fitted')
  return values


class FakeQuantize(nn.Module):
  """Holds a quantizer's learned and fitted values and applies it; both start from the first data it sees.

  Returns a `Quantized`.
  """

  quantizer: Quantizer

  @nn.compact
  def __call__(self, x, train):
    quantizer, x = self.quantizer, x.astype(jnp.float32)
    initial = functools.cache(lambda: _initial(quantizer, x))
    if self.is_initializing():
      parameters = {name: self.param(name, lambda _, name=name: initial()[name]) for name in quantizer.learned}
    else:  # read, since `param` would trace `init` again to compare shapes: seconds, where it searches
      parameters = {name: self.get_variable('params', name) for name in quantizer.learned}
    fitted = {
      name: self.variable(QUANTIZER_STATE, name, lambda name=name: initial()[name]) for name in quantizer.fitted
    }
    parameters |= {name: variable.value for name, variable in fitted.items()}
    quantized = _with_levels(quantizer, x, parameters)
    if train and fitted and not self.is_initializing():
      updated = quantizer.update(jax.lax.stop_gradient(x), parameters)
      for name, variable in fitted.items():
        variable.value = updated[name]
    return quantized


class Conv(nn.Module):
  """2-D convolution [B, H, W, C] -> [B, H', W', features] with quantized weights, without bias.

  x is an array, or the `Quantized` of an `Activation`, see `products`.
  role: the layer's place in the network, see `bit_policy.ROLES`.
  groups: parts of the channels, each with its own part of the features; as many as channels is a depthwise convolution.

  Raises:
    UserError: the channels or the features cannot be divided into groups.
  """

  features: int
  kernel: int
  policy: BitPolicy
  stride: int = 1
  padding: int | None = None  # None: (kernel - 1) // 2
  role: str = 'body'
  dtype: jax.typing.DTypeLike = jnp.float32
  initializers: Initializers = DEFAULT_INITIALIZERS
  groups: int = 1

  @nn.nowrap
  def quantizer(self):
    """Returns the quantizer of the weights, or None for full precision; only of a layer within its network."""
    return self.policy.weight_quantizer('/'.join(self.path), self.role)

  @nn.compact
  def __call__(self, x, train):
    channels = x.shape[-1]
    if channels % self.groups or self.features % self.groups:
      raise UserError(
        f'{"/".join(self.path)}: groups={self.groups} do not divide {channels} channels and {self.features} features; '
        'choose a divisor of both'
      )
    shape = (self.kernel, self.kernel, channels // self.groups, self.features)
    kernel = self.param('kernel', self.initializers.kernel, shape, jnp.float32)
    quantizer = self.quantizer()
    if quantizer is not None:
      kernel = FakeQuantize(quantizer, name=quantizer_name('weight'))(kernel, train)
    pad = (self.kernel - 1) // 2 if self.padding is None else self.padding
    multiply = functools.partial(convolve, stride=self.stride, padding=pad, groups=self.groups)
    return product(multiply, x, kernel, self.dtype)


class Dense(nn.Module):
  """Matrix product [B, ...], flattened, -> [B, features] with quantized weights; the last layer has a bias.

  x is an array, or the `Quantized` of an `Activation`, see `products`.
  """

  features: int
  policy: BitPolicy
  role: str = 'body'
  dtype: jax.typing.DTypeLike = jnp.float32
  initializers: Initializers = DEFAULT_INITIALIZERS

  @nn.nowrap
  def quantizer(self):
    """Returns the quantizer of the weights, or None for full precision; only of a layer within its network."""
    return self.policy.weight_quantizer('/'.join(self.path), self.role)

  @nn.compact
  def __call__(self, x, train):
    init = self.initializers.classifier if self.role == 'last' else self.initializers.kernel
    x = flatten(x)
    kernel = self.param('kernel', init, (x.shape[-1], self.features), jnp.float32)
    quantizer = self.quantizer()
    if quantizer is not None:
      kernel = FakeQuantize(quantizer, name=quantizer_name('weight'))(kernel, train)
    if self.role == 'last':  # logits: always float32
      bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
      return product(jnp.matmul, x, kernel, jnp.float32) + bias[None]
    return product(jnp.matmul, x, kernel, self.dtype)


class Activation(nn.Module):
  """The quantizer in place of a ReLU, or the ReLU itself where the policy says 32 bits.

  Returns a `Quantized`, or the array of the ReLU; `products.values` makes an array of either.
  """

  policy: BitPolicy

  @nn.nowrap
  def quantizer(self):
    """Returns the quantizer, or None for the ReLU; only of a layer within its network."""
    return self.policy.activation_quantizer('/'.join(self.path))

  @nn.compact
  def __call__(self, x, train):
    quantizer = self.quantizer()
    if quantizer is None:
      return nn.relu(x)
    return FakeQuantize(quantizer, name=quantizer_name('activation'))(x, train)


class MaxPool(nn.Module):
  """`max_pool` as a layer, so that a walk over the layers finds it by name.

  x is an array, or the `Quantized` of an `Activation`, whose maxima are on its grid: the result is of the same kind.
  """

  window: int
  stride: int
  padding: int = 0

  def __call__(self, x):
    pool = functools.partial(max_pool, window=self.window, stride=self.stride, padding=self.padding)
    if not isinstance(x, Quantized) or x.level is None:
      return jax.tree.map(pool, x)
    sign = jnp.where(x.scale < 0, -1.0, 1.0)  # below 0, the greatest value is that of the least level
    return Quantized(pool(x.value), sign * pool(sign * x.level), x.scale)


@dataclasses.dataclass(frozen=True)
class LayerFactory:
  """Builds the layers of one network with its bit policy, compute type, normalization settings and initializers."""

  policy: BitPolicy
  dtype: jax.typing.DTypeLike = jnp.float32
  bn_affine: bool = True
  bn_momentum: float = 0.9
  bn_groups: int = 1
  initializers: Initializers = DEFAULT_INITIALIZERS

  def conv(self, features, kernel, stride=1, padding=None, role='body', name=None, groups=1):
    """A `Conv`."""
    return Conv(
      features,
      kernel,
      self.policy,
      stride=stride,
      padding=padding,
      role=role,
      dtype=self.dtype,
      initializers=self.initializers,
      groups=groups,
      name=name,
    )

  def dense(self, features, role='body', name=None):
    """A `Dense`."""
    return Dense(features, self.policy, role=role, dtype=self.dtype, initializers=self.initializers, name=name)

  def activation(self, name=None):
    """An `Activation`."""
    return Activation(self.policy, name=name)

  def norm(self, name=None):
    """A `BatchNorm`.

    Under a sharded `jit` its statistics are those of the global batch, or of `bn_groups` parts of it.
    """
    return BatchNorm(self.bn_groups, self.bn_momentum, self.bn_affine, scale_init=self.initializers.scale, name=name)


def max_pool(x, window, stride, padding=0):
  """Max-pooling [B, H, W, C] whose gradient needs no scatter and goes to the first maximum in row-major order.

  Value and gradient equal `flax.linen.max_pool`, ties included; quantized maps are full of ties. Its usual gradient,
  select-and-scatter, is slow on CPU and has no deterministic form on GPU.
  """
  if padding:
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-np.inf)
  height, width = ((size - window) // stride + 1 for size in x.shape[1:3])
  best = None
  for dy in range(window):
    for dx in range(window):
      view = x[:, dy : dy + (height - 1) * stride + 1 : stride, dx : dx + (width - 1) * stride + 1 : stride]
      best = view if best is None else jnp.where((best >= view) | (best != best), best, view)  # NaN stays
  return best
