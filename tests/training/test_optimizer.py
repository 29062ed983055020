"""Optimizer groups on the updates themselves, and the schedules of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.training import build, optimizer

SIZES = dict(steps_per_epoch=20, batch_size=64)
RATE = 0.05


class FakeMethod:
  has_importance = True
  frozen = ('expert',)

  def __init__(self, **weight_bits):
    self.weight_bits = weight_bits


METHOD = FakeMethod(student=2, binary_teacher=1, teacher1_2bit=2, teacher2_3bit=3, teacher3_8bit=8, teacher4=32)
# Parameter path: (learning rate relative to the network's, weight decay).
GROUPS = {
  ('student', 'stage1', 'conv', 'kernel'): (1, 25e-6),
  ('student', 'stage1', 'norm', 'scale'): (1, 25e-6),
  ('student', 'head', 'classifier', 'bias'): (1, 25e-6),
  ('student', 'stage1', 'conv', 'weight_quantizer', 'step'): (1, 0),
  ('binary_teacher', 'stage1', 'conv', 'kernel'): (1, 25e-6),
  ('teacher1_2bit', 'stage1', 'conv', 'kernel'): (1, 25e-6),
  ('teacher2_3bit', 'stage1', 'conv', 'kernel'): (1, 1e-4),
  ('teacher3_8bit', 'stage1', 'norm', 'bias'): (1, 1e-4),
  ('teacher3_8bit', 'stage1_activation', 'activation_quantizer', 'step'): (1, 0),
  ('teacher4', 'stage1', 'conv', 'kernel'): (1, 1e-4),
  ('combined_head', 'classifier', 'kernel'): (1, 1e-4),
  ('combined_head', 'fc6', 'weight_quantizer', 'step'): (1, 0),
  ('adaptor_tap3', 'conv', 'kernel'): (1, 1e-4),
  ('importance', 'tap3'): (0.1, 0),
}


def tree_of(values):
  tree = {}
  for path, value in zip(GROUPS, values):
    node = tree
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = jnp.asarray(value)
  return tree


def leaves(tree):
  return [np.asarray(get(tree, path), np.float64) for path in GROUPS]


def get(tree, path):
  for name in path:
    tree = tree[name]
  return tree


def draw(seed, scale=1.0):
  # Parameters far larger than gradients: the decay must show in float32.
  return (np.random.default_rng(seed).normal(size=(len(GROUPS), 3)) * scale).astype(np.float32)


@pytest.mark.parametrize(
  'options', [dict(), dict(nesterov=True, momentum=0.5), dict(grad_clip_norm=0.02)], ids=['default', 'nesterov', 'clip']
)
def test_updates_of_every_group(options):
  config = config_lib.default()
  config.optimizer.update(options)
  momentum = config.optimizer.momentum
  schedule = lambda step: jnp.where(step == 0, RATE, RATE / 5)
  transform = optimizer.create(config, METHOD, schedule)
  weights = [draw(0, 100.0), draw(1, 100.0)]
  gradients = [draw(2, 0.01), draw(3, 0.01)]
  state = transform.init(tree_of(weights[0]))
  factors = np.array([[factor] for factor, _ in GROUPS.values()])
  decays = np.array([[decay] for _, decay in GROUPS.values()])
  velocity = 0
  for step, rate in enumerate((RATE, RATE / 5)):
    updates, state = transform.update(tree_of(gradients[step]), state, tree_of(weights[step]))
    g = gradients[step].astype(np.float64)
    if config.optimizer.grad_clip_norm:
      assert np.linalg.norm(g) > 0.02
      g = g * 0.02 / np.linalg.norm(g)  # one norm of everything, before the decay
    g = g + decays * weights[step].astype(np.float64)
    velocity = momentum * velocity + g
    direction = g + momentum * velocity if config.optimizer.nesterov else velocity
    np.testing.assert_allclose(leaves(updates), -rate * factors * direction, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize('quantizer, expected', [('lsq', (0.01, 3e-4)), ('pact', (1, 25e-6))])
def test_rate_and_decay_of_learned_values_of_quantizers(quantizer, expected):
  """-rate factor (g + decay w) for the student's step; the clip of PACT counts as a weight of its network."""
  config = config_lib.default()
  config.quantizer.name = quantizer
  config.optimizer.update(quantizer_lr_factor=0.01, quantizer_weight_decay=3e-4)
  transform = optimizer.create(config, METHOD, lambda step: RATE)
  name = {'lsq': 'step', 'pact': 'clip'}[quantizer]
  tree = lambda kernel, value: {
    'student': {'conv': {'kernel': jnp.float32(kernel)}, 'activation_quantizer': {name: jnp.float32(value)}}
  }
  params = tree(200.0, 100.0)
  updates, _ = transform.update(tree(0.02, 0.03), transform.init(params), params)
  factor, decay = expected
  np.testing.assert_allclose(updates['student']['conv']['kernel'], -RATE * (0.02 + 25e-6 * 200), rtol=1e-5)
  value = updates['student']['activation_quantizer'][name]
  np.testing.assert_allclose(value, -RATE * factor * (0.03 + decay * 100), rtol=1e-5)


