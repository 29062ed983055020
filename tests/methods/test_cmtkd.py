"""CMT-KD: its loss, its forward pass and its gradients against NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses, models
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods import base, cmtkd
from cmtkd_jax.models import layers, resnet
from cmtkd_jax.models.products import values
from cmtkd_jax.training import build
from tests import networks

CLASSES = 5
TEACHERS = ('teacher1_4bit', 'teacher2_8bit')
LABELS = np.array([0, 3, 1, 4, 2, 2, 0, 1], np.int32)


tiny_model = networks.named(networks.tiny((4, 1, 'first'), (6, 2, 'body'), (8, 2, 'body')))


def make_config(bits=(4, 8), student=2, **settings):
  config = config_lib.default()
  config.model.name = 'tiny'
  config.student.weight_bits = config.student.activation_bits = student
  config.method.cmtkd.teacher_bits = bits
  for field in ('weight', 'adaptor'):
    if field in settings:
      config.feature_loss[settings.get('feature_loss', 'attention')][field] = settings.pop(field)
  config.feature_loss.name = settings.pop('feature_loss', 'attention')
  config.method.cmtkd.update(settings)
  return config


def make_method(config):
  return build.create_method(config, CLASSES)


def fill(abstract, seed=0):
  """Values for abstract variables, without compiling an initializer; nothing is left at a neutral value."""
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    names = [key.key for key in path]
    x = rng.normal(size=leaf.shape)
    if names[-1] in ('var', 'scale'):
      x = rng.uniform(0.5, 1.5, leaf.shape)
    elif names[-1] == 'kernel':
      x = x * np.sqrt(2 / np.prod(leaf.shape[:-1]))
    elif names[1] != 'importance':
      x = 0.1 * x
    return jnp.asarray(x, leaf.dtype)

  return jax.tree_util.tree_map_with_path(value, abstract)


def make_variables(method):
  images = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32)
  abstract = jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)
  return fill(abstract)


def make_images():
  return jnp.asarray(np.random.default_rng(1).normal(size=(8, 8, 8, 1)), jnp.float32)


def f64(x):
  return np.asarray(values(x)).astype(np.float64)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(f64(actual), f64(expected), rtol=rtol, atol=atol)


# The loss.


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def make_losses(feature='attention', mutual='kl_divergence', **options):
  """(feature loss, mutual loss), the first with `options`."""
  feature = None if feature == 'none' else losses.FEATURE_LOSSES[feature](**options)
  return feature, losses.LOGIT_LOSSES[mutual]()


def computed_loss(*inputs, settings, made):
  """(total, terms) of CMT-KD's loss, as one program; `made` is what `make_losses` returned."""
  return jax.jit(lambda *inputs: cmtkd.cmtkd_loss(*inputs, settings, *made))(*inputs)


def reference_loss(z_t, z_s, labels, pairs, settings, feature_loss, gamma, power):
  """Eqs. (4)-(10) in float64."""
  z_t, z_s = f64(z_t), f64(z_s)
  own = lambda z: z[np.arange(len(labels)), labels][:, None]
  ce = lambda z: -np.mean(own(log_softmax(z / settings.ce_temperature)))
  target = np.minimum(z_t - own(z_t), z_s - own(z_s))
  tau = settings.temperature
  log_p = log_softmax(target / tau)
  kl = lambda z: tau**2 * np.mean(np.sum(np.exp(log_p) * (log_p - log_softmax(z / tau)), -1))

  def attention(x):
    q = np.sum(np.abs(f64(x)) ** power, -1).reshape(len(x), -1)
    return q / np.sqrt(np.sum(q**2, -1, keepdims=True))

  distance = {
    'attention': lambda t, s: np.mean((attention(t) - attention(s)) ** 2),
    'fitnet': lambda t, s: np.mean((f64(t) - f64(s)) ** 2),
  }
  terms = {
    'student/cross_entropy': ce(z_s),
    'combined_teacher/cross_entropy': ce(z_t),
    'student/mutual': kl(z_s),
    'combined_teacher/mutual': kl(z_t),
  }
  feature = {f'student/feature/{tap}': distance[feature_loss](*pair) for tap, pair in pairs.items()}
  total = settings.alpha * (ce(z_s) + ce(z_t)) + settings.beta * (kl(z_s) + kl(z_t)) + gamma * sum(feature.values())
  return total, terms | feature


