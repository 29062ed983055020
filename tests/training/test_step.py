"""The train step on one and on several devices, its donation and compilation; the evaluation step's sums."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses, models, quantizers
from cmtkd_jax.methods import Outputs
from cmtkd_jax.training import build, optimizer, step
from cmtkd_jax.training.step import (
  TrainState,
  eval_step,
  initial_state,
  initial_state_options,
  label_rank,
  parts_of,
  train_step,
)
from tests import compiling, networks

CLASSES = 5
DEVICES = (1, 2, 4, 8)
KEY_DATA = np.array([0, 7], np.uint32)


TINY = networks.tiny((4, 1, 'first'), (6, 2, 'body'))


def augment(key, images):
  noise = jax.random.normal(key, images.shape)  # what the key gives must not depend on the devices
  return images.astype(jnp.float32) / 127.5 - 1 + 0.1 * noise


def make_mesh(devices):
  return jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8),
    'label': rng.integers(0, CLASSES, 16).astype(np.int32),
  }


@pytest.fixture(scope='module')
def parts():
  """The step of CMT-KD with two teachers, and a state of NumPy arrays."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'tiny', TINY)
    config = config_lib.default()
    config.model.name, config.quantizer.name, config.method.cmtkd.teacher_bits = 'tiny', 'lsq', (4, 8)
    method = build.create_method(config, CLASSES)
  transform = optimizer.create(config, method, lambda step: 0.1)
  images = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
  abstract = jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)
  rng = np.random.default_rng(0)

  def value(path, leaf):
    name = path[-1].key
    if name in ('var', 'scale', 'step'):
      return np.full(leaf.shape, 0.3 if name == 'step' else 1.0, np.float32)
    return (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

  model_state = jax.tree_util.tree_map_with_path(value, abstract)
  params = model_state.pop('params')
  opt_state = jax.tree.map(np.asarray, transform.init(params))
  state = TrainState(np.int32(3), params, model_state, opt_state, KEY_DATA)
  step = functools.partial(train_step, method=method, optimizer=transform, augment=augment)
  return types.SimpleNamespace(step=step, state=state)


@pytest.fixture(scope='module')
def runs(parts):
  """{devices: results}: on each mesh one compiled step, with donation as in training."""
  results = {}
  for devices in DEVICES:
    mesh = make_mesh(devices)
    sharded, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    state = jax.device_put(parts.state, whole)
    batch = jax.device_put(make_batch(), sharded)
    # On the largest mesh as in training, on the others as XLA compiles fastest.
    options = compiling.AS_IN_TRAINING if devices == DEVICES[-1] else None
    compiled = jax.jit(parts.step, donate_argnums=0).lower(state, batch).compile(options)
    new_state, metrics = compiled(state, batch)
    results[devices] = types.SimpleNamespace(
      compiled=compiled,
      old=state,
      new=new_state,
      metrics=jax.device_get(metrics),
      sharded=sharded,
      host=jax.device_get((new_state.params, new_state.model_state, new_state.opt_state)),
    )
  return results


def linear_parts():
  """(step, state) of a method as small as they come."""
  method = types.SimpleNamespace(
    apply=lambda variables, images, train, mutable, rngs: (
      Outputs({'student': images.reshape(len(images), -1) @ variables['params']['student']['kernel']}),
      {name: jax.tree.map(lambda x: x + 1, variables[name]) for name in mutable},
    ),
    loss=lambda outputs, labels: (losses.cross_entropy(outputs.logits['student'], labels), {}),
    weight_bits={'student': 2},
    frozen=(),
    views=1,
    has_importance=True,
  )
  config = config_lib.default()
  config.optimizer.decay_at = '2 steps'
  schedule = optimizer.learning_rate(config, 4, steps_per_epoch=2, batch_size=16)
  transform = optimizer.create(config, method, schedule)
  params = {'student': {'kernel': np.random.default_rng(0).normal(size=(64, CLASSES)).astype(np.float32)}}
  state = TrainState(
    np.int32(0),
    params,
    {'batch_stats': np.zeros(3, np.float32)},
    jax.tree.map(np.asarray, transform.init(params)),
    KEY_DATA,
  )
  return functools.partial(train_step, method=method, optimizer=transform, augment=augment), state


def assert_trees_close(actual, expected, rtol, atol):
  paths, structure = jax.tree_util.tree_flatten_with_path(actual)
  assert structure == jax.tree.structure(expected)
  for (path, a), b in zip(paths, jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('devices', DEVICES[1:])
def test_one_step_agrees_on_every_mesh(runs, devices):
  one, many = runs[1], runs[devices]
  assert_trees_close(many.metrics, one.metrics, rtol=1e-3, atol=1e-5)
  assert_trees_close(many.host, one.host, rtol=1e-3, atol=1e-5)
  assert int(many.new.step) == 4


def test_a_step_changes_everything_that_trains(parts, runs):
  new = runs[8].host[0]
  before, _ = jax.tree_util.tree_flatten_with_path(parts.state.params)
  for (path, old), value in zip(before, jax.tree.leaves(new)):
    assert np.any(old != value), path
  # Every network has its own batch statistics, and each of them moved.
  statistics = runs[8].host[1]['batch_stats']
  assert statistics.keys() == {'student', 'teacher1_4bit', 'teacher2_8bit'}
  for old, value in zip(jax.tree.leaves(parts.state.model_state), jax.tree.leaves(runs[8].host[1])):
    assert np.all(old != value)
  assert runs[8].metrics.keys() == {
    'loss',
    'student/feature/tap1',
    'student/feature/tap2',
    'student/top1',
    'combined_teacher/top1',
    *(f'{name}/{term}' for term in ('cross_entropy', 'mutual') for name in ('student', 'combined_teacher')),
    *(f'{name}/gradient_norm' for name in new),
  }


def test_batch_statistics_are_those_of_the_global_batch(parts, runs):
  key = jax.random.fold_in(jax.random.wrap_key_data(KEY_DATA), 3)
  images = np.asarray(augment(key, make_batch()['image']))
  kernel = parts.state.params['student']['stage1']['conv1']['kernel']
  padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  mean = np.einsum('bhwij,ijc->bhwc', windows, kernel[:, :, 0]).mean((0, 1, 2))
  old = parts.state.model_state['batch_stats']['student']['stage1']['norm1']['mean']
  for devices in DEVICES:
    new = runs[devices].host[1]['batch_stats']['student']['stage1']['norm1']['mean']
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * mean, rtol=1e-4, atol=1e-5)


def test_compiled_step_equals_the_plain_one():
  step, state = linear_parts()
  plain, compiled = (jax.device_get(run(state, make_batch())) for run in (step, jax.jit(step)))
  assert_trees_close(compiled, plain, rtol=1e-3, atol=1e-5)
  assert np.any(plain[0].params['student']['kernel'] != state.params['student']['kernel'])


def test_loss_and_gradient_norms_of_a_step(parts, runs):
  """The new parameters are those that the optimizer makes of the gradients that the metrics describe."""
  metrics, params = runs[1].metrics, runs[1].host[0]
  total = (
    metrics['student/cross_entropy']
    + metrics['combined_teacher/cross_entropy']
    + 0.5 * (metrics['student/mutual'] + metrics['combined_teacher/mutual'])
    + 100 * (metrics['student/feature/tap1'] + metrics['student/feature/tap2'])
  )
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)
  for name, rate, decay in (('importance', 0.01, 0.0), ('combined_head', 0.1, 1e-4)):
    moved = jax.tree.map(lambda old, new: (old - new) / rate - decay * old, parts.state.params[name], params[name])
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(metrics[f'{name}/gradient_norm'], norm, rtol=2e-3)


