"""The state before the first step: what trained networks lack starts as in a fresh start, from a part of a batch."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax.models import inspect
from cmtkd_jax.training import averaging, build, optimizer, plan, start
from cmtkd_jax.training.step import initial_state
from tests import networks

CLASSES = 5
tiny_model = networks.named(networks.tiny((4, 1, 'first'), (6, 2, 'body')))


def make_parts(**changes):
  """(configuration, arguments of `initial_state`)."""
  config = config_lib.default()
  config.update_from_flattened_dict({'model.name': 'tiny', 'method.cmtkd.teacher_bits': (8,), **changes})
  method = build.create_method(config, CLASSES)
  return config, dict(
    method=method,
    optimizer=optimizer.create(config, method, lambda step: 0.1),
    augment=lambda key, images: images.astype(jnp.float32) / 64 - 2,
  )


def make_batch():
  rng = np.random.default_rng(0)
  return {'image': rng.integers(0, 256, (8, 6, 6, 1)).astype(np.uint8), 'label': np.arange(8, dtype=np.int32) % CLASSES}


def test_what_trained_networks_lack_starts_before_the_first_step():
  """Quantizers and normalizations that are new have seen no step yet; what is loaded stays, whatever it is."""
  _, parts = make_parts(**{'quantizer.name': 'lq_nets', 'feature_loss.name': 'ofd', 'remat': '.*'})
  create = functools.partial(initial_state, **parts, seed=0)
  # Of the student everything; of the teacher what has no quantizer; no adaptors.
  has = lambda path: path[1] == 'student' or (path[1] == 'teacher1_8bit' and not inspect.is_quantizer_path(path))

  @jax.jit
  def run(batch):
    fresh = create({}, batch)
    flat = traverse_util.flatten_dict(fresh.variables)
    # Evaluation alone reads running statistics: others change nothing else.
    trained = {path: x + 3 if path[0] == 'batch_stats' else x for path, x in flat.items() if has(path)}
    return fresh, trained, create(traverse_util.unflatten_dict(trained), batch)

  fresh, trained, state = run(make_batch())
  found = traverse_util.flatten_dict(state.variables)
  expected = traverse_util.flatten_dict(fresh.variables) | trained
  assert found.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=str(path))
  for path in found.keys() - trained.keys():
    if path[-1] in ('updates', 'mean'):
      assert np.all(found[path] == 0), path
  adaptor = state.model_state['batch_stats']['adaptor_tap1']['norm']
  np.testing.assert_array_equal(adaptor['var'], 1)


def test_a_start_takes_no_more_images_than_a_part_of_a_step():
  """The rows of the step's first part: every fourth."""
  config, parts = make_parts(**{'quantizer.name': 'lsq', 'method.name': 'single', 'grad_accum_steps': 4})
  batch = make_batch()
  loader = types.SimpleNamespace(batches=lambda step: iter([batch]))
  run = plan.Plan(
    config=config,
    sharding=build.replicated(build.make_mesh(jax.devices()[:1])),
    dataset=types.SimpleNamespace(augment=parts['augment'], train=loader),
    schedule=None,
    teachers=(),
    method=parts['method'],
    layers=[],
    learning_rate=None,
    optimizer=parts['optimizer'],
    averaging=averaging.Averaging(),
    loss_at=None,
    patience=0,
  )
  state, _ = start.restore_or_create(run, types.SimpleNamespace(latest=lambda: None))
  few = jax.tree.map(lambda x: x[::4], batch)
  expected, whole = jax.jit(lambda *batches: [initial_state({}, b, **parts, seed=config.seed).params for b in batches])(
    few, batch
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state.params, expected)
  step = lambda params: params['student']['stage1_activation']['activation_quantizer']['step']
  assert step(expected) != step(whole)