def loss_inputs():
  rng = np.random.default_rng(2)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  pairs = {'tap3': (normal(8, 4, 4, 6), normal(8, 4, 4, 6)), 'tap5': (normal(8, 2, 2, 8), normal(8, 2, 2, 8))}
  return 3 * normal(8, CLASSES), 3 * normal(8, CLASSES), LABELS, pairs


@pytest.mark.parametrize(
  'settings, feature_loss, options, gamma',
  [
    ({}, 'attention', {}, 100),
    ({}, 'fitnet', {}, 1),
    ({}, 'none', {}, 0),
    (dict(alpha=0.7, beta=1.3, temperature=3.0, ce_temperature=1.7), 'attention', dict(weight=11.0, power=3.0), 11),
    (dict(alpha=1.9, beta=0.2, temperature=5.0, ce_temperature=0.6), 'fitnet', dict(weight=0.4), 0.4),
    (dict(alpha=0.3, beta=2.0, temperature=0.5, ce_temperature=2.5), 'none', {}, 0),
    ({}, 'attention', dict(weight=0.0), 0),
  ],
)
def test_loss_and_terms(settings, feature_loss, options, gamma):
  *logits, labels, pairs = loss_inputs()
  settings, pairs = cmtkd.Settings(**settings), {} if feature_loss == 'none' else pairs
  total, terms = computed_loss(*logits, labels, pairs, settings=settings, made=make_losses(feature_loss, **options))
  power = options.get('power', 2)
  expected_total, expected_terms = reference_loss(*logits, labels, pairs, settings, feature_loss, gamma, power)
  assert terms.keys() == expected_terms.keys()
  for name, value in expected_terms.items():
    assert_close(terms[name], value)
  assert_close(total, expected_total)
  assert total.dtype == jnp.float32


@pytest.mark.parametrize('name', losses.LOGIT_LOSSES)
def test_any_logit_loss_is_the_mutual_loss(name):
  """The loss that is configured compares both networks to the minimum logits, all counted from the true class."""
  z_t, z_s, labels, _ = loss_inputs()
  settings = cmtkd.Settings(alpha=0.0, beta=0.5, temperature=3.0)
  total, terms = computed_loss(z_t, z_s, labels, {}, settings=settings, made=make_losses('none', name))
  own_s, own_t = (f64(z) - f64(z)[np.arange(len(labels)), labels][:, None] for z in (z_s, z_t))
  expected = [
    jax.jit(losses.LOGIT_LOSSES[name]())(np.float32(np.minimum(own_t, own_s)), np.float32(own), labels, 3.0)
    for own in (own_s, own_t)
  ]
  assert_close([terms['student/mutual'], terms['combined_teacher/mutual']], expected)
  assert_close(total, 0.5 * float(sum(expected)))


def test_taps_weigh_less_the_shallower_they_are():
  """OFD: the weight of each tap is half that of the next, deeper one; 'tap13' comes before 'tap5' under `jit`."""
  *logits, labels, pairs = loss_inputs()
  pairs = {'tap5': pairs['tap3'], 'tap13': pairs['tap5']}
  settings = cmtkd.Settings(alpha=0.0, beta=0.0)
  total, terms = computed_loss(*logits, labels, pairs, settings=settings, made=make_losses('ofd', weight=0.1))
  assert_close(total, 0.1 * (0.5 * float(terms['student/feature/tap5']) + float(terms['student/feature/tap13'])))


# The forward pass.


