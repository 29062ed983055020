"""Every quantizer under CMT-KD, student and teacher: one compiled step at 2/2 bits and at an unequal pair.

`cli/test_every_choice.py` has every quantizer with other methods, too.
"""

import jax
import numpy as np
import pytest
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax import models, quantizers
from cmtkd_jax.training import build, optimizer
from cmtkd_jax.training.step import initial_state, train_step
from tests import networks
from tests.quantizers.cases import files

pytestmark = pytest.mark.integration

LABELS = np.array([0, 3, 1, 4], np.int32)
# (weight bits, activation bits) of the three layers, where a quantizer lacks the usual ones.
WIDTHS = {'n2uq': ((2, 2), (8, 3), (3, 3))} | {
  name: file.TRAINED_BITS for name, file in files().items() if hasattr(file, 'TRAINED_BITS')
}
USUAL = ((2, 2), (2, 4), (4, 4))


TINY = networks.tiny((4, 1, 'body'), (4, 1, 'body'), (6, 2, 'body'))


@pytest.mark.parametrize('name', quantizers.QUANTIZERS)
def test_one_compiled_step(name, monkeypatch):
  """One stage at 2/2 bits, one at an unequal pair, one at more: all is finite, what is learned or fitted moves."""
  equal, unequal, more = WIDTHS.get(name, USUAL)
  monkeypatch.setitem(models.MODELS, 'tiny', TINY)
  config = config_lib.default()
  config.method.name, config.quantizer.name = 'single', name
  config.student.weight_bits, config.student.activation_bits = equal
  config.bits.rules = (('student/stage1.*', *more), ('student/stage3.*', *unequal))
  config_lib.check(config)
  config.model.name = 'tiny'
  method = build.create_method(config, 5)
  parts = dict(
    method=method,
    optimizer=optimizer.create(config, method, lambda step: 0.1),
    augment=lambda key, images: images / 64 - 2,
  )
  rng = np.random.default_rng(0)
  batch = {'image': rng.integers(0, 256, (4, 6, 6, 1)).astype(np.uint8), 'label': LABELS}

  @jax.jit
  def run(batch):
    before = initial_state({}, batch, **parts, seed=0)
    return before, *train_step(before, batch, **parts)

  before, after, metrics = run(batch)
  assert all(np.isfinite(value) for value in metrics.values())
  old, new = (traverse_util.flatten_dict({'params': s.params, **s.model_state}) for s in (before, after))
  values = {path for path in new if any(part.endswith('_quantizer') for part in path)}
  assert all(np.isfinite(new[path]).all() for path in new)
  module = quantizers.QUANTIZERS[name]
  for stage, widths in (('stage2', equal), ('stage3', unequal)):
    for role, width in zip(('Weight', 'Activation'), widths, strict=True):
      if width == 32:
        continue
      quantizer = getattr(module, role)(width)
      for value in (*quantizer.learned, *quantizer.fitted):
        (path,) = (
          path
          for path in values
          if path[1] == 'student' and path[2].startswith(stage) and path[-2:] == (f'{role.lower()}_quantizer', value)
        )
        # A clip above all values has no gradient, nor has a scale before a normalization.
        assert value in ('clip', 'scale', 'output_scale') or not np.array_equal(old[path], new[path]), path


def test_a_clip_is_decayed_like_its_network_and_nothing_else_of_a_quantizer(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'tiny', TINY)
  config = config_lib.default()
  config.method.name, config.model.name, config.quantizer.name = 'single', 'tiny', 'pact'
  config.optimizer.weight_decay_low_bits, config.optimizer.momentum = 0.5, 0.0
  params = {'student': {'activation': {'activation_quantizer': {'clip': np.float32(4)}}}}

  def step(config, params):
    transform = optimizer.create(config, build.create_method(config, 5), lambda step: 0.1)
    updates, _ = transform.update(jax.tree.map(np.zeros_like, params), transform.init(params), params)
    return updates

  update = step(config, params)['student']['activation']['activation_quantizer']['clip']
  np.testing.assert_allclose(update, -0.1 * 0.5 * 4)
  config.quantizer.activations, params = (
    'lsq',
    {'student': {'activation': {'activation_quantizer': {'step': np.float32(4)}}}},
  )
  assert step(config, params)['student']['activation']['activation_quantizer']['step'] == 0