@pytest.mark.parametrize('name, bits', [('hwgq', 1), ('hwgq', 2), ('hwgq', 8), ('lsq', 2), ('lsq', 8)])
def test_codes_of_the_same_parameters_are_the_same_on_every_mesh(name, bits):
  rng = np.random.default_rng(bits)
  kernel, x = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 16, 32), (16, 8, 8, 4)))
  quantizer = quantizers.QUANTIZERS[name]
  weight, activation = quantizer.Weight(bits=bits), quantizer.Activation(bits=bits)
  parameters = {'step': np.float32(0.1)}

  @compiling.jit
  def encode(kernel, x, parameters):
    coded = weight.quantize(kernel, parameters), activation.quantize(x, parameters)
    return coded[0].codes, coded[1].codes, coded[0].scale

  results = []
  for devices in (1, 8) if bits == 1 else DEVICES:
    mesh = make_mesh(devices)
    whole = NamedSharding(mesh, P())
    results.append(
      jax.device_get(
        encode(
          jax.device_put(kernel, whole),
          jax.device_put(x, NamedSharding(mesh, P('data'))),
          jax.device_put(parameters, whole),
        )
      )
    )
  assert all(len(np.unique(codes)) > 1 for codes in results[0][:2])
  for result in results[1:]:
    for a, b in zip(result, results[0]):
      np.testing.assert_array_equal(a, b)


