"""The walk over the layers of a network, and the values of its quantizers, on a network whose layers are known."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax.models import inspect, layers
from cmtkd_jax.models.batch_norm import BatchNorm
from cmtkd_jax.models.bit_policy import BitPolicy, Rule

# Everywhere 2/2 bits, but conv1's weights 3 bits, and act1 a ReLU.
POLICY = BitPolicy(2, 2, quantizer='lsq', rules=(Rule('net/conv1', 3, 2), Rule('net/act1', 2, 32)))


class Small(nn.Module):
  """Two convolutions and a classifier; two activations."""

  @nn.compact
  def __call__(self, x, train):
    make = layers.LayerFactory(POLICY)
    x = make.activation('act0')(make.norm('norm0')(make.conv(3, 3, role='first', name='conv0')(x, train), train), train)
    x = make.activation('act1')(make.conv(5, 3, stride=2, name='conv1')(x, train), train)
    return make.dense(7, role='last', name='last')(x, train)


class Outer(nn.Module):
  """The network within something else, as in a method."""

  @nn.compact
  def __call__(self, x, train):
    return Small(name='net')(x, train)


X = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)


def init():
  return Outer().init(jax.random.key(0), jnp.asarray(X), True)


def test_layers_are_met_in_order_with_what_they_take_and_give():
  calls = inspect.layer_calls(init, layers.Conv, layers.Dense, layers.Activation, BatchNorm)
  assert [(call.path, type(call.module), call.input.shape, call.output.shape) for call in calls] == [
    ('net/conv0', layers.Conv, (2, 4, 4, 1), (2, 4, 4, 3)),
    ('net/norm0', BatchNorm, (2, 4, 4, 3), (2, 4, 4, 3)),
    ('net/act0', layers.Activation, (2, 4, 4, 3), (2, 4, 4, 3)),
    ('net/conv1', layers.Conv, (2, 4, 4, 3), (2, 2, 2, 5)),
    ('net/act1', layers.Activation, (2, 2, 2, 5), (2, 2, 2, 5)),
    ('net/last', layers.Dense, (2, 2, 2, 5), (2, 7)),
  ]
  for call, following in itertools.pairwise(calls):
    assert call.output is following.input
  assert [call.path for call in inspect.layer_calls(init, layers.Dense)] == ['net/last']


def test_layers_tell_their_quantizers():
  calls = inspect.layer_calls(init, layers.Conv, layers.Dense, layers.Activation)
  found = {call.path: call.module.quantizer() for call in calls}
  assert {path: quantizer and (type(quantizer).__name__, quantizer.bits) for path, quantizer in found.items()} == {
    'net/conv0': None,  # the first layer and the last keep 32 bits
    'net/act0': ('Activation', 2),
    'net/conv1': ('Weight', 3),
    'net/act1': None,
    'net/last': None,
  }


def test_a_visitor_reads_variables_and_may_change_what_a_layer_gives():
  variables, sums = init(), {}

  def visit(call):
    sums[call.path] = np.sum(call.module.variables['params']['kernel'])
    return jnp.zeros_like(call.output) if call.path == 'net/conv1' else None

  with inspect.visit_layers(visit, layers.Conv, layers.Dense):
    y = Outer().apply(variables, X, False)
  # Of zeros, the ReLU gives 0 and the classifier its bias, which starts at 0.
  np.testing.assert_array_equal(y, np.zeros((2, 7)))
  np.testing.assert_allclose(
    list(sums.values()),
    [np.sum(variables['params']['net'][k]['kernel']) for k in ('conv0', 'conv1', 'last')],
    rtol=1e-6,
  )
  assert list(sums) == ['net/conv0', 'net/conv1', 'net/last']
  assert np.any(Outer().apply(variables, X, False))  # after the block, nothing is changed


def test_values_of_a_quantizer_are_what_it_learned_and_what_it_fitted():
  variables = {
    'params': {'net': {'conv1': {'kernel': 1, 'weight_quantizer': {'step': 2, 'shift': 3}}, 'act0': {}}},
    'quantizer_state': {
      'net': {'conv1': {'weight_quantizer': {'top': 4}}, 'act0': {'activation_quantizer': {'top': 5}}}
    },
    'batch_stats': {'net': {'conv1': {'weight_quantizer': {'mean': 6}}}},
  }
  assert inspect.quantizer_values(variables, 'net', 'conv1', 'weight_quantizer') == {'step': 2, 'shift': 3, 'top': 4}
  assert inspect.quantizer_values(variables, 'net', 'act0', 'activation_quantizer') == {'top': 5}
  assert inspect.quantizer_values(variables, 'net', 'conv0', 'weight_quantizer') == {}
  assert inspect.quantizer_values({'params': {'weight_quantizer': {'step': 2}}}, 'weight_quantizer') == {'step': 2}
  assert inspect.quantizer_values({}, 'weight_quantizer') == {}


def test_names_of_quantizers_are_those_in_the_variables():
  (found,) = {path[-2:] for path in map(tuple, _paths(init()['params'])) if inspect.is_quantizer_path(path)} - {
    ('activation_quantizer', 'step')
  }
  assert found == (layers.quantizer_name('weight'), 'step') == ('weight_quantizer', 'step')
  assert inspect.is_quantizer_path(('params', 'net', 'act0', 'activation_quantizer', 'step'))
  assert not inspect.is_quantizer_path(('params', 'net', 'quantizer', 'kernel'))


def _paths(tree):
  return [[key.key for key in path] for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
