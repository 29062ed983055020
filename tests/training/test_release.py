"""What measuring statistics again relies on: settings that reach every normalization, and keys of their own."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from cmtkd_jax import config as config_lib
from cmtkd_jax.models import inspect
from cmtkd_jax.models.batch_norm import BatchNorm
from cmtkd_jax.training import build, release
from cmtkd_jax.training.step import SAMPLING
from tests import networks

tiny_model = networks.named(networks.tiny((4, 1, 'first'), (6, 2, 'body')))


def test_every_normalization_is_as_configured():
  """Adaptors, which belong to no network, have theirs too."""
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      'model.name': 'tiny',
      'model.bn_momentum': 0.0,
      'model.bn_groups': 2,
      'model.bn_affine': False,
      'method.cmtkd.teacher_bits': (4,),
      'feature_loss.name': 'ofd',
    }
  )
  method = build.create_method(config, 5)
  calls = inspect.layer_calls(lambda: method.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True), BatchNorm)
  found = {call.path: (call.module.momentum, call.module.groups, call.module.affine) for call in calls}
  assert {path.split('/')[0] for path in found} == {'student', 'teacher1_4bit', 'adaptor_tap1', 'adaptor_tap2'}
  assert set(found.values()) == {(0.0, 2, False)}


def test_every_part_draws_on_its_own_and_apart_from_the_augmentation():
  seen = []

  def apply(variables, images, train, mutable, rngs):
    return None, {'batch_stats': {'mean': jax.random.uniform(rngs['sampling'])}}

  total = release.add_batch(
    release.Statistics.start({'mean': jnp.float32(0)}),
    {'params': {}, 'batch_stats': {'mean': jnp.float32(0)}},
    3,
    {'image': jnp.zeros((4, 2, 2, 1))},
    method=types.SimpleNamespace(apply=apply, views=1),
    augment=lambda key, images: seen.append(key) or images,
    seed=0,
    parts=4,
  )
  keys = jax.random.split(jax.random.fold_in(seen[0], SAMPLING), 4)
  drawn = np.array([jax.random.uniform(key) for key in keys])
  np.testing.assert_allclose(total.average['mean'], drawn.mean(), rtol=1e-6)
  np.testing.assert_allclose(total.spread['mean'], 4 * drawn.var(), rtol=1e-5)
