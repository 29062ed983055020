"""Averages of the networks: their weights by hand, whole averages against NumPy, and what a run makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.training import averaging

SIZES = dict(steps_per_epoch=10, batch_size=4)


def test_ema_weights_by_hand():
  # n = 0, 1, 2: 1 - min(d, (1 + n) / (10 + n)) = 1 - 1/10, 1 - 2/11, 1 - 3/12
  weights = [float(averaging.ema_weight(jnp.int32(t), 3, 0.9)) for t in (0, 2, 3, 4, 5, 500)]
  np.testing.assert_allclose(weights, [1, 1, 0.9, 9 / 11, 0.75, 0.1], rtol=1e-6)


def test_swa_weights_by_hand():
  weights = [float(averaging.swa_weight(jnp.int32(t), 4, 3)) for t in range(12)]
  np.testing.assert_allclose(weights, [1, 1, 1, 1, 1, 0, 0, 1 / 2, 0, 0, 1 / 3, 0], rtol=1e-6)


def make(**fields):
  config = config_lib.default()
  for name, value in fields.items():
    config.averaging[name] = value
  return averaging.create(config, 40, **SIZES)


def run(average, values):
  """The average after each of `values`, those of a parameter after steps 1, 2, ..."""
  kept, seen = average.init({'params': jnp.float32(values[0])}), []
  for step, value in enumerate(values, 1):
    kept = average.update(kept, {'params': jnp.float32(value)}, jnp.int32(step))
    seen.append(float(kept['params']))
  return seen


def test_swa_is_the_mean_of_the_networks_at_regular_steps():
  values = np.random.default_rng(0).normal(size=40)
  seen = run(make(name='swa', start='2 epochs', every='5 steps'), values)
  np.testing.assert_allclose(seen[18], values[18], rtol=1e-6)  # after step 19, before the start: the network itself
  np.testing.assert_allclose(seen[-1], np.mean([values[s - 1] for s in (20, 25, 30, 35, 40)]), rtol=1e-5)


def test_swa_without_a_start_leaves_out_the_network_that_has_learned_nothing():
  values = np.random.default_rng(3).normal(size=40)
  for start in ('', '0 steps'):
    average = make(name='swa', start=start, every='10 steps')
    kept = average.init({'params': jnp.float32(1e6)})  # the initial network, before any step
    for step, value in enumerate(values, 1):
      kept = average.update(kept, {'params': jnp.float32(value)}, jnp.int32(step))
      if step == 5:
        assert float(kept['params']) == np.float32(value)
    np.testing.assert_allclose(float(kept['params']), np.mean(values[[9, 19, 29, 39]]), rtol=1e-5)


@pytest.mark.parametrize('fields', [dict(name='ema', decay=0.99), dict(name='swa', start='3 steps', every='2 steps')])
def test_what_does_not_change_keeps_its_bits(fields):
  """Such as frozen teachers."""
  x, average = {'params': jnp.asarray(np.random.default_rng(4).normal(size=999), jnp.float32)}, make(**fields)
  kept = average.init(x)
  for step in range(1, 40):
    kept = jax.jit(average.update)(kept, x, step)
  np.testing.assert_array_equal(kept['params'], x['params'])


def test_ema_against_a_loop():
  values, expected = np.random.default_rng(1).normal(size=40), None
  for t, value in enumerate(values, 1):
    decay = min(0.8, (1 + t) / (10 + t))
    expected = decay * (values[0] if expected is None else expected) + (1 - decay) * value
  seen = run(make(name='ema', decay=0.8), values)
  np.testing.assert_allclose(seen[-1], expected, rtol=1e-5)


def test_no_average_is_kept_by_default():
  average = make()
  assert average.init({'params': jnp.ones(3)}) == () == average.update((), {'params': jnp.ones(3)}, 1)
  assert not jax.tree.leaves(average.init({'params': jnp.ones(3)}))


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(name='swa', start='40 steps'), "config.averaging.start='40 steps' does not lie before the end of training"),
    (dict(name='swa', every='0 steps'), "config.averaging.every='0 steps' must be above 0"),
    (dict(name='swa', every=''), "config.averaging.every='' must be above 0"),
    (dict(name='swa', every='41 steps'), "config.averaging.every='41 steps': the first .* be that of step 41, after"),
    (dict(name='ema', start='soon'), "config.averaging.start='soon' is not a duration"),
  ],
)
def test_what_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    make(**fields)