def test_quickly_compiled_initial_state_is_the_same(parts):
  arguments = {name: parts.step.keywords[name] for name in ('method', 'optimizer', 'augment')}
  lowered = jax.jit(functools.partial(initial_state, {}, **arguments, seed=3)).lower(make_batch())
  plain, quick = (jax.device_get(lowered.compile(options)(make_batch())) for options in (None, initial_state_options()))
  assert np.std(quick.params['student']['stage2']['conv1']['kernel']) > 0
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), quick, plain)


def test_donation_and_steps_in_a_row(runs):
  run = runs[8]
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run.old))
  state, losses = run.new, []
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
  for seed in (1, 2):
    # A compiled step refuses a state that is not laid out like the first one.
    previous = state
    state, metrics = run.compiled(state, jax.device_put(make_batch(seed), run.sharded))
    # On the CPU, arrays that NumPy views are copied instead: those that the fixture has fetched.
    assert seed == 1 or all(leaf.is_deleted() for leaf in jax.tree.leaves(previous))
    losses.append(float(metrics['loss']))
  assert int(state.step) == 6 and np.all(np.isfinite(losses))
  run.new = state


def test_exactly_one_compilation(caplog):
  """What counts is that states and batches keep types and layout."""
  mesh = make_mesh(8)
  linear_step, state = linear_parts()
  state = jax.device_put(state, NamedSharding(mesh, P()))

  def counted_step(state, batch):
    return linear_step(state, batch)

  step = jax.jit(counted_step, donate_argnums=0)
  batches = [jax.device_put(make_batch(seed), NamedSharding(mesh, P('data'))) for seed in range(4)]
  with jax.log_compiles():
    for batch in batches:
      state, _ = step(state, batch)
  compiled = [row for row in caplog.messages if 'Finished XLA compilation' in row and 'counted_step' in row]
  assert len(compiled) == 1
  assert int(state.step) == 4 and np.all(np.asarray(state.model_state['batch_stats']) == 4)


def test_state_goes_through_its_tree(parts):
  state = parts.state
  tree = state.to_tree()
  assert set(tree) == {'variables', 'optimizer', 'step', 'key'}
  assert set(tree['variables']) == {'params', 'batch_stats'}
  again = TrainState.from_tree(tree)
  assert 'params' in tree['variables']  # reading it leaves it as it was
  assert jax.tree.structure(again) == jax.tree.structure(state)
  assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)))


@pytest.mark.parametrize('views', [1, 2, 5])
def test_no_two_keys_of_a_step_coincide(views):
  """Those of the views, of what augmentations and `randint` split from them, and of sampling, whole and in parts.

  The first view's key is that of the step: runs with one view have kept their random numbers.
  """
  step, state = linear_parts()
  method, seen = step.keywords['method'], {'augment': [], 'sampling': []}
  method.views = views

  def apply(variables, images, train, mutable, rngs):
    seen['sampling'].append(rngs['sampling'])
    images = images if views == 1 else images[0]
    return Outputs({'student': images.reshape(len(images), -1) @ variables['params']['student']['kernel']}), {}

  def recording(key, images):
    seen['augment'].append(key)
    return augment(key, images)

  method.apply = apply
  step.keywords['augment'] = recording
  step(state, make_batch())
  assert len(seen['augment']) == views and len(seen['sampling']) == 1
  keys, latest = [], [*seen['augment'], *seen['sampling']]
  for _ in range(3):  # themselves, split once and split twice
    keys += latest
    latest = [part for key in latest for part in jax.random.split(key, 8)]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys) == 73 * (views + 1)
  assert seen['augment'][0] == jax.random.fold_in(jax.random.wrap_key_data(KEY_DATA), state.step)