def apply_recording_inputs(method, variables, images):
  """Returns (outputs, {(network, method, stage): input}) of an evaluation pass."""
  read = {}

  def record(next_function, args, kwargs, context):
    if isinstance(context.module, models.Network) and context.method_name == 'stage':
      read[context.module.path[0], args[0]] = args[1]
    if isinstance(context.module, resnet.PooledHead):
      read['/'.join(context.module.path)] = args[0]
    return next_function(*args, **kwargs)

  with nn.intercept_methods(record):
    outputs = method.apply(variables, images, train=False)
  return outputs, read


def standalone(config, variables, bits, name):
  """Returns a function (part, *inputs) that runs a part of one network outside the method."""
  network = base.network_builder(config, bits, bits, CLASSES)()
  own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
  return lambda part, *inputs: network.apply(own, *inputs, False, method=part)


def mixture(maps, theta):
  pi = np.exp(f64(theta)) / np.sum(np.exp(f64(theta)))
  return sum(p * f64(x) for p, x in zip(pi, maps))


def dense(x, parameters):
  return f64(x) @ f64(parameters['kernel']) + f64(parameters['bias'])


@pytest.mark.parametrize(
  'options',
  [
    dict(),
    dict(combined_head='mean', taps=(1, 2)),
    dict(taps=(3, 1)),
    dict(fused='pre_quantizer'),
    dict(fused='pre_quantizer', combined_head='mean', taps=(2, 3)),
    dict(requantize=True, combined_head='mean'),
    dict(requantize=True),
    dict(student_map='pre_quantizer'),
    dict(feature_loss='fitnet'),
    dict(feature_loss='fitnet', adaptor='conv_norm', student_map='pre_quantizer'),
    dict(feature_loss='fitnet', adaptor='identity'),
    dict(feature_loss='ofd'),
    dict(feature_loss='ab', adaptor='identity', fused='pre_quantizer'),
    dict(feature_loss='similarity'),
  ],
  ids=lambda options: ','.join(f'{k}={v}' for k, v in options.items()) or 'default',
)
def test_forward(options):
  config = make_config(**options)
  settings = config_lib.create(config, 'method.cmtkd')
  feature_loss = config_lib.create(config, f'feature_loss.{config.feature_loss.name}')
  method, images = make_method(config), make_images()
  variables = make_variables(method)
  params = variables['params']
  outputs, read = apply_recording_inputs(method, variables, images)
  teachers = [standalone(config, variables, bits, name) for name, bits in zip(TEACHERS, (4, 8))]
  student = standalone(config, variables, 2, 'student')

  # Each stage starts from what the method itself reads there, so that rounding does not add up.
  student_in = images
  for k, tap in enumerate((1, 2, 3)):
    if k == 0:
      assert all(read[name, 0] is images for name in (*TEACHERS, 'student'))
    before = [run('stage', k, read[name, k]) for run, name in zip(teachers, TEACHERS)]
    after = [run('activate', k, x) for run, x in zip(teachers, before)]
    student_before = student('stage', k, read['student', k])
    student_in = student('activate', k, student_before)
    if k < 2:
      assert_close(read['student', k + 1], student_in)
    if tap not in (settings.taps or (1, 2, 3)):
      next_inputs = after
      assert f'tap{tap}' not in outputs.aux
    else:
      mixed = before if settings.fused == 'pre_quantizer' else after
      shared = mixture(mixed, params['importance'][f'tap{tap}'])
      target, own_student = outputs.aux[f'tap{tap}']
      pre_quantizer = feature_loss.maps == 'pre_quantizer'
      assert_close(target, mixture(before, params['importance'][f'tap{tap}']) if pre_quantizer else shared)
      own_shared = shared if pre_quantizer else target
      next_inputs = [own_shared] * 2
      if settings.requantize or settings.fused == 'pre_quantizer':
        next_inputs = [run('activate', k, own_shared) for run in teachers]
        assert np.max(np.abs(f64(next_inputs[0]) - f64(next_inputs[1]))) > 0.01
      expected = student_before if pre_quantizer or settings.student_map == 'pre_quantizer' else student_in
      if feature_loss.adaptor != 'identity':
        kernel = f64(params[f'adaptor_tap{tap}']['conv']['kernel'])
        expected = f64(expected) @ kernel[0, 0]
        if feature_loss.adaptor == 'conv_norm':
          norm, stats = (tree[f'adaptor_tap{tap}']['norm'] for tree in (params, variables['batch_stats']))
          expected = (expected - f64(stats['mean'])) / np.sqrt(f64(stats['var']) + 1e-5) * f64(norm['scale']) + f64(
            norm['bias']
          )
      assert_close(own_student, f64(expected), rtol=1e-4, atol=1e-5)
    if k < 2:
      for name, expected in zip(TEACHERS, next_inputs):
        assert_close(read[name, k + 1], f64(expected))

  pooled = lambda x: f64(x).mean((1, 2))
  if settings.combined_head == 'shared':
    last = np.maximum(f64(own_shared), 0) if settings.fused == 'pre_quantizer' else f64(own_shared)
    assert_close(read['combined_head'], last)
    combined = dense(pooled(last), params['combined_head']['classifier'])
    assert not any('head' in params[name] for name in TEACHERS)
  else:
    combined = np.mean(
      [dense(pooled(x), params[name]['head']['classifier']) for name, x in zip(TEACHERS, next_inputs)], axis=0
    )
    assert 'combined_head' not in params
  assert_close(outputs.logits['combined_teacher'], combined, rtol=1e-4, atol=1e-5)
  assert_close(
    outputs.logits['student'], dense(pooled(student_in), params['student']['head']['classifier']), rtol=1e-4, atol=1e-5
  )
  assert outputs.logits.keys() == {'student', 'combined_teacher'}


