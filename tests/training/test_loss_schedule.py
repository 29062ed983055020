"""Factors on loss weights by hand; a scheduled loss equals that of a method with the value of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses, models
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods import METHODS, Outputs
from cmtkd_jax.training import build, loss_schedule
from cmtkd_jax.training.teachers import Teacher
from tests import networks

SIZES = dict(steps_per_epoch=10, batch_size=4)
CLASSES = 5


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'tiny', networks.tiny((4, 1, 'first'), (6, 2, 'body')))


def make_config(**fields):
  config = config_lib.default()
  config.model.name = 'tiny'
  config.update_from_flattened_dict(fields)
  return config


def test_factors_by_hand():
  factors = [float(loss_schedule.factor_at(jnp.int32(t), 4, 0.5, (6, 8), 0.1)) for t in (0, 1, 2, 4, 5, 6, 7, 8, 9)]
  np.testing.assert_allclose(factors, [0.5, 0.625, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def outputs(method):
  rng = np.random.default_rng(0)
  z = lambda: jnp.asarray(rng.normal(size=(4, CLASSES)), jnp.float32)
  if method.__class__.__name__ == 'CMTKD':
    pairs = {
      f'tap{k}': tuple(jnp.asarray(rng.uniform(size=(4, 3, 3, 2)), jnp.float32) for _ in range(2)) for k in (1, 2)
    }
    return Outputs({'student': z(), 'combined_teacher': z()}, pairs)
  return Outputs({name: z() for name in ('student', *method.weight_bits)})


def loss_of(config, step):
  method = build.create_method(config, CLASSES)
  loss_at = loss_schedule.create(config, method, 100, **SIZES)
  labels = jnp.array([0, 1, 2, 4])
  return jax.jit(lambda step: loss_at(step)(outputs(method), labels))(jnp.int32(step))


@pytest.mark.parametrize(
  'section, field, value',
  [
    ('beta_schedule', 'method.cmtkd.beta', 0.5),
    ('gamma_schedule', 'feature_loss.attention.weight', 100.0),
    ('temperature_schedule', 'method.cmtkd.temperature', 2.0),
  ],
)
def test_a_scheduled_value_is_that_value(section, field, value):
  fields = {field: value, f'{section}.warmup': '2 epochs', f'{section}.first_factor': 0.2}
  fields |= {f'{section}.change_at': '50 steps', f'{section}.change_factor': 0.3}
  for step, factor in ((0, 0.2), (10, 0.6), (30, 1.0), (70, 0.3)):
    found, terms = loss_of(make_config(**fields), step)
    expected, expected_terms = loss_of(make_config(**{field: value * factor}), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), terms, expected_terms)


@pytest.mark.parametrize('method, weight', [('dml', 'beta'), ('kdcl', 'distillation_weight'), ('qkd', None)])
def test_weights_of_other_methods(method, weight):
  weight = weight or 'distillation_weight'
  fields = {'method.name': method, 'beta_schedule.warmup': '10 steps'}
  found, _ = loss_of(make_config(**fields), 5)
  half = build.create_method(make_config(**{'method.name': method}), CLASSES).settings
  expected, _ = loss_of(
    make_config(**{'method.name': method, f'method.{method}.{weight}': 0.5 * getattr(half, weight)}), 0
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_a_schedule_it_is_the_loss_of_the_method():
  method = build.create_method(make_config(), CLASSES)
  assert loss_schedule.create(make_config(), method, 100, **SIZES)(jnp.int32(3)) == method.loss


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {'method.name': 'single', 'beta_schedule.warmup': '5 steps'},
      "config.beta_schedule: the method 'single' has no beta",
    ),
    ({'feature_loss.name': 'none', 'gamma_schedule.warmup': '5 steps'}, "'cmtkd' has no gamma"),
    ({'beta_schedule.warmup': '100 steps'}, "warmup='100 steps' does not lie before the end of training, step 100"),
    ({'beta_schedule.change_at': '5, 200 steps'}, "change_at='5, 200 steps' does not lie before"),
    (
      {'beta_schedule.change_at': '5, 5 steps'},
      "config.beta_schedule.change_at='5, 5 steps' must ascend; list each step",
    ),
    (
      {'beta_schedule.warmup': '5 steps', 'method.cmtkd.beta': 0.0},
      'config.method.cmtkd.beta=0 stays 0 under config.beta_schedule; raise it',
    ),
    (
      {'gamma_schedule.warmup': '5 steps', 'feature_loss.attention.weight': 0.0},
      'config.feature_loss.attention.weight=0 stays 0 under config.gamma_schedule; raise it',
    ),
    (
      {'beta_schedule.change_at': '5 steps', 'beta_schedule.change_factor': 1.0},
      'config.beta_schedule.change_factor=1 changes nothing; give another factor',
    ),
    ({'temperature_schedule.warmup': '5 steps'}, 'first_factor=0.0 makes the first temperature 0'),
    ({'beta_schedule.first_factor': 0.5}, 'first_factor=0.5 changes nothing without config.beta_schedule.warmup'),
    (
      {'gamma_schedule.change_factor': 0.1, 'gamma_schedule.warmup': '5 steps'},
      'change_factor=0.1 changes nothing without config.gamma_schedule.change_at',
    ),
    (
      {'method.name': 'qkd', 'method.qkd.phase': 'self_studying', 'beta_schedule.warmup': '5 steps'},
      "config.method.qkd.phase is 'self_studying', with which nothing reads config.method.qkd.distillation_weight",
    ),
    (
      {'logit_loss.name': 'logits_regression', 'temperature_schedule.change_at': '5 steps'},
      "config.logit_loss.name is 'logits_regression', with which nothing reads config.method.cmtkd.temperature; leave",
    ),
    *(
      (
        {'method.name': name, 'temperature_schedule.change_at': '5 steps', f'method.{name}.{weight}': 0.0},
        f'config.method.{name}.{weight} is 0.0, with which nothing reads config.method.{name}.temperature',
      )
      for name, weight in (
        ('cmtkd', 'beta'),
        ('dml', 'beta'),
        ('kdcl', 'distillation_weight'),
        ('qkd', 'distillation_weight'),
        ('apprentice', 'gamma'),
      )
    ),
  ],
)
def test_what_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    loss_of(make_config(**fields), 0)


SETTINGS = {'beta_schedule': ('beta', 'distillation_weight'), 'gamma_schedule': ('gamma',)}
SETTINGS['temperature_schedule'] = ('temperature',)
TRAINED = {'kd': 1, 'average_teacher': 2, 'ctkd': 1}


@pytest.mark.parametrize(
  'name, fields',
  [
    *((name, {}) for name in METHODS),
    *((name, {'logit_loss.name': loss}) for name in ('kd', 'cmtkd') for loss in losses.LOGIT_LOSSES),
    ('qkd', {'method.qkd.phase': 'self_studying'}),
    ('qkd', {'method.qkd.phase': 'tutoring', 'init_from': 'run'}),
    ('guided', {'method.guided.hint': 'logits'}),
    ('ctkd', {'method.ctkd.alpha': 0.5}),
  ],
)
def test_what_is_accepted_changes_the_loss(name, fields):
  """A setting has a schedule where the loss depends on it, and nowhere else."""
  fields = {'method.name': name, 'feature_loss.name': 'none', 'method.cmtkd.teacher_bits': (4,), **fields}
  fields |= {'method.ctkd.teacher_model': 'tiny', 'method.ctkd.shared_stem': False}
  teachers = (Teacher('run', make_config(**{'method.name': 'single'})),) * TRAINED.get(name, 0)
  method = build.create_method(make_config(**fields), CLASSES, teachers)

  def run():
    images, keys = jnp.zeros((4, 8, 8, 1)), {'params': jax.random.key(0), 'sampling': jax.random.key(0)}
    variables = method.init(keys, images, train=True)
    return method.apply(variables, images, train=True, mutable=True, rngs={'sampling': jax.random.key(0)})[0]

  rng = np.random.default_rng(0)
  returned = jax.tree.map(lambda x: jnp.asarray(rng.uniform(size=x.shape), jnp.float32), jax.eval_shape(run))
  total = lambda method: method.loss(returned, jnp.array([0, 1, 2, 4]))[0]
  for section, settings in SETTINGS.items():
    for setting in settings:
      if hasattr(method.settings, setting):
        values = dataclasses.replace(method.settings, **{setting: 0.5 * getattr(method.settings, setting)})
        counts = total(method.clone(settings=values)) != total(method)
        config = make_config(**fields, **{f'{section}.change_at': '5 steps'})
        try:
          loss_schedule.create(config, method, 100, **SIZES)
          assert counts, section
        except UserError:
          assert not counts, section
