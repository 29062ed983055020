"""SPEQ: stochastic precision ensemble (Boo, Shin, Choi, Sung, AAAI 2021): self-distillation of a quantized network.

The teacher is the student itself, its weights and all, with the activations of each layer at random in a low or a high
precision, drawn again at every step.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import MultiNetwork, Outputs, check_teachers, student_network
from cmtkd_jax.models import STUDENT, inspect
from cmtkd_jax.models.bit_policy import BIT_WIDTHS, create_quantizer, parse_rules, quantizer_class, quantizer_names
from cmtkd_jax.models.layers import Activation
from cmtkd_jax.options import Options, option
from cmtkd_jax.quantizers import Quantized


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """The student, taught by itself with activations at randomly higher precision."""

  high_bits: int = option(8, "bits of the teacher's activations where they are not the student's", choices=BIT_WIDTHS)
  high_probability: float = option(0.5, 'probability of a layer to be at high precision', least=0, most=1)
  distillation_weight: float = option(1.0, 'w, weight of the cosine loss')
  cosine_of: str = option(
    'probabilities', 'what the cosine similarity is taken of', choices=('probabilities', 'logits')
  )


class SPEQ(MultiNetwork):
  """The student, which is its own teacher."""

  def __call__(self, images, train):
    before = jax.tree.map(lambda x: x, self.variables)  # the student updates fitted values; the teacher has the same
    logits = {STUDENT: self.student(images, train)}
    if not train or self.is_initializing():
      return Outputs(logits)
    # The same network again, its activations drawn; the teacher's batch statistics are used and then forgotten.
    teacher = MultiNetwork(self.networks, None, parent=None)
    rngs = {'sampling': self.make_rng('sampling')}
    with inspect.visit_layers(self._draw, Activation):
      outputs, _ = teacher.apply(before, images, train, mutable=True, rngs=rngs)
    return Outputs(logits | {'teacher': jax.lax.stop_gradient(outputs.logits[STUDENT])})

  @nn.nowrap
  def _draw(self, call):
    """The output of an activation at low or high precision, or None where it has no higher one."""
    layer, settings = call.module, self.settings
    if layer.quantizer() is None or layer.quantizer().bits >= settings.high_bits:  # by a rule of `config.bits`
      return None
    quantizer, x = layer.policy.activation_quantizer_of(settings.high_bits), call.input.astype(jnp.float32)
    # `create` has made sure that the quantizer has no values of its own.
    high, low = Quantized(nn.relu(x)) if quantizer is None else quantizer.with_levels(x, {}), call.output
    if high.level is None or low.level is None:
      high, low = Quantized(high.value), Quantized(low.value)
    take_high = jax.random.bernoulli(layer.make_rng('sampling'), settings.high_probability)
    return jax.tree.map(lambda high, low: jnp.where(take_high, high, low), high, low)

  def loss(self, outputs, labels):
    return speq_loss(outputs.logits['teacher'], outputs.logits[STUDENT], labels, self.settings, self.cross_entropy)


def speq_loss(teacher, student, labels, settings, cross_entropy=losses.cross_entropy):
  """Total loss of the student S, taught by itself at randomly higher precision, T.

      L = CE(z_S, y) + w mean_b (1 - cos(f(z_T), f(z_S))),  f the softmax or the identity

  with f(z_T) a constant.

  Args:
    teacher, student: z_T and z_S, float [B, C], finite.
    labels: y, int32 [B] in 0..C-1.
    settings: `Settings`: f and w >= 0.
    cross_entropy: function (logits, labels, temperature=1.0) of the terms with labels.

  Returns:
    (L, terms): float32 scalar >= 0, and every unweighted term by name.

  Raises:
    ValueError: the shapes do not fit.

  Source: SPEQ (Boo et al., AAAI 2021). That f is the softmax by default is chosen here.
  """
  ce = cross_entropy(student, labels)
  of = jax.nn.softmax if settings.cosine_of == 'probabilities' else lambda z: z
  cosine = losses.cosine_loss(jax.lax.stop_gradient(of(teacher)), of(student))
  return ce + settings.distillation_weight * cosine, {'student/cross_entropy': ce, 'student/distillation': cosine}


def create(config, settings, num_classes, teachers=()):
  """Returns the method for `config`.

  Raises:
    UserError: the quantizer has values of its own for each width, or lacks `high_bits`, or the student's activations
      have as many bits.
  """
  check_teachers(teachers, 'speq')
  name = quantizer_names(config.quantizer)['activation']
  activation = quantizer_class(name, 'activation')
  if activation.learned or activation.fitted:
    raise UserError(
      f'config.quantizer: {name!r} has values of its own for each width, so that '
      "config.method.name='speq' cannot switch widths; use 'hwgq'"
    )
  create_quantizer(name, 'activation', settings.high_bits, layer='config.method.speq.high_bits')
  widths = [config.student.activation_bits, *(rule.activation_bits for rule in parse_rules(config.bits.rules))]
  if min(widths) >= settings.high_bits:
    raise UserError(
      f'config.student.activation_bits={config.student.activation_bits!r} is not below '
      f'config.method.speq.high_bits={settings.high_bits!r}, so that the teacher would be no more precise than the '
      'student; lower the first or raise the second'
    )
  return SPEQ((student_network(config, num_classes),), settings)
