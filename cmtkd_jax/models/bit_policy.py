"""Which layer is quantized to how many bits: network widths, first and last layer, shortcuts, ordered regex rules."""

import dataclasses
import re

from cmtkd_jax import quantizers
from cmtkd_jax.errors import UserError

FULL_PRECISION = 32
BIT_WIDTHS = (*range(1, quantizers.MAX_BITS + 1), FULL_PRECISION)
ROLES = ('body', 'first', 'last', 'shortcut')
QUANTIZER_ROLES = ('weight', 'activation')


@dataclasses.dataclass(frozen=True)
class Rule:
  """Bits of every layer whose whole path matches `pattern`, e.g. 'student/stage4/.*'."""

  pattern: str
  weight_bits: int
  activation_bits: int


@dataclasses.dataclass(frozen=True)
class BitPolicy:
  """Bits and quantizers of one network's layers. The first rule that matches decides; then the role; then the width.

  weight_bits, activation_bits: the network's widths, 1..8 or 32 (none).
  first_last_bits: weights of the first and the last layer, 32 (the paper) or 8.
  quantize_shortcuts: whether 1x1 projection shortcuts are quantized like the rest.
  rules: ordered, matched against the full path, e.g. 'teacher1_4bit/stage2/block1/conv1'.
  quantizer, weight_options, activation_options: a name in `quantizers.QUANTIZERS` and `(field, value)` pairs.
  activations: name of the activations' quantizer, where it is another one.
  rule_name: name of the network in the rules, where it runs under another one.
  """

  weight_bits: int
  activation_bits: int
  first_last_bits: int = FULL_PRECISION
  quantize_shortcuts: bool = True
  rules: tuple[Rule, ...] = ()
  quantizer: str = 'hwgq'
  weight_options: tuple[tuple[str, object], ...] = ()
  activation_options: tuple[tuple[str, object], ...] = ()
  rule_name: str = ''
  activations: str = ''

  def resolve_weight_bits(self, path, role):
    """Returns the bits of the weights of the layer at `path`, whose place in the network is `role`."""
    rule = self._rule(path)
    if rule:
      return rule.weight_bits
    if role in ('first', 'last'):
      return self.first_last_bits if self.weight_bits != FULL_PRECISION else FULL_PRECISION
    if role == 'shortcut' and not self.quantize_shortcuts:
      return FULL_PRECISION
    return self.weight_bits

  def resolve_activation_bits(self, path):
    """Returns the bits of the activation layer at `path`; 32 is a plain ReLU."""
    rule = self._rule(path)
    return rule.activation_bits if rule else self.activation_bits

  def weight_quantizer(self, path, role):
    """Returns the weight quantizer of the layer at `path`, or None for full precision."""
    return create_quantizer(self.quantizer, 'weight', self.resolve_weight_bits(path, role), self.weight_options, path)

  def activation_quantizer(self, path):
    """Returns the quantizer of the activation layer at `path`, or None for a plain ReLU."""
    return self.activation_quantizer_of(self.resolve_activation_bits(path), path)

  def activation_quantizer_of(self, bits, path=''):
    """Returns the quantizer of `bits`-bit activations, or None for 32; an error names `path`."""
    return create_quantizer(self.activations or self.quantizer, 'activation', bits, self.activation_options, path)

  def _rule(self, path):
    if self.rule_name:
      path = '/'.join([self.rule_name, *path.split('/')[1:]])
    return next((rule for rule in self.rules if re.fullmatch(rule.pattern, path)), None)


def quantizer_names(quantizer):
  """Returns `{'weight': name, 'activation': name}` of `config.quantizer`."""
  return {role: quantizer[f'{role}s'] or quantizer['name'] for role in QUANTIZER_ROLES}


def create_quantizer(name, role, bits, options=(), layer=''):
  """Returns quantizer `name` for 'weight' or 'activation' of `layer` at `bits`, None for 32; options: (field, value)s.

  Raises:
    UserError: the quantizer does not have this role or width, or an option is out of range.
  """
  if bits == FULL_PRECISION:
    return None
  cls = quantizer_class(name, role)
  try:
    return cls(bits=bits, **dict(options))
  except ValueError as e:
    asked = f' (asked for by {layer}; give that network other bits, or set config.quantizer.{role}s)' if layer else ''
    raise UserError(f'config.quantizer: {e}{asked}') from None


def quantizer_class(name, role):
  """Returns the class of quantizer `name` for 'weight' or 'activation'.

  Raises:
    UserError: there is none.
  """
  cls = getattr(quantizers.QUANTIZERS[name], role.capitalize(), None)
  if cls is None:
    raise UserError(
      f'config.quantizer.{role}s: {name} quantizes no {role}s; name another quantizer there, such as '
      f"'hwgq', or give them 32 bits"
    )
  return cls


def parse_rules(rules):
  """Returns `Rule`s from `(pattern, weight_bits, activation_bits)` triples, or raises `UserError`."""
  parsed = []
  for rule in rules:
    field = f'config.bits.rules={rules!r}: {rule!r}'
    if not isinstance(rule, (tuple, list)) or len(rule) != 3 or not isinstance(rule[0], str):
      raise UserError(
        f"{field} is not (regex, weight bits, activation bits); write rules such as (('student/stage1/.*', 4, 4),)"
      )
    pattern, weight_bits, activation_bits = rule
    try:
      re.compile(pattern)
    except re.error as e:
      raise UserError(f'{field} is not (regex, weight bits, activation bits): {e}; fix the regex') from None
    for bits in (weight_bits, activation_bits):
      check_bits(bits, f'{field}: width')
    parsed.append(Rule(pattern, weight_bits, activation_bits))
  return tuple(parsed)


def check_bits(bits, where):
  """Raises `UserError`, beginning with `where`, unless `bits` is a width that exists."""
  if type(bits) is not int or bits not in BIT_WIDTHS:
    raise UserError(f'{where}={bits!r} is not a bit-width; allowed: {", ".join(map(str, BIT_WIDTHS))}')
