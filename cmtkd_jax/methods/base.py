"""What every method offers to the train step, and how methods build their networks."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmtkd_jax import losses, models
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import BitPolicy, check_bits, parse_rules, quantizer_names
from cmtkd_jax.models.layers import INITIALIZERS, LayerFactory
from cmtkd_jax.models.products import values

IMPORTANCE = 'importance'  # name of the parameters and logged values of importance factors


class Outputs(NamedTuple):
  """Result of one forward pass of everything that trains together.

  logits: by name of the network, float32 [B, classes]; each of them is evaluated.
  aux: whatever else the method's own loss needs, e.g. pairs of feature maps.
  """

  logits: dict[str, jax.Array]
  aux: Any = ()


class Method(nn.Module, kw_only=True):
  """All networks that train together, in one module: its parameters are one dict by network.

  `weight_bits` gives the weight width of each trained network among the top-level parameters, which decides its weight
  decay; parameters of other names count as full precision. With `has_importance`, those under `IMPORTANCE` get their
  own learning rate, and `summary` names their factors 'importance/TAP/NETWORK'.
  """

  has_importance: ClassVar[bool] = False
  label_smoothing: float = 0.0  # of every cross entropy with labels

  @property
  def cross_entropy(self):
    """`losses.cross_entropy`, a function (logits, labels, temperature=1.0), with the smoothing of this run."""
    return functools.partial(losses.cross_entropy, smoothing=self.label_smoothing)

  @property
  def weight_bits(self):
    """`{network: bits of its weights}` of the networks that are trained."""
    raise NotImplementedError

  @property
  def frozen(self):
    """Networks that are not trained; their variables come from `config.teacher_workdirs` or `init_from`."""
    return ()

  @property
  def views(self):
    """How many augmentations of each image a step sees; above 1, `images` is [views, B, H, W, C] in training."""
    return 1

  def pretrained_candidates(self, name):
    """Returns where top-level parameters `name` may be found in another run, best first: 'name' or 'name/module'."""
    return (name, STUDENT) if name in self.weight_bits else (name,)

  def __call__(self, images, train):
    """Returns `Outputs` of images float32 [B, H, W, C]. What is drawn at random takes the stream 'sampling'."""
    raise NotImplementedError

  def loss(self, outputs, labels):
    """Returns (total, terms) of labels int32 [B]: a float32 scalar, and the unweighted scalars it is made of.

    Terms are named 'NETWORK/TERM' after the network that learns from them, e.g. 'student/cross_entropy'; not 'loss',
    'NETWORK/top1', 'NETWORK/gradient_norm' or 'NETWORK/frozen_weights', which the step adds. Called outside of `apply`:
    it reads `outputs` and settings.
    """
    raise NotImplementedError

  def summary(self, params):
    """Returns `{name: float32 scalar}` worth logging about the parameters themselves."""
    del params
    return {}

  @property
  def uses_minival(self):
    """Whether the method measures something on the held-out slice of train (minival) after every epoch."""
    return False

  def minival_statistics(self, logits, labels, mask):
    """Returns sums over the examples of one held-out batch, a pytree.

    logits: `{network: float32 [B, classes]}`. labels: int32 [B]. mask: bool [B], False for padding.
    """
    raise NotImplementedError

  def update_from_minival(self, sums, model_state):
    """Returns `model_state` after an epoch whose `minival_statistics`, summed over the held-out slice, are `sums`."""
    raise NotImplementedError


class NetworkSpec(NamedTuple):
  """One network of a method: its name, the function that builds it, the width of its weights, whether it is trained."""

  name: str
  make: Callable
  weight_bits: int
  frozen: bool = False


class MultiNetwork(Method):
  """Several networks side by side, which meet in the loss only; what most methods extend.

  networks: the networks, one of them 'student'. settings: the method's `Settings`.
  """

  networks: tuple[NetworkSpec, ...]
  settings: Any

  def setup(self):
    for network in self.networks:
      setattr(self, network.name, network.make())

  @property
  def weight_bits(self):
    return {network.name: network.weight_bits for network in self.networks if not network.frozen}

  @property
  def frozen(self):
    return tuple(network.name for network in self.networks if network.frozen)

  def logits(self, images, train):
    """Returns `{name: logits}`; those of frozen networks carry no gradient.

    images: [B, H, W, C] that all networks see, or [views, B, H, W, C] with one view for each network.
    """
    logits = {}
    for i, network in enumerate(self.networks):
      own = images[i] if images.ndim == 5 else images
      z = getattr(self, network.name)(own, train=train and not network.frozen)
      logits[network.name] = jax.lax.stop_gradient(z) if network.frozen else z
    return logits

  def __call__(self, images, train):
    return Outputs(self.logits(images, train))


def run_stages(network, x, train):
  """Returns (maps before their closing quantizers, maps after them, logits) of what `network.embed` returned."""
  before, after = [], []
  for k in range(len(network.taps)):
    before.append(network.stage(k, x, train))
    x = network.activate(k, before[-1], train)
    after.append(values(x))
  return before, after, network.classify(x, train)


def student_network(config, num_classes):
  """Returns the `NetworkSpec` that `config.student` and `config.model` describe."""
  bits = config.student
  return NetworkSpec(
    STUDENT, network_builder(config, bits.weight_bits, bits.activation_bits, num_classes), bits.weight_bits
  )


def peer_networks(config, bit_widths, field, num_classes):
  """Returns `NetworkSpec`s 'peer1_4bit', ... of the student's architecture at `bit_widths`.

  A bit-width is that of weights and activations alike; the widths are the value of `config.<field>`.

  Raises:
    UserError: a bit-width does not exist, or there is none.
  """
  if not bit_widths:
    raise UserError(f'config.{field}=() names no peer of the student; give at least one bit-width, such as (4, 8)')
  for bits in bit_widths:
    check_bits(bits, f'config.{field}')
  return tuple(
    NetworkSpec(f'peer{i}_{bits}bit', network_builder(config, bits, bits, num_classes), bits)
    for i, bits in enumerate(bit_widths, 1)
  )


def trained_networks(teachers, names, num_classes):
  """Returns frozen `NetworkSpec`s for `teachers.Teacher`s, whose networks they rebuild."""

  def make(teacher):
    bits = teacher.config.student
    return network_builder(teacher.config, bits.weight_bits, bits.activation_bits, num_classes, rule_name=STUDENT)

  return tuple(
    NetworkSpec(name, make(teacher), teacher.config.student.weight_bits, frozen=True)
    for teacher, name in zip(teachers, names, strict=True)
  )


def network_builder(config, weight_bits, activation_bits, num_classes, rule_name=''):
  """Returns a function without arguments that builds the configured backbone at these bit-widths.

  rule_name: name of the network in the rules, where it runs under another one.

  Raises:
    UserError: a field of `config.model`, `config.bits` or `config.quantizer` cannot be honored.
  """
  names = quantizer_names(config.quantizer)
  options = {role: tuple(sorted(config.quantizer[name].get(role, {}).items())) for role, name in names.items()}
  policy = BitPolicy(
    weight_bits=weight_bits,
    activation_bits=activation_bits,
    first_last_bits=config.bits.first_last,
    quantize_shortcuts=config.bits.shortcut == 'quantized',
    rules=parse_rules(config.bits.rules),
    quantizer=names['weight'],
    weight_options=options['weight'],
    activation_options=options['activation'],
    activations=names['activation'],
    rule_name=rule_name,
  )
  layers = LayerFactory(
    policy=policy,
    dtype=jnp.dtype(config.dtype),
    bn_affine=config.model.bn_affine,
    bn_momentum=config.model.bn_momentum,
    bn_groups=config.model.bn_groups,
    initializers=INITIALIZERS[config.model.init],
  )
  build = functools.partial(
    models.MODELS[config.model.name],
    num_classes=num_classes,
    layers=layers,
    width=config.model.width,
    stem=config.model.stem,
    block_order=config.model.block_order,
  )
  return lambda: build().clone(remat=config.remat)


def configured_feature_loss(config):
  """Returns the `losses.FeatureLoss` of `config.feature_loss`, None for 'none'."""
  name = config.feature_loss.name
  return None if name == 'none' else losses.FEATURE_LOSSES[name](**config.feature_loss[name])


def configured_logit_loss(config):
  """Returns the `losses.LogitLoss` of `config.logit_loss`."""
  return losses.LOGIT_LOSSES[config.logit_loss.name](**config.logit_loss[config.logit_loss.name])


def check_teachers(teachers, method, least=0, most=0):
  """Raises `UserError` unless `method`, its name in the table, is given `least` to `most` trained teachers."""
  if not least <= len(teachers) <= most:
    given = tuple(teacher.directory for teacher in teachers)
    field = f'config.teacher_workdirs={given!r}'
    if not most:
      raise UserError(f'{field}; config.method.name={method!r} takes no trained teachers; set it to ()')
    count = least if most == least else f'at least {least}'
    raise UserError(
      f'{field} names {len(given)} trained teachers, and config.method.name={method!r} needs {count}; give the work '
      "directories of finished runs, such as ('runs/a',)"
    )