def test_importance_starts_where_it_should_and_is_summarized():
  for init, expected in ((), (0.5, 0.5)), ((0.0, np.log(3.0)), (0.25, 0.75)):
    method = make_method(make_config(importance_init=init, taps=(2, 3)))
    # Only the importance factors are computed: the rest is dead code to the compiler.
    init = lambda: method.init(jax.random.key(0), make_images(), train=True)['params']['importance']
    params = jax.jit(init)()
    assert params.keys() == {'tap2', 'tap3'}
    summary = method.summary({'importance': params})
    assert summary.keys() == {f'importance/{tap}/{name}' for tap in params for name in TEACHERS}
    for tap in params:
      assert_close([summary[f'importance/{tap}/{name}'] for name in TEACHERS], expected)


def test_importance_is_summarized_in_the_order_of_layers():
  config = config_lib.default()
  config.model.name, config.method.cmtkd.teacher_bits = 'resnet18', (4, 8)
  method = build.create_method(config, 10)
  params = {'importance': {f'tap{tap}': jnp.zeros(2) for tap in (13, 17, 5, 9)}}  # as compiled functions sort them
  names = [name.split('/')[1] for name in method.summary(params)]
  assert names == ['tap5', 'tap5', 'tap9', 'tap9', 'tap13', 'tap13', 'tap17', 'tap17']


@pytest.mark.parametrize(
  'options, field',
  [
    (dict(bits=()), 'teacher_bits'),
    (dict(bits=(4, 9)), 'teacher_bits'),
    (dict(bits=((4, 4, 4),)), 'teacher_bits'),
    (dict(taps=(4,)), 'taps'),
    (dict(taps=(3, 2, 3)), r'taps=\(3, 2, 3\) names a layer twice'),
    (dict(taps=(1, 2)), 'combined_head'),
    (dict(taps=(3,), requantize=True), 'requantize=True changes nothing'),
    (dict(fused='pre_quantizer', requantize=True), 'requantize=True has no meaning'),
    (dict(importance_init=(0.0,)), 'importance_init'),
  ],
)
def test_refused(options, field):
  with pytest.raises(UserError, match=f'config.method.cmtkd.{field}'):
    make_method(make_config(**options))