@pytest.mark.parametrize(
  'name, nesterov, shape', [('adamw', False, 3), ('adamw', True, 3), ('lamb', False, (3, 1)), ('lamb', False, 3)]
)
def test_adaptive_updates_of_every_group(name, nesterov, shape):
  """Kingma and Ba's moments without bias; decay times the rate; LAMB: the norm of each array, but of no vector."""
  config = config_lib.default()
  config.optimizer.update(name=name, nesterov=nesterov, momentum=0.8, beta2=0.95, weight_decay=0.05)
  transform = optimizer.create(config, METHOD, lambda step: jnp.where(step == 0, RATE, RATE / 5))
  weights, gradients = [draw(0), draw(1)], [draw(2, 0.01), draw(3, 0.01)]
  tree = lambda rows: jax.tree.map(lambda x: x.reshape(shape), tree_of(rows))
  state = transform.init(tree(weights[0]))
  factors = np.array([[factor] for factor, _ in GROUPS.values()])
  decays = np.array([[{1e-4: 0.05}.get(decay, decay)] for _, decay in GROUPS.values()])
  m = v = 0
  for step, rate in enumerate((RATE, RATE / 5)):
    updates, state = transform.update(tree(gradients[step]), state, tree(weights[step]))
    g, w = gradients[step].astype(np.float64), weights[step].astype(np.float64)
    m, v, t = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2, step + 1
    first = m / (1 - 0.8**t)
    if nesterov:
      first = 0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
    direction = first / (np.sqrt(v / (1 - 0.95**t)) + (1e-6 if name == 'lamb' else 1e-8)) + decays * w
    if name == 'lamb' and shape != 3:
      direction *= np.linalg.norm(w, axis=1, keepdims=True) / np.linalg.norm(direction, axis=1, keepdims=True)
    updates = jax.tree.map(jnp.ravel, updates)
    np.testing.assert_allclose(leaves(updates), -rate * factors * direction, rtol=1e-4, atol=1e-9)


def test_lamb_moves_what_starts_at_zero():
  """Importance factors of 0 under a constant gradient: the first ten steps are the rate each, not rate^2 and less."""
  config = config_lib.default()
  config.optimizer.name = 'lamb'
  transform = optimizer.create(config, METHOD, lambda step: RATE)
  params = {'importance': {'tap3': jnp.zeros(2)}}
  state = transform.init(params)
  for _ in range(10):
    updates, state = transform.update({'importance': {'tap3': jnp.array([1.0, -1.0])}}, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  np.testing.assert_allclose(params['importance']['tap3'], [-RATE, RATE], rtol=1e-4)  # ten steps of a tenth of the rate


def test_small_gradients_are_not_clipped():
  config = config_lib.default()
  results = []
  for clip in (None, 1e3):
    config.optimizer.grad_clip_norm = clip
    transform = optimizer.create(config, METHOD, lambda step: RATE)
    params = tree_of(draw(0))
    results.append(leaves(transform.update(tree_of(draw(1)), transform.init(params), params)[0]))
  np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
  'field, value', [('grad_clip_norm', 1.0), ('weight_decay_low_bits', 0.0), ('quantizer_weight_decay', 1e-4)]
)
def test_a_run_can_resume_with_another_clipping_or_decay(field, value):
  config = config_lib.default()
  structures = []
  for change in ({}, {field: value}):
    config.optimizer.update(change)
    state = optimizer.create(config, METHOD, lambda step: RATE).init(tree_of(draw(0)))
    structures.append(jax.tree.structure(state))
  assert structures[0] == structures[1]


def abstract_params(config):
  method = build.create_method(config, 10)
  images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  return method, jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)['params']


