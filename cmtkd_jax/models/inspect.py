"""Looking into networks: the one walk over the layers of a pass, and where the values of their quantizers lie."""

import contextlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from cmtkd_jax.models.layers import QUANTIZER_STATE, QUANTIZER_SUFFIX, Conv, Dense


class LayerCall(NamedTuple):
  """One call of a layer.

  path: of the layer, e.g. 'student/stage1/block1/conv1'.
  module: the layer; it is bound to its variables as long as the pass runs.
  input, output: its first argument and its result, the very arrays that the pass holds.
  """

  path: str
  module: nn.Module
  input: Any
  output: Any


@contextlib.contextmanager
def visit_layers(visit, *kinds):
  """Within the block, calls `visit(LayerCall)` after every call of a layer, in the order in which they return.

  What `visit` returns takes the place of the layer's output, unless it is None.

  Args:
    visit: function of a `LayerCall`.
    *kinds: classes of layers.
  """

  def intercept(next_function, args, kwargs, context):
    output = next_function(*args, **kwargs)
    if context.method_name != '__call__' or not isinstance(context.module, kinds):
      return output
    changed = visit(LayerCall('/'.join(context.module.path), context.module, args[0], output))
    return output if changed is None else changed

  with nn.intercept_methods(intercept):
    yield


def layer_calls(run, *kinds):
  """Returns the `LayerCall`s of `run()`, which is evaluated on abstract arrays, in the order in which they return.

  Args:
    run: function without arguments, e.g. of `method.init`.
    *kinds: classes of layers.
  """
  calls = []
  with visit_layers(calls.append, *kinds):
    _evaluate_abstractly(run)
  return calls


def weight_quantizers(run):
  """Returns `{path: quantizer}` of every layer whose weights are quantized in `run()`, as for `layer_calls`."""
  found = {}

  def visit(call):
    if quantizer := call.module.quantizer():
      found[call.path] = quantizer

  with visit_layers(visit, Conv, Dense):
    _evaluate_abstractly(run)
  return found


def _evaluate_abstractly(run):
  def traced():  # a new function: JAX would not run one again that it has traced before
    run()

  jax.eval_shape(traced)


def quantizer_values(variables, *path):
  """Returns `{name: value}` of what a quantizer has learned and fitted; {} where it has no values.

  Args:
    variables: by collection, of the network or of one layer.
    *path: names that lead to the quantizer, the last one of `layers.quantizer_name`.
  """
  values = {}
  for collection in ('params', QUANTIZER_STATE):
    tree = variables.get(collection, {})
    for name in path:
      tree = tree.get(name, {})
    values |= tree
  return values


def is_quantizer_path(path):
  """Whether `path`, names from the outermost to the variable, leads to a value of a quantizer."""
  return any(name.endswith(QUANTIZER_SUFFIX) for name in path)


def at(tree, path):
  """Returns what nested dicts `tree` hold at `path`, a tuple of names."""
  for name in path:
    tree = tree[name]
  return tree
