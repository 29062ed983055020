"""What the configuration asks of networks that cannot do it is refused before anything runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import methods
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods import METHODS
from cmtkd_jax.models import Network
from cmtkd_jax.training import build, plan, teachers
from tests import networks

TINY = networks.tiny((4, 1, 'first'), (6, 2, 'body'))


@pytest.fixture(scope='module', autouse=True)
def tiny_model():
  """'tiny', also where a method names networks of its own."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(methods.ctkd.models.MODELS, 'tiny', TINY)
    yield


def make_method(name):
  config = config_lib.default()
  config.update_from_flattened_dict({'model.name': 'tiny', 'method.name': name, 'data.minival': 0.25})
  config.method.ctkd.update({'teacher_model': 'tiny', 'shared_stem': False})
  config.method.qkd.phase, config.method.apprentice.scheme = 'co_studying', 'B'
  trained = teachers.Teacher('/nowhere', config_lib.default())
  trained.config.model.name = 'tiny'
  count = {'kd': 1, 'apprentice': 1, 'ctkd': 1, 'average_teacher': 2}.get(name, 0)
  return config, build.create_method(config, 5, count * (trained,))


def recomputed(method):
  """Names of the networks whose stages run in training."""
  found = set()

  def intercept(next_function, args, kwargs, context):
    if isinstance(context.module, Network) and context.method_name == 'stage' and (*args, *kwargs.values())[2]:
      found.add('/'.join(context.module.path))
    return next_function(*args, **kwargs)

  images = jnp.zeros((2, 8, 8, 1)) if method.views == 1 else jnp.zeros((method.views, 2, 8, 8, 1))
  with nn.intercept_methods(intercept):
    jax.eval_shape(lambda: method.init(jax.random.key(0), images, train=True))
  return found


@pytest.mark.parametrize('name', METHODS)
def test_remat_names_a_network_that_heeds_it(name):
  config, method = make_method(name)
  heeding = recomputed(method)
  assert 'student' in heeding
  check = lambda: plan.learning(config, method, (8, 8, 1), 2, steps_per_epoch=1, batch_size=2)
  images = jnp.zeros((2, 8, 8, 1))
  networks_of = jax.eval_shape(lambda: method.init(jax.random.key(0), images, train=False))['params'].keys()
  for network in networks_of:
    config.remat = network
    if network in heeding:
      check()
      continue
    with pytest.raises(UserError, match=rf"^config.remat='{network}' matches none of .*student.*, or '\.\*'$"):
      check()
  config.remat = '.*'
  check()
