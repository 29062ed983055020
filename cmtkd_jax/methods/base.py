"""What every method offers to the train step, and the recipe by which methods build their networks."""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmtkd_jax import models
from cmtkd_jax.bit_policy import BitPolicy, parse_rules
from cmtkd_jax.errors import UserError
from cmtkd_jax.layers import LayerFactory


class Outputs(NamedTuple):
  """Result of one forward pass of everything that trains together.

  logits: by name of the network, float32 [B, classes]; each of them is evaluated.
  extras: whatever else the method's own loss needs, e.g. pairs of feature maps.
  """
  logits: dict[str, jax.Array]
  extras: Any = ()


class Method(nn.Module):
  """All networks that train together, in one module: its parameters are one dict by network.

  `weight_bits` gives the weight width of each network among the top-level parameters, which decides its weight decay;
  parameters of other names count as full precision, those under `importance_group` get their own learning rate.
  """
  importance_group: ClassVar[str] = 'importance'
  main_network: ClassVar[str] = 'student'

  @property
  def weight_bits(self):
    """`{network: bits of its weights}`."""
    raise NotImplementedError

  def origins(self, name):
    """Returns where top-level parameters `name` may be found in another run, best first, as paths of names."""
    return (name, self.main_network) if name in self.weight_bits else (name,)

  def __call__(self, images, train):
    """Returns `Outputs` of images float32 [B, H, W, C]."""
    raise NotImplementedError

  def loss(self, outputs, labels):
    """Returns (total, terms) of labels int32 [B]: a float32 scalar and the named scalars it is made of."""
    raise NotImplementedError

  def summary(self, params):
    """Returns `{name: float32 scalar}` worth logging about the parameters themselves."""
    del params
    return {}


def network_recipe(config, weight_bits, activation_bits, num_classes):
  """Returns a function without arguments that builds the configured backbone at these bit-widths.

  Raises:
    UserError: a field of `config.model`, `config.bits` or `config.quantizer` cannot be honoured.
  """
  if config.model.name not in models.MODELS:
    raise UserError(f'config.model.name={config.model.name!r}; allowed: {", ".join(models.MODELS)}')
  options = config.quantizer[config.quantizer.name]
  policy = BitPolicy(
      weight_bits, activation_bits, config.bits.first_last, config.bits.shortcut == 'quantized',
      parse_rules(config.bits.rules), config.quantizer.name,
      tuple(sorted(options.weight.items())), tuple(sorted(options.activation.items())))
  layers = LayerFactory(policy, jnp.dtype(config.dtype), config.model.bn_affine, config.model.bn_momentum)
  return functools.partial(models.MODELS[config.model.name], num_classes=num_classes, layers=layers,
                           width=config.model.width, stem=config.model.stem, block_order=config.model.block_order)