# Evaluation.


def reference_rank(logits, labels):
  """Place of the label when classes are sorted by logit, of equals the lower class first."""
  order = np.argsort(-logits.astype(np.float64), axis=-1, kind='stable')
  return np.argmax(order == labels[:, None], axis=-1)


@pytest.mark.parametrize('classes', [2, 5, 6, 20])
def test_label_rank(classes):
  rng = np.random.default_rng(classes)
  logits = rng.integers(0, 4, (64, classes)).astype(np.float32)  # full of ties
  labels = rng.integers(0, classes, 64).astype(np.int32)
  rank = np.asarray(label_rank(jnp.asarray(logits), jnp.asarray(labels)))
  np.testing.assert_array_equal(rank, reference_rank(logits, labels))
  np.testing.assert_array_equal(rank < 1, np.argmax(logits, -1) == labels)
  top = np.asarray(jax.lax.top_k(jnp.asarray(logits), min(5, classes))[1])
  np.testing.assert_array_equal(rank < 5, np.any(top == labels[:, None], -1))
  assert classes > 5 or np.all(rank < 5)


def test_label_rank_of_what_is_not_a_number():
  nan, inf = np.nan, np.inf
  logits = [[nan] * 6, [0, 1, 2, 3, 4, nan], [nan, 1, 2, 3, 4, 5], [-inf, inf, 0, 0, 0, 0]]
  rank = label_rank(jnp.array(logits, jnp.float32), jnp.array([0, 5, 5, 1]))
  assert rank[0] >= 5 and rank[1] >= 5  # a diverged network has no hits
  assert rank[2] == 1 and rank[3] == 0


@pytest.mark.parametrize('classes, devices', [(3, 1), (5, 8), (8, 1), (8, 8)])
def test_eval_step_counts_what_is_not_padding(classes, devices):
  rng = np.random.default_rng(classes)
  logits = {name: np.round(2 * rng.normal(size=(16, classes))).astype(np.float32) for name in ('student', 'teacher')}
  labels, mask = rng.integers(0, classes, 16).astype(np.int32), np.arange(16) < 11
  # The padding would be right at every count.
  logits['student'][~mask, 0], labels[~mask] = 9, 0
  images = rng.integers(0, 256, (16, 2, 2, 1)).astype(np.uint8)

  def apply(variables, x, train):
    assert not train and x.dtype == jnp.float32
    return Outputs({name: z + 0 * jnp.mean(x) for name, z in variables.items()})

  step = jax.jit(
    functools.partial(
      eval_step, method=types.SimpleNamespace(apply=apply), normalize=lambda x: x.astype(jnp.float32) / 255
    )
  )
  mesh = make_mesh(devices)
  batch = jax.device_put({'image': images, 'label': labels, 'mask': mask}, NamedSharding(mesh, P('data')))
  sums = step(jax.device_put(logits, NamedSharding(mesh, P())), batch)
  assert sums.keys() == logits.keys()
  for name, z in logits.items():
    rank, wide = reference_rank(z, labels)[mask], z.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    log_p = shifted - np.log(np.sum(np.exp(shifted), -1, keepdims=True))
    expected = {
      'top1': np.sum(rank < 1),
      'top5': np.sum(rank < 5),
      'count': 11,
      'cross_entropy': -np.sum(log_p[np.arange(16), labels][mask]),
    }
    assert sums[name].keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_allclose(sums[name][key], value, rtol=1e-5)


# What saves memory.


