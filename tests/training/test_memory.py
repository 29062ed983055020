"""A lack of memory names the field that is to blame: that of the step, or that of the evaluation."""

import jax
import jax.numpy as jnp
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.training import evaluate, loop, memory
from tests import networks

tiny_model = networks.named(networks.tiny((4, 1, 'first'), (6, 2, 'body')))


def exhausted(*arguments):
  raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes')


@pytest.mark.parametrize('place', [(evaluate.Evaluator, 'evaluate'), (evaluate.MinivalUpdate, '__call__')])
def test_an_evaluation_that_does_not_fit_names_its_own_batch_size(place, tmp_path, monkeypatch):
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      'data.name': 'generated:8x8x1:5:32',
      'data.minival': 0.25,
      'model.name': 'tiny',
      'method.name': 'kdcl',
      'method.kdcl.peer_bits': (4,),
      'method.kdcl.ensemble': 'general',
      'batch_size': 16,
      'eval_batch_size': 8,
      'duration': '1 steps',
      'eval_every': '1 steps',
      'checkpoint_every': '',
      'tensorboard': False,
    }
  )
  metrics = {'loss': jnp.float32(1)}
  monkeypatch.setattr(loop, '_compile', lambda *unused: lambda state, batch: (state, metrics))
  monkeypatch.setattr(evaluate.MinivalUpdate, '__call__', lambda self, state: state)
  monkeypatch.setattr(*place, exhausted)
  with pytest.raises(UserError, match=r'^config.eval_batch_size=8 does not fit.*; lower it \(RESOURCE_EXHAUSTED: Out'):
    loop.train_and_evaluate(config, tmp_path)


def test_other_errors_of_an_evaluation_stay_what_they_are():
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'),
    memory.evaluation_errors_as_advice(config_lib.default()),
  ):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')