@pytest.mark.parametrize(
  'options, field',
  [
    (dict(requantize=True), 'method.cmtkd.requantize=True'),
    (dict(requantize=True, combined_head='mean'), 'method.cmtkd.requantize=True'),
    (dict(fused='pre_quantizer'), "method.cmtkd.fused='pre_quantizer'.*combined_head to 'mean'"),
    (dict(feature_loss='ab'), "feature_loss.name='ab' would compare maps that are not normalized"),
    (dict(feature_loss='ofd', fused='pre_quantizer'), "feature_loss.name='ofd'.*use 'attention', 'fitnet'"),
    (dict(student_map='pre_quantizer'), "method.cmtkd.student_map='pre_quantizer'.*set both to the same value"),
    (dict(fused='pre_quantizer', combined_head='mean'), "method.cmtkd.student_map='quantized'.*set both to the same"),
  ],
)
def test_refused_where_a_normalization_follows_the_taps(options, field):
  config = make_config(**options)
  config.model.name = 'wrn16_1'
  with pytest.raises(UserError, match=f'config.{field}'):
    make_method(config)


@pytest.mark.parametrize(
  'options',
  [
    dict(fused='pre_quantizer', student_map='pre_quantizer', combined_head='mean'),
    dict(student_map='pre_quantizer', feature_loss='none'),
  ],
)
def test_accepted_where_a_normalization_follows_the_taps(options):
  config = make_config(**options)
  config.model.name = 'wrn16_1'
  make_method(config)


@pytest.mark.parametrize('quantizer', ['lq_nets', 'lqw_caq'])
def test_a_mixture_that_is_quantized_again_fits_no_values(quantizer, monkeypatch):
  """One update a step, to each teacher's own map, after both quantizations have read the values before it."""
  images, states, read = make_images(), {}, []
  with_levels = layers._with_levels

  def reading(quantizer, x, parameters):
    read.extend(np.asarray(parameters[name]).tobytes() for name in quantizer.fitted)
    return with_levels(quantizer, x, parameters)

  for requantize in (False, True):
    config = make_config(requantize=requantize, combined_head='mean')
    config.quantizer.activations = quantizer
    method = make_method(config)
    variables = make_variables(method)
    with monkeypatch.context() as patch:
      patch.setattr(layers, '_with_levels', reading)
      _, states[requantize] = method.apply(variables, images, train=True, mutable=True)
    before = {np.asarray(value).tobytes() for value in jax.tree.leaves(variables['quantizer_state'])}
    assert read and before.issuperset(read)
    read.clear()
  # The first stage reads the same images in both.
  first = lambda state: state['quantizer_state'][TEACHERS[0]]['stage1_activation']
  jax.tree.map(np.testing.assert_array_equal, first(states[True]), first(states[False]))


def test_unequal_widths_of_weights_and_activations():
  method = make_method(make_config(bits=((2, 4), 8)))
  assert method.weight_bits == {'student': 2, 'teacher1_w2a4': 2, 'teacher2_8bit': 8}


# Gradients.


@pytest.fixture(scope='module')
def linearized():
  """One forward pass; returns a function settings, term, options -> {top-level name: largest gradient}."""
  method, images = make_method(make_config()), make_images()
  variables = make_variables(method)

  def forward(params):
    return method.apply({**variables, 'params': params}, images, train=False)

  outputs = jax.jit(forward)(variables['params'])
  pull_back = jax.jit(lambda cotangents: jax.vjp(forward, variables['params'])[1](cotangents))

  def gradients(settings, term='total', feature_loss='attention', **options):
    def loss(outputs):
      pairs = {} if feature_loss == 'none' else outputs.aux
      total, terms = cmtkd.cmtkd_loss(
        outputs.logits['combined_teacher'],
        outputs.logits['student'],
        LABELS,
        pairs,
        settings,
        *make_losses(feature_loss, **options),
      )
      terms['total'] = total
      terms['features'] = sum(value for name, value in terms.items() if name.startswith('student/feature/'))
      return terms[term]

    (params,) = pull_back(jax.jit(jax.grad(loss))(outputs))
    return {name: max(np.max(np.abs(x)) for x in jax.tree.leaves(tree)) for name, tree in params.items()}

  return gradients


