"""From a Flax network to the operations it is made of, found by running it once on abstract arrays."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend as jex
import jax.numpy as jnp

from cmtkd_jax.errors import UserError
from cmtkd_jax.models import batch_norm, inspect, layers
from cmtkd_jax.quantizers import Quantizer

_LAYERS = {
  layers.Conv: 'convolution',
  layers.Dense: 'dense',
  layers.Activation: 'activation',
  layers.MaxPool: 'max_pool',
  batch_norm.BatchNorm: 'norm',
}

# A layer as one equation of the traced program; what the layer computes inside becomes dead code.
_layer = jex.core.Primitive('layer')
_layer.def_abstract_eval(lambda x, *, call, shape: jax.core.ShapedArray(shape, jnp.float32))


class TracedOp(NamedTuple):
  """One operation: a layer of the network, or 'add', 'relu' or 'mean' between layers.

  shape: (H, W, C), or (C,), of the first input.
  module: the Flax module of a layer, else None; variables: its own, by collection; quantizer: its own, if it has one.
  """

  op: str
  inputs: tuple[str, ...]
  output: str
  shape: tuple[int, ...]
  module: nn.Module | None = None
  variables: Any = None
  quantizer: Quantizer | None = None


def trace(method, variables, input_shape, network):
  """Returns the `TracedOp`s from 'input', the standardized images, to the logits of `network`, its last.

  Args:
    method: a `methods.Method`.
    variables: its variables.
    input_shape: (H, W, C).
    network: a key of `Outputs.logits`.

  Raises:
    UserError: the network does something between its layers that has no name here.
  """
  calls = []  # other networks may call the layers of this one, too

  def record(call):
    module = call.module
    calls.append(
      {
        'op': next(op for cls, op in _LAYERS.items() if isinstance(module, cls)),
        'output': call.path,
        'module': module.clone(parent=None),
        'variables': jax.tree.map(lambda x: x, dict(module.variables)),
        'quantizer': module.quantizer() if hasattr(module, 'quantizer') else None,
      }
    )
    return _layer.bind(call.input.astype(jnp.float32), call=len(calls) - 1, shape=call.output.shape)

  def forward(images):
    with inspect.visit_layers(record, *_LAYERS):
      return method.apply(variables, images, train=False).logits[network]

  jaxpr = jax.make_jaxpr(forward)(jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)).jaxpr
  return _steps(jaxpr, calls)


def _steps(jaxpr, calls):
  """Walks back from the result, so that other networks, and the insides of layers, are left out."""
  made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
  names, steps = {jaxpr.invars[0]: 'input'}, []

  def visit(variable):
    is_number = isinstance(variable, jex.core.Literal)
    if not is_number and variable in names:
      return names[variable]
    if is_number or variable not in made_by:
      raise UserError(
        'the network adds a constant to a map between its layers, which cannot be exported; make it the bias of a layer'
      )
    equation = made_by[variable]
    kind, shape = equation.primitive.name, equation.invars[0].aval.shape[1:]
    if kind == 'layer':
      step = TracedOp(inputs=(visit(equation.invars[0]),), shape=shape, **calls[equation.params['call']])
      if step.output in names.values():
        raise UserError(
          f'the network calls its layer {step.output} twice, which cannot be exported; make it two layers'
        )
    elif kind in ('convert_element_type', 'copy'):
      return names.setdefault(variable, visit(equation.invars[0]))
    elif kind == 'add':
      step = TracedOp('add', tuple(map(visit, equation.invars)), f'add{len(steps)}', shape)
    elif _is_relu(equation):
      step = TracedOp('relu', (visit(equation.invars[0]),), f'relu{len(steps)}', shape)
    elif total := _mean_of(equation, made_by):
      step = TracedOp('mean', (visit(total),), f'mean{len(steps)}', total.aval.shape[1:])
    else:
      raise UserError(
        f'the network has the operation {kind!r} between its layers, which cannot be exported; use layers of '
        'cmtkd_jax.models.layers, sums, ReLU and means over height and width'
      )
    steps.append(step)
    return names.setdefault(variable, step.output)

  visit(jaxpr.outvars[0])
  return steps


def _mean_of(equation, made_by):
  """The map [1, H, W, C] whose mean over height and width an equation takes: its sum, divided by H W; else None."""
  if equation.primitive.name != 'div' or isinstance(equation.invars[0], jex.core.Literal):
    return None
  total, divisor = made_by.get(equation.invars[0]), equation.invars[1]
  if total is None or total.primitive.name != 'reduce_sum' or tuple(total.params['axes']) != (1, 2):
    return None
  summed = total.invars[0]
  size = summed.aval.shape[1] * summed.aval.shape[2]
  return summed if isinstance(divisor, jex.core.Literal) and float(divisor.val) == size else None


def _is_relu(equation):
  inner = getattr(equation.params.get('call_jaxpr'), 'eqns', ())
  return len(inner) == 1 and inner[0].params.get('name') == 'relu'