def test_accumulated_gradients_are_those_of_the_whole_batch():
  """A mean over equal parts is the mean; the state of the model passes from part to part."""
  step, state = linear_parts()
  whole, whole_metrics = jax.jit(step)(state, make_batch())
  parts, metrics = jax.jit(functools.partial(step, grad_accum_steps=4))(state, make_batch())
  assert_trees_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
  assert metrics.keys() == whole_metrics.keys()
  assert_trees_close(metrics, whole_metrics, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(whole.model_state['batch_stats'], 1)
  np.testing.assert_array_equal(parts.model_state['batch_stats'], 4)
  assert int(parts.step) == int(whole.step) == 1


def test_weights_are_fitted_once_a_batch(monkeypatch):
  """They are the same in all parts; activations are not."""
  monkeypatch.setitem(models.MODELS, 'tiny', TINY)
  config = config_lib.default()
  config.model.name, config.quantizer.name, config.method.name = 'tiny', 'lq_nets', 'single'
  method = build.create_method(config, CLASSES)
  parts = dict(method=method, optimizer=optimizer.create(config, method, lambda step: 0.1), augment=augment)

  @jax.jit
  def run(batch):
    state = initial_state({}, batch, **parts, seed=0)
    return [train_step(state, batch, **parts, grad_accum_steps=count)[0].model_state for count in (1, 4)]

  whole, cut = (state['quantizer_state']['student'] for state in run(make_batch()))
  weight, activation = (lambda tree: tree['stage2']['conv1'], lambda tree: tree['stage1_activation'])
  assert_trees_close(weight(cut), weight(whole), rtol=1e-6, atol=0)
  assert weight(cut)['weight_quantizer']['updates'] == 1
  assert activation(cut)['activation_quantizer']['updates'] == 4


def test_parts_of_a_batch_are_spread_over_the_devices():
  """Row r goes into part r mod k: with rows in blocks by device, each part has rows of each device."""
  x = np.arange(16).reshape(16, 1)
  np.testing.assert_array_equal(parts_of(x, 4, 0)[..., 0], [[k, k + 4, k + 8, k + 12] for k in range(4)])
  views = np.stack([x, x + 100])
  np.testing.assert_array_equal(parts_of(views, 2, 1)[0, 1, :, 0], 100 + np.arange(0, 16, 2))


def test_maps_computed_again_give_the_same_gradients(monkeypatch):
  """In the networks that the regex names, and in no other."""
  monkeypatch.setitem(models.MODELS, 'tiny', TINY)
  config = config_lib.default()
  config.model.name, config.method.cmtkd.teacher_bits = 'tiny', (4,)
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
  found, counts = {}, {}
  for remat in ('', 'teacher.*', '.*'):
    config.remat = remat
    method = build.create_method(config, CLASSES)
    if not found:
      variables = jax.jit(method.init, static_argnums=2)(jax.random.key(0), images, True)

    def loss(params, method=method):
      outputs, state = method.apply({**variables, 'params': params}, images, True, mutable=['batch_stats'])
      return method.loss(outputs, np.array([0, 1, 2, 0], np.int32))[0], state

    traced = jax.jit(jax.grad(loss, has_aux=True)).trace(variables['params'])
    counts[remat] = str(traced.jaxpr).count('remat2')
    if remat != 'teacher.*':
      found[remat] = traced.lower().compile()(variables['params'])
  assert counts[''] == 0 < counts['teacher.*'] < counts['.*']
  assert_trees_close(found['.*'], found[''], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
  ('found', 'problem'),
  [
    (lambda loss: loss, r'returns \(total, terms\); got'),
    (lambda loss: (loss, {'loss': loss}), "named 'loss', which is what training calls another value"),
    (lambda loss: (loss, {'student/top1': loss}), "named 'student/top1'"),
    (lambda loss: (loss, {'teacher/gradient_norm': loss}), "named 'teacher/gradient_norm'"),
    (lambda loss: (loss, {'student/frozen_weights': loss}), "named 'student/frozen_weights'"),
    (lambda loss: (jnp.stack([loss, loss]), {}), r'the total has shape \(2,\); take the mean'),
    (lambda loss: (loss, {'student/own': jnp.stack([loss])}), r'student/own has shape \(1,\)'),
    (lambda loss: (loss, [loss]), "the terms of a method's loss are a dict of scalars; got list"),
  ],
)
def test_losses_that_break_the_contract_are_refused(found, problem):
  outputs, labels = Outputs({'student': jnp.ones((2, 3))}), jnp.zeros(2, jnp.int32)
  with pytest.raises(ValueError, match=problem):
    step._metrics(lambda outputs, labels: found(jnp.float32(1)), outputs, labels)


def test_outputs_without_the_student_are_refused():
  outputs, labels = Outputs({'helper': jnp.ones((2, 3))}), jnp.zeros(2, jnp.int32)
  with pytest.raises(ValueError, match="outputs have logits of 'student'; got those of helper"):
    step._metrics(lambda outputs, labels: (jnp.float32(1), {}), outputs, labels)