TEACHER_SIDE = {*TEACHERS, 'importance', 'combined_head'}
MAPS = {*TEACHERS, 'importance'}
ALL = TEACHER_SIDE | {'student'}
OPEN_TARGET = dict(stop_gradient_target=False)


@pytest.mark.parametrize(
  'settings, term, reached',
  [
    (dict(), 'student/cross_entropy', {'student'}),
    (dict(), 'combined_teacher/cross_entropy', TEACHER_SIDE),
    (dict(), 'student/mutual', {'student'}),
    (dict(), 'combined_teacher/mutual', TEACHER_SIDE),
    (OPEN_TARGET, 'student/mutual', ALL),
    (OPEN_TARGET, 'combined_teacher/mutual', ALL),
    (dict(), 'features', MAPS | {'student'}),
    (dict(stop_gradient_shared=True), 'features', {'student'}),
    (dict(alpha=0.0, beta=0.0), 'total', MAPS | {'student'}),
    (dict(alpha=0.0, beta=0.0, feature_loss='none'), 'total', set()),
    (dict(beta=0.0, feature_loss='none'), 'total', ALL),
    (dict(feature_loss='none', **OPEN_TARGET), 'total', ALL),
  ],
)
def test_which_parameters_a_term_reaches(linearized, settings, term, reached):
  settings = dict(settings)
  feature_loss = settings.pop('feature_loss', 'attention')
  largest = linearized(cmtkd.Settings(**settings), term, feature_loss)
  assert largest.keys() == ALL
  assert {name for name, value in largest.items() if value > 1e-5} == reached
  assert all(largest[name] == 0 for name in ALL - reached)


def test_feature_loss_of_weight_zero_reaches_nothing(linearized):
  largest = linearized(cmtkd.Settings(alpha=0.0, beta=0.0), weight=0.0)
  assert not any(largest.values())


def test_without_mutual_and_feature_loss_the_two_sides_are_apart(linearized):
  both = linearized(cmtkd.Settings(beta=0.0), feature_loss='none')
  teacher = linearized(cmtkd.Settings(), 'combined_teacher/cross_entropy')
  student = linearized(cmtkd.Settings(), 'student/cross_entropy')
  for name in ALL:
    assert_close(both[name], (student if name == 'student' else teacher)[name])


def test_gradient_of_importance_by_finite_differences():
  # Without quantizers and with nothing held constant, the loss is smooth almost everywhere.
  method, images = (
    make_method(make_config(bits=(32, 32), student=32, weight=20.0, stop_gradient_target=False)),
    make_images(),
  )
  variables = make_variables(method)

  @jax.jit
  @jax.value_and_grad
  def loss_and_gradient(theta):
    params = variables['params'] | {'importance': theta}
    return method.loss(method.apply({**variables, 'params': params}, images, train=False), LABELS)[0]

  theta = variables['params']['importance']
  _, gradient = loss_and_gradient(theta)
  step = 0.01
  for tap in theta:
    for i in range(2):
      moved = lambda sign: theta | {tap: theta[tap].at[i].add(sign * step)}
      difference = float(loss_and_gradient(moved(1))[0] - loss_and_gradient(moved(-1))[0]) / (2 * step)
      assert abs(difference) > 1e-3
      assert_close(gradient[tap][i], difference, rtol=0.02, atol=1e-3)
    assert_close(np.sum(gradient[tap]), 0, atol=1e-5)


def test_every_setting_is_a_config_field():
  assert set(config_lib.default().method.cmtkd) == {field.name for field in dataclasses.fields(cmtkd.Settings)}
  flat = traverse_util.flatten_dict(config_lib.default().to_dict(), sep='.')
  assert flat['method.cmtkd.teacher_bits'] == (4, 6, 8) and flat['feature_loss.attention.weight'] == 100