def test_groups_of_a_real_method():
  config = config_lib.default()
  config.quantizer.name, config.feature_loss.name = 'lsq', 'fitnet'
  config.method.cmtkd.teacher_bits = (2, 4)
  method, params = abstract_params(config)
  groups, seen = optimizer.groups(config, method), {}
  for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
    names = tuple(key.key for key in path)
    group = groups[optimizer.group_of(names, method)]
    last = 'step' if names[-1] == 'step' else 'weights'
    seen.setdefault((names[0], last), set()).add((group.learning_rate_factor, group.weight_decay))
  networks = {'student': 25e-6, 'teacher1_2bit': 25e-6, 'teacher2_4bit': 1e-4}
  assert seen == {
    **{(name, 'weights'): {(1.0, decay)} for name, decay in networks.items()},
    **{(name, 'step'): {(1.0, 0.0)} for name in networks},
    **{(f'adaptor_tap{tap}', 'weights'): {(1.0, 1e-4)} for tap in (3, 5, 7)},
    ('combined_head', 'weights'): {(1.0, 1e-4)},
    ('importance', 'weights'): {(0.1, 0.0)},
  }


@pytest.mark.parametrize('bits, decay', [(1, 25e-6), (2, 25e-6), (3, 1e-4), (4, 1e-4), (8, 1e-4), (32, 1e-4)])
def test_decay_of_a_single_network(bits, decay):
  config = config_lib.default()
  config.method.name, config.student.weight_bits = 'single', bits
  method = build.create_method(config, 10)
  path = ('student', 'stage1', 'stem', 'conv', 'kernel')
  assert optimizer.groups(config, method)[optimizer.group_of(path, method)] == optimizer.Group(1.0, decay)


@pytest.mark.parametrize(
  'name, expected',
  [
    ('single', {'train/learning_rate': 0.5}),
    ('cmtkd', {'train/learning_rate': 0.5, 'train/importance/learning_rate': 0.05}),
  ],
)
def test_rates_that_are_logged(name, expected):
  config = config_lib.default()
  config.method.name = name
  assert optimizer.rates(config, build.create_method(config, 10), 0.5) == pytest.approx(expected)


# Schedules.


def rates(total_steps, steps, **options):
  config = config_lib.default()
  config.optimizer.update(learning_rate=0.4, **options)
  schedule = optimizer.learning_rate(config, total_steps, **SIZES)
  return [float(schedule(step)) for step in steps]


def test_a_decay_before_the_end_of_the_warmup_is_refused():
  with pytest.raises(UserError, match=r"decay_at='9, 20 steps' begins before config.optimizer.warmup='10 steps' ends"):
    rates(100, (0,), warmup='10 steps', decay_at='9, 20 steps')


def test_step_decay():
  # The step of number s (from 0) is the first of epoch s / 20: epochs 0..49 at the full rate.
  steps = (0, 999, 1000, 1999, 2000, 2399)
  expected = [0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
  np.testing.assert_allclose(rates(2400, steps, decay_at='50, 100 epochs'), expected, rtol=1e-6)
  np.testing.assert_allclose(rates(2400, (0, 2399), decay_at=''), [0.4, 0.4], rtol=1e-6)
  halved = rates(2400, (9, 10), decay_at='10 steps', decay_factor=0.5)
  np.testing.assert_allclose(halved, [0.4, 0.2], rtol=1e-6)


def test_cosine():
  steps = (0, 1, 50, 99, 100)
  expected = [0.2 * (1 + np.cos(np.pi * step / 100)) for step in steps]
  np.testing.assert_allclose(rates(100, steps, schedule='cosine'), expected, rtol=1e-5, atol=1e-8)


def test_warmup_goes_before_either_schedule():
  steps = (0, 5, 9, 10, 29, 30, 99)
  warmup = [0.0, 0.2, 0.36]
  np.testing.assert_allclose(
    rates(100, steps, warmup='10 steps', decay_at='30 steps'), [*warmup, 0.4, 0.4, 0.04, 0.04], rtol=1e-6
  )
  cosine = [0.2 * (1 + np.cos(np.pi * (step - 10) / 90)) for step in steps[3:]]
  np.testing.assert_allclose(
    rates(100, steps, warmup='10 steps', schedule='cosine'), [*warmup, *cosine], rtol=1e-4, atol=1e-8
  )


def test_schedule_counts_the_optimizers_own_steps():
  config = config_lib.default()
  config.optimizer.update(decay_at='1 steps', momentum=0.0, weight_decay=0.0, weight_decay_low_bits=0.0)
  transform = optimizer.create(config, METHOD, optimizer.learning_rate(config, 10, **SIZES))
  params = {'student': jnp.zeros(()), 'importance': jnp.zeros(())}
  state, gradients = transform.init(params), jax.tree.map(jnp.ones_like, params)
  for expected in (0.1, 0.01):
    updates, state = transform.update(gradients, state, params)
    np.testing.assert_allclose(
      [float(updates['student']), float(updates['importance'])], [-expected, -0.1 * expected], rtol=1e-6
    )
  assert jax.tree.leaves(optax.apply_updates(params, updates))[0].dtype == jnp.float32
