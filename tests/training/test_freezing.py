"""Freezing of oscillating weights: by hand, against a loop over single weights, and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import metric_log
from cmtkd_jax.training import build, freezing, loop
from tests import networks

tiny_model = networks.named(networks.tiny((4, 1, 'first'), (6, 2, 'body')))


def test_by_hand():
  """Codes 1 2 1 1 2 with m = 1/2: no oscillation at the first change, one at each of the next two."""
  known, seen = freezing.track(jnp.array([1])), []
  for code in (2, 1, 1, 2):
    known = freezing.observe(known, jnp.array([code]), 0.5, 0.6)
    seen.append((float(known.frequency[0]), float(known.mean[0]), bool(known.frozen[0])))
  # f: 0, 1/2, 1/4, 5/8; e: 3/2, 5/4, 9/8, 25/16. It is frozen where it was before the last step, at round(9/8).
  assert seen == [(0, 1.5, False), (0.5, 1.25, False), (0.25, 1.125, False), (0.625, 1.5625, True)]
  assert int(known.code[0]) == 1
  assert bool(freezing.observe(known, jnp.array([1]), 0.5, 0.6).frozen[0])  # for good


def reference(codes, m, threshold):
  """Step at which one weight is frozen, and its code there; or None."""
  last, direction, f, e = codes[0], 0, 0.0, float(codes[0])
  for t, code in enumerate(codes[1:], 1):
    change = int(np.sign(code - last))
    f = m * (change != 0 and change == -direction) + (1 - m) * f
    if f > threshold:
      return t, round(e)
    e = m * code + (1 - m) * e
    direction, last = change or direction, code
  return None


def test_against_a_loop_over_single_weights():
  codes = np.random.default_rng(0).integers(0, 3, (60, 5, 4))
  codes[:, 0] = 1  # never changes
  codes[:, 1] = np.arange(60)[:, None] // 20  # changes in one direction
  known, frozen_at, kept = freezing.track(jnp.asarray(codes[0])), np.full((5, 4), -1), np.full((5, 4), -1)
  step = jax.jit(lambda known, codes: freezing.observe(known, codes, 0.1, 0.4))
  for t in range(1, 60):
    known = step(known, jnp.asarray(np.where(known.frozen, known.code, codes[t])))
    new = np.asarray(known.frozen) & (frozen_at < 0)
    frozen_at[new], kept[new] = t, np.asarray(known.code)[new]
  expected = [[reference(list(codes[:, i, j]), 0.1, 0.4) or (-1, -1) for j in range(4)] for i in range(5)]
  np.testing.assert_array_equal(np.stack([frozen_at, kept], -1), expected)
  np.testing.assert_array_equal(np.asarray(known.code)[kept >= 0], kept[kept >= 0])
  assert (frozen_at[:2] == -1).all() and (frozen_at[2:] > 0).any()


def test_a_weight_that_is_pushed_back_and_forth_stays():
  """Under a gradient that changes its sign, a weight at a threshold oscillates; one far from it does not."""
  quantizer = quantizers.QUANTIZERS['lsq'].Weight(bits=2)
  kernel = jnp.array([[0.5, 0.9, -0.1]])  # step 1: thresholds at 0.5 and -0.5
  params = {'student': {'conv': {'kernel': kernel, 'weight_quantizer': {'step': jnp.float32(1)}}}}
  transform = freezing.freeze_oscillations(optax.sgd(1.0), {'student/conv': quantizer}, 0.5, 0.4)
  state = transform.init(params)
  for t in range(12):
    push = jnp.float32(0.05 if t % 2 else -0.05)
    gradients = jax.tree.map(lambda x, push=push: jnp.full_like(x, push), params)
    gradients['student']['conv']['weight_quantizer']['step'] = jnp.float32(0)
    updates, state = transform.update(gradients, state, params)
    before, params = params, optax.apply_updates(params, updates)
  moved = np.asarray(params['student']['conv']['kernel'] != before['student']['conv']['kernel'])[0]
  np.testing.assert_array_equal(moved, [False, True, True])
  assert float(freezing.frozen_fractions(state)['student/frozen_weights']) == pytest.approx(100 / 3)


@pytest.mark.parametrize('name', ['lsq', 'hwgq', 'sawb'])
def test_frozen_codes_stay_while_scales_move(name):
  """Steps that grow, and weights of a spread that grows, would carry a latent weight over its threshold."""
  quantizer = quantizers.QUANTIZERS[name].Weight(bits=3)
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
  learned = {'weight_quantizer': quantizer.init(kernel)} if quantizer.learned else {}
  params = {'student': {'conv': {'kernel': kernel, **learned}}}
  transform = freezing.freeze_oscillations(optax.sgd(1.0), {'student/conv': quantizer}, 0.5, 0.4)
  state, update = transform.init(params), jax.jit(transform.update)
  codes = lambda: np.asarray(
    quantizer.quantize(params['student']['conv']['kernel'], params['student']['conv'].get('weight_quantizer')).codes
  )
  frozen = np.zeros(kernel.shape, bool)
  for t in range(30):
    conv = params['student']['conv']
    gradients = jax.tree.map(lambda x: -0.02 * x, conv)
    gradients['kernel'] += jnp.asarray(rng.choice((-0.3, 0.3), kernel.shape), jnp.float32) * (-1) ** t
    held = codes()
    updates, state = update({'student': {'conv': gradients}}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(codes()[frozen], held[frozen])
    frozen = np.asarray(state.tracks['student']['conv'].frozen)
    np.testing.assert_array_equal(codes()[frozen], np.asarray(state.tracks['student']['conv'].code)[frozen])
  assert 0.2 < frozen.mean() < 1


@pytest.mark.parametrize('name, bits', [('hwgq', 1), ('hwgq', 2), ('sawb', 2), ('n2uq', 3), ('lqw_caq', 2), ('lsq', 2)])
@pytest.mark.parametrize('share', [0.9, 1.0])
def test_scales_that_are_measured_on_frozen_weights_stay(name, bits, share):
  """A weight that followed its level at every step would move the scale that it follows, and so on."""
  quantizer = quantizers.QUANTIZERS[name].Weight(bits=bits)
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(0.05 * rng.normal(size=(64, 8)), jnp.float32)
  learned = {'weight_quantizer': quantizer.init(kernel)} if quantizer.learned else {}
  params = {'student': {'conv': {'kernel': kernel, **learned}}}
  transform = freezing.freeze_oscillations(optax.sgd(1.0), {'student/conv': quantizer}, 0.5, 0.4)
  state, still = transform.init(params), jax.tree.map(jnp.zeros_like, params)
  known = state.tracks['student']['conv']._replace(frozen=jnp.asarray(rng.random(kernel.shape) < share))
  state, update = state._replace(tracks={'student': {'conv': known}}), jax.jit(transform.update)
  weights = lambda: quantizer.fake_quantize(params['student']['conv']['kernel'], learned.get('weight_quantizer'))
  seen = []
  for _ in range(30):
    updates, state = update(still, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(np.asarray(weights()))
  np.testing.assert_array_equal(seen[-1], seen[0])


def test_weights_that_find_no_rest_stay_and_others_of_their_layer_move():
  """3-bit N2UQ: equal weights of a channel are 1 / 1.75 of its range, so those that move to its ends widen it."""
  quantizer = quantizers.QUANTIZERS['n2uq'].Weight(bits=3)
  restless, others = np.array([0.1, 0.1, -0.1, -0.1]), np.array([0.4, 0.1, -0.1, -0.2])
  kernel = jnp.asarray(np.stack([restless, others], -1), jnp.float32)
  params = {'student': {'conv': {'kernel': kernel}}}
  transform = freezing.freeze_oscillations(optax.sgd(1.0), {'student/conv': quantizer}, 0.5, 0.4)
  state = transform.init(params)
  known = state.tracks['student']['conv']
  code = known.code.at[:, 0].set(jnp.array([7, 7, 0, 0], jnp.int16)).at[1, 1].add(jnp.int16(1))
  known = known._replace(code=code, frozen=jnp.ones(kernel.shape, bool).at[0, 1].set(False))
  state = state._replace(tracks={'student': {'conv': known}})
  updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), state, params)
  moved = np.asarray(optax.apply_updates(params, updates)['student']['conv']['kernel'])
  np.testing.assert_array_equal(moved[:, 0], kernel[:, 0])
  assert moved[1, 1] != kernel[1, 1] and quantizer.quantize(moved).codes[1, 1] == code[1, 1]


def make_config(**fields):
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      'data.name': 'generated:8x8x1:5:64',
      'model.name': 'tiny',
      'quantizer.name': 'lsq',
      'method.cmtkd.teacher_bits': (4, 5),
      'batch_size': 16,
      'duration': '6 steps',
      'eval_every': '',
      'checkpoint_every': '',
      'log_every': '1 steps',
      'tensorboard': False,
      'optimizer.learning_rate': 2.0,
      'freezing.threshold': 0.01,
      'freezing.momentum': 0.5,
      **fields,
    }
  )
  return config


def test_a_run_freezes_weights_and_logs_how_many(tmp_path):
  loop.train_and_evaluate(make_config(), tmp_path)
  rows = [row for row in metric_log.read(tmp_path) if 'train/loss' in row]
  for network in ('student', 'teacher1_4bit'):
    frozen = [row[f'train/{network}/frozen_weights'] for row in rows]
    assert frozen == sorted(frozen) and frozen[0] == 0 < frozen[-1] <= 100
  # Five bits are more than the limit.
  assert not any('teacher2_5bit/frozen_weights' in name for row in rows for name in row)


def test_what_is_refused_and_what_is_left_alone():
  method = build.create_method(make_config(**{'quantizer.weights': 'lq_nets'}), 5)
  transform = optax.sgd(0.1)
  with pytest.raises(UserError, match='config.freezing.threshold=0.01: .* teacher1_4bit/stage2/conv1 fits its levels'):
    freezing.add(transform, make_config(), method, (8, 8, 1))
  assert freezing.add(transform, make_config(**{'freezing.threshold': 0.0}), method, (8, 8, 1)) is transform


@pytest.mark.parametrize(
  'name, bits, keeps',
  [
    *[
      (name, bits, True) for name, bits in (('lsq', 8), ('hwgq', 2), ('sawb', 2), ('twn', 2), ('xnor', 1), ('n2uq', 2))
    ],
    *[(name, bits, False) for name, bits in (('ewgs', 2), ('dorefa', 4), ('dorefa', 2), ('pact', 3), ('apot', 3))],
  ],
)
def test_which_quantizers_map_levels_to_themselves(name, bits, keeps):
  """EWGS only where its scale fits its interval, which training changes; DoReFa, PACT and APoT change the unit."""
  assert freezing.maps_levels_to_themselves(quantizers.QUANTIZERS[name].Weight(bits)) == keeps


def test_a_quantizer_that_moves_its_levels_is_refused():
  method = build.create_method(make_config(**{'quantizer.weights': 'dorefa'}), 5)
  with pytest.raises(UserError, match='config.freezing.threshold=0.01: .* does not map its levels to themselves'):
    freezing.add(optax.sgd(0.1), make_config(), method, (8, 8, 1))


def test_a_limit_below_all_weights_is_said(caplog):
  config, transform = make_config(**{'freezing.max_bits': 1}), optax.sgd(0.1)
  assert freezing.add(transform, config, build.create_method(config, 5), (8, 8, 1)) is transform
  assert 'freezes nothing in this run' in caplog.text and 'config.freezing.max_bits=1 bits' in caplog.text
