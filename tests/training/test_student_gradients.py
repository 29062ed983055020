"""`benchmarks/student_gradients.py`: the terms that it differentiates add up to the gradient of the train step."""

import importlib
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.training import build, optimizer
from cmtkd_jax.training.step import initial_state, train_step
from tests import networks

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks'

tiny_model = networks.named(networks.tiny((4, 1, 'body'), (6, 2, 'body')))


@pytest.mark.parametrize('other, beta, feature_loss', [('mutual', 0.5, 'none'), ('feature', 0.0, 'attention')])
def test_terms_of_mixed_images(other, beta, feature_loss, monkeypatch):
  monkeypatch.syspath_prepend(BENCHMARKS)
  measure = importlib.import_module('student_gradients').measure
  config = config_lib.default()
  config.model.name, config.feature_loss.name = 'tiny', feature_loss
  config.method.cmtkd.teacher_bits, config.method.cmtkd.beta = (8,), beta
  method = build.create_method(config, 5)
  mix = lambda key, images: (0.7 * images + 0.3 * jnp.roll(images, 1, 0), 0.7)
  data = types.SimpleNamespace(augment=lambda key, images: images / 64 - 2, mix=mix)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (6, 6, 6, 1)).astype(np.uint8),
    'label': rng.integers(0, 5, 6).astype(np.int32),
  }
  parts = dict(method=method, optimizer=optimizer.create(config, method, lambda step: 0.1), augment=data.augment)

  @jax.jit
  def run(batch):
    state = initial_state({}, batch, **parts, seed=0)
    found = measure(state.variables, batch, jax.random.key(0), method=method, dataset=data)
    return found, train_step(state, batch, **parts, mix=mix)[1]

  found, metrics = run(batch)
  a, b, cosine = (found[name] for name in ('cross_entropy_norm', f'{other}_norm', f'{other}_cosine'))
  assert min(a, b) > 0
  np.testing.assert_allclose(np.sqrt(a**2 + b**2 + 2 * a * b * cosine), metrics['student/gradient_norm'], rtol=1e-5)
