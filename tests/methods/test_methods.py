"""The methods beside CMT-KD: each loss term by term against NumPy, which network learns from it, and a step of each."""

import dataclasses
import functools
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses, models
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import trace
from cmtkd_jax.methods import METHODS, apprentice, average_teacher, ctkd, dml, guided, kd, kdcl, qkd, speq
from cmtkd_jax.models import bit_table, inspect, layers
from cmtkd_jax.runs import checkpoint, provenance
from cmtkd_jax.training import build, initialize, optimizer
from cmtkd_jax.training.step import eval_step, initial_state, train_step
from cmtkd_jax.training.teachers import Teacher
from tests import networks

CLASSES = 5
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
LABELS = np.array([0, 3, 1, 4], np.int32)


tiny_model = networks.named(networks.tiny((4, 1, 'body'), (6, 2, 'body'), stem=3))


def make_config(method, bits=2, **settings):
  config = config_lib.default()
  config.method.name, config.model.name, config.method.ctkd.teacher_model = method, 'tiny', 'tiny'
  config.student.weight_bits = config.student.activation_bits = bits
  config.update_from_flattened_dict(settings)
  return config


def trained(*widths, **settings):
  """Trained teachers of these widths, as far as building them goes."""
  return tuple(Teacher(f'runs/{bits}', make_config('single', bits, **settings)) for bits in widths)


def logits(*names, seed=0):
  rng = np.random.default_rng(seed)
  return {name: (3 * rng.normal(size=(4, CLASSES))).astype(np.float32) for name in names}


def log_softmax(z):
  z = np.asarray(z, np.float64)
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
  return np.exp(log_softmax(z))


def ce(z):
  return -np.mean(log_softmax(z)[np.arange(4), LABELS])


def kl(target, z, tau):
  log_p, log_q = log_softmax(np.asarray(target, np.float64) / tau), log_softmax(np.asarray(z, np.float64) / tau)
  return tau**2 * np.mean(np.sum(np.exp(log_p) * (log_p - log_q), -1))


def check_terms(result, expected_terms, expected_total):
  """Every term, and their weighted sum."""
  total, terms = result
  assert terms.keys() == expected_terms.keys()
  for name, value in expected_terms.items():
    np.testing.assert_allclose(terms[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
  np.testing.assert_allclose(total, expected_total, rtol=2e-5)


def learners(loss, inputs, term):
  """Names of the inputs that get a gradient from one term of `loss(inputs) -> (total, terms)`."""
  gradients = jax.grad(lambda inputs: loss(inputs)[1][term])(inputs)
  return {name for name, g in gradients.items() if any(np.any(leaf != 0) for leaf in jax.tree.leaves(g))}


# The losses.


@pytest.mark.parametrize('teachers', [1, 3])
def test_distillation_from_one_and_from_the_average_of_several(teachers):
  names = [f'teacher{i}' for i in range(teachers)]
  z = logits('student', *names)
  settings = (kd if teachers == 1 else average_teacher).Settings(alpha=0.7, beta=1.3, temperature=3.0)
  method = kd.Distillation((), settings, 'combined', losses.LOGIT_LOSSES['kl_divergence']())
  outputs = kd.Outputs({'student': z['student']}, [z[name] for name in names])
  p = np.mean([softmax(z[name] / 3.0) for name in names], 0)
  expected = 9 * np.mean(np.sum(p * (np.log(p) - log_softmax(z['student'] / 3.0)), -1))
  hard = ce(z['student'])
  check_terms(
    method.loss(outputs, LABELS),
    {'student/cross_entropy': hard, 'student/distillation': expected},
    0.7 * hard + 1.3 * expected,
  )


def test_dml_is_the_mean_over_the_peers_and_takes_them_as_constants():
  z = logits('student', 'a', 'b')
  settings = dml.Settings(beta=0.5, temperature=2.0)
  loss = lambda z: dml.dml_loss(z, LABELS, settings)
  mutual = {i: np.mean([kl(z[j], z[i], 2.0) for j in z if j != i]) for i in z}
  terms = {f'{i}/cross_entropy': ce(z[i]) for i in z} | {f'{i}/mutual': mutual[i] for i in z}
  check_terms(loss(z), terms, sum(ce(z[i]) for i in z) + 0.5 * sum(mutual.values()))
  for i in z:
    assert learners(loss, z, f'{i}/mutual') == {i}


@pytest.mark.parametrize('ensemble', ['naive', 'min_logit', 'general', 'linear'])
def test_kdcl_targets(ensemble):
  z = logits('student', 'peer')
  s, p = (z[name].astype(np.float64) for name in z)
  weights = np.array([0.3, 0.7], np.float32)
  own = lambda x: x - x[np.arange(4), LABELS][:, None]
  each = lambda x: -log_softmax(x)[np.arange(4), LABELS]
  if ensemble == 'naive':
    target = np.where((each(s) <= each(p))[:, None], s, p)
  elif ensemble == 'min_logit':
    target = np.minimum(own(s), own(p))
  elif ensemble == 'general':
    target = np.log(0.3 * softmax(s) + 0.7 * softmax(p))
  else:
    a = np.linspace(0, 1, 20001)
    best = a[np.argmin([np.mean(each(x * s + (1 - x) * p)) for x in a])]
    target = best * s + (1 - best) * p
  settings = kdcl.Settings(ensemble=ensemble, distillation_weight=0.8, temperature=2.0)
  loss = lambda z: kdcl.kdcl_loss(z, LABELS, weights, settings)
  total, terms = loss(z)
  rtol = 3e-3 if ensemble == 'linear' else 2e-5
  for name in z:
    np.testing.assert_allclose(terms[f'{name}/distillation'], kl(target, z[name], 2.0), rtol=rtol, atol=1e-5)
    assert learners(loss, z, f'{name}/distillation') == {name}
  expected = sum(ce(x) for x in z.values()) + 0.8 * sum(kl(target, x, 2.0) for x in z.values())
  np.testing.assert_allclose(total, expected, rtol=rtol)


def test_kdcl_general_learns_its_weights_from_the_held_out_errors():
  method = kdcl.KDCL((None, None), kdcl.Settings(ensemble='general'))
  z = logits('student', 'peer')
  mask = np.array([True, True, True, False])
  sums = method.minival_statistics(z, LABELS, mask)
  t = np.eye(CLASSES)[LABELS]
  f = [softmax(x)[:3] - t[:3] for x in z.values()]
  c = np.array([[np.mean(np.sum(a * b, -1)) for b in f] for a in f])
  w = np.linalg.solve(c, np.ones(2))
  state = method.update_from_minival(sums, {'batch_stats': 1})
  np.testing.assert_allclose(state[kdcl.STATE]['weights'], w / w.sum(), rtol=1e-3)
  assert state['batch_stats'] == 1


def test_kdcl_general_starts_from_equal_weights():
  config = make_config(
    'kdcl', **{'method.kdcl.ensemble': 'general', 'method.kdcl.peer_bits': (4,), 'data.minival': 0.5}
  )
  method = build.create_method(config, CLASSES)
  state = jax.jit(lambda: method.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), train=True)[kdcl.STATE])()
  np.testing.assert_array_equal(state['weights'], [0.5, 0.5])


@pytest.mark.parametrize('detached', [True, False])
def test_apprentice(detached):
  z = logits('teacher', 'student')
  settings = apprentice.Settings(stop_gradient_target=detached)
  loss = lambda z: apprentice.apprentice_loss(z['teacher'], z['student'], LABELS, settings)
  soft = -np.mean(np.sum(softmax(z['teacher']) * log_softmax(z['student']), -1))
  check_terms(
    loss(z),
    {
      'teacher/cross_entropy': ce(z['teacher']),
      'student/cross_entropy': ce(z['student']),
      'student/distillation': soft,
    },
    ce(z['teacher']) + 0.5 * ce(z['student']) + 0.5 * soft,
  )
  assert learners(loss, z, 'student/distillation') == ({'student'} if detached else {'student', 'teacher'})


def test_a_frozen_teacher_of_apprentice_has_no_loss():
  z = logits('teacher', 'student')
  soft = -np.mean(np.sum(softmax(z['teacher']) * log_softmax(z['student']), -1))
  check_terms(
    apprentice.apprentice_loss(z['teacher'], z['student'], LABELS, apprentice.Settings(scheme='B')),
    {'student/cross_entropy': ce(z['student']), 'student/distillation': soft},
    0.5 * ce(z['student']) + 0.5 * soft,
  )


@pytest.mark.parametrize('phase', ['self_studying', 'co_studying', 'tutoring'])
def test_qkd(phase):
  z = logits('student', 'teacher')
  settings = qkd.Settings(phase=phase, distillation_weight=0.6, temperature=3.0)
  loss = lambda z: qkd.qkd_loss(z, LABELS, settings)
  terms = {'student/cross_entropy': ce(z['student'])}
  total = ce(z['student'])
  if phase != 'self_studying':
    terms['student/distillation'] = kl(z['teacher'], z['student'], 3.0)
    total += 0.6 * terms['student/distillation']
    assert learners(loss, z, 'student/distillation') == {'student'}
  if phase == 'co_studying':
    terms |= {'teacher/cross_entropy': ce(z['teacher']), 'teacher/distillation': kl(z['student'], z['teacher'], 3.0)}
    total += terms['teacher/cross_entropy'] + 0.6 * terms['teacher/distillation']
    assert learners(loss, z, 'teacher/distillation') == {'teacher'}
  check_terms(loss(z), terms, total)


@pytest.mark.parametrize('compared', ['probabilities', 'logits'])
def test_speq(compared):
  z = logits('teacher', 'student')
  settings = speq.Settings(cosine_of=compared, distillation_weight=0.4)
  loss = lambda z: speq.speq_loss(z['teacher'], z['student'], LABELS, settings)
  t, s = (softmax(z[n]) if compared == 'probabilities' else z[n].astype(np.float64) for n in ('teacher', 'student'))
  cosine = np.mean(1 - np.sum(t * s, -1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1))
  check_terms(
    loss(z),
    {'student/cross_entropy': ce(z['student']), 'student/distillation': cosine},
    ce(z['student']) + 0.4 * cosine,
  )
  assert learners(loss, z, 'student/distillation') == {'student'}


@pytest.mark.parametrize('hint', ['features', 'logits'])
def test_guided(hint):
  rng = np.random.default_rng(3)
  maps = {name: [rng.normal(size=(4, 3, 3, 2)).astype(np.float32) for _ in range(2)] for name in ('teacher', 'student')}
  inputs = {name: {'z': z, 'maps': maps[name]} for name, z in logits('teacher', 'student').items()}
  settings = guided.Settings(hint=hint, teacher_weight=0.9, student_weight=0.2, temperature=2.0)

  def loss(inputs):
    pairs = {str(k): pair for k, pair in enumerate(zip(inputs['teacher']['maps'], inputs['student']['maps']))}
    return guided.guided_loss({name: x['z'] for name, x in inputs.items()}, LABELS, pairs, settings)

  z_t, z_s = inputs['teacher']['z'], inputs['student']['z']
  if hint == 'features':
    to_student = to_teacher = sum(np.mean((t.astype(np.float64) - s) ** 2) for t, s in zip(*maps.values()))
  else:
    to_student, to_teacher = kl(z_t, z_s, 2.0), kl(z_s, z_t, 2.0)
  check_terms(
    loss(inputs),
    {
      'student/cross_entropy': ce(z_s),
      'teacher/cross_entropy': ce(z_t),
      'student/guidance': to_student,
      'teacher/guidance': to_teacher,
    },
    ce(z_s) + ce(z_t) + 0.9 * to_teacher + 0.2 * to_student,
  )
  for name in inputs:
    assert learners(loss, inputs, f'{name}/guidance') == {name}


@pytest.mark.parametrize('receiver', ['student', 'scratch_teacher'])
@pytest.mark.parametrize('alpha', [0.0, 0.9])
def test_ctkd_of_the_paper_and_of_the_published_code(receiver, alpha):
  rng = np.random.default_rng(4)
  names = ('student', 'scratch_teacher', 'expert')
  z = logits(*names)
  maps = {
    name: [rng.normal(size=(4, size, size, 2 + i)).astype(np.float32) for size in (4, 2)]
    for i, name in enumerate(names)
  }
  settings = ctkd.Settings(attention_to=receiver, alpha=alpha)
  inputs = {name: {'z': z[name], 'maps': maps[name]} for name in names}
  loss = lambda x: ctkd.ctkd_loss({n: x[n]['z'] for n in x}, LABELS, {n: x[n]['maps'] for n in x}, settings)

  def a(f):
    q = np.mean(f.astype(np.float64) ** 2, -1).reshape(4, -1)
    return q / np.linalg.norm(q, axis=-1, keepdims=True)

  attention = [np.mean((a(f) - a(e)) ** 2) for f, e in zip(maps[receiver], maps['expert'])]
  imitation = np.mean(np.sum((z['scratch_teacher'].astype(np.float64) - z['student']) ** 2, -1))
  expert = kl(z['expert'], z['student'], 4.0)
  terms = {
    'student/cross_entropy': ce(z['student']),
    'scratch_teacher/cross_entropy': ce(z['scratch_teacher']),
    'student/imitation': imitation,
    'student/expert_distillation': expert,
  }
  terms |= {f'{receiver}/attention/group{j}': value for j, value in enumerate(attention, 1)}
  check_terms(
    loss(inputs),
    terms,
    ce(z['student']) + ce(z['scratch_teacher']) + 0.03 * imitation + 1000 * sum(attention) + alpha * expert,
  )
  assert learners(loss, inputs, 'student/imitation') == {'student'}
  assert learners(loss, inputs, 'student/expert_distillation') == {'student'}
  assert learners(loss, inputs, f'{receiver}/attention/group1') == {receiver}


# Logit losses under the methods that take one.

USERS = ('average_teacher', 'cmtkd', 'kd')


def users_method(name, loss, teachers):
  """The method with so many teachers of the student's width, trained before or beside it; None if it takes others."""
  config = make_config(name, **{'logit_loss.name': loss})
  for widths in {'teacher_bits', 'peer_bits'} & set(config.method[name]):
    config.method[name][widths] = (2,) * teachers
  for before in (trained(*(2,) * teachers), ()):
    if before or {'teacher_bits', 'peer_bits'} & set(config.method[name]):
      try:
        return build.create_method(config, CLASSES, before)
      except UserError:
        pass
  return None


@functools.cache
def outputs_of_equal_networks(name, teachers):
  """What the method's networks return when each has the student's variables."""
  method = users_method(name, 'kl_divergence', teachers)
  images = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
  variables = traverse_util.flatten_dict(jax.jit(functools.partial(method.init, train=True))(jax.random.key(0), images))

  def students(path):
    origins = ((path[0], 'student', *path[2:]), (path[0], 'student', 'head', *path[2:]))
    value = next((variables[origin] for origin in origins if origin in variables), variables[path])
    # Logits that tell the images apart.
    return np.float32(0.02 if path[-1] == 'var' else 3 if 'classifier' in path else 1) * np.asarray(value)

  equal = traverse_util.unflatten_dict({path: students(path) for path in variables})
  return jax.jit(functools.partial(method.apply, train=False))(equal, images)


@pytest.mark.parametrize('loss', losses.LOGIT_LOSSES)
@pytest.mark.parametrize('name', USERS)
def test_logit_loss_has_its_minimum_where_the_networks_are_equal(name, loss):
  """Each term of it is 0 there, without a gradient, and positive where the student differs."""
  tried = {teachers: method for teachers in (1, 3) if (method := users_method(name, loss, teachers))}
  assert tried
  for teachers, method in tried.items():
    outputs = outputs_of_equal_networks(name, teachers)
    compared = lambda outputs, method=method: {
      term: value
      for term, value in method.loss(outputs, LABELS)[1].items()
      if term.endswith(('/distillation', '/mutual'))
    }
    value_and_slope = jax.jit(
      jax.value_and_grad(lambda outputs, of=compared: (sum((terms := of(outputs)).values()), terms), has_aux=True)
    )
    steepest = lambda gradient: max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda z: z, outputs)
    moved.logits['student'] += np.random.default_rng(1).normal(size=(4, CLASSES)).astype(np.float32)
    ((_, terms), gradient), ((_, others), slope) = map(value_and_slope, (outputs, moved))
    assert terms and steepest(gradient) < 1e-3 * steepest(slope)
    for term, value in terms.items():
      assert abs(value) < 1e-3 * others[term] and others[term] > 1e-2, term  # DIST's epsilon leaves a rest


def test_regression_on_the_mean_of_the_teachers_logits():
  z = logits('student', 'a', 'b', 'c')
  method = kd.Distillation(
    (),
    average_teacher.Settings(alpha=0.0),
    'combined',
    losses.LOGIT_LOSSES['logits_regression'](),
  )
  _, terms = method.loss(kd.Outputs({'student': z['student']}, [z[name] for name in 'abc']), LABELS)
  expected = np.mean((np.mean([z[name].astype(np.float64) for name in 'abc'], 0) - z['student']) ** 2)
  np.testing.assert_allclose(terms['student/distillation'], expected, rtol=1e-5)


# One step of each.

TEACHERS = {'kd': (4,), 'average_teacher': (4, 8), 'ctkd': (32,)}
NETWORKS = {  # trained, frozen
  'single': ({'student'}, set()),
  'kd': ({'student'}, {'teacher1'}),
  'average_teacher': ({'student'}, {'teacher1', 'teacher2'}),
  'dml': ({'student', 'peer1_4bit'}, set()),
  'kdcl': ({'student', 'peer1_4bit'}, set()),
  'apprentice': ({'student', 'teacher'}, set()),
  'qkd': ({'student', 'teacher'}, set()),
  'speq': ({'student'}, set()),
  'guided': ({'student', 'teacher'}, set()),
  'ctkd': ({'student', 'scratch_teacher'}, {'expert'}),
  'cmtkd': ({'student', 'teacher1_4bit', 'teacher2_8bit', 'importance', 'combined_head'}, set()),
}


def test_every_method_is_tried():
  assert NETWORKS.keys() == METHODS.keys()


@pytest.mark.parametrize(
  'name, quantizer',
  [
    *((name, 'hwgq') for name in NETWORKS),
    ('kd', 'lsq'),
    ('kd', 'lq_nets'),
    ('ctkd', 'lsq'),
    ('cmtkd', 'lsq'),
    ('guided', 'lsq'),
  ],
)
def test_one_step_trains_what_is_to_be_trained_and_nothing_else(name, quantizer):
  config = make_config(
    name,
    **{
      'method.dml.peer_bits': (4,),
      'method.kdcl.peer_bits': (4,),
      'method.cmtkd.teacher_bits': (4, 8),
      'quantizer.name': quantizer,
    },
  )
  method = build.create_method(config, CLASSES, trained(*TEACHERS.get(name, ()), **{'quantizer.name': quantizer}))
  transform = optimizer.create(config, method, lambda step: 0.1)
  augment = lambda key, images: images / 255 + 0.01 * jax.random.normal(key, images.shape)
  rng = np.random.default_rng(0)
  batch = {'image': rng.integers(0, 256, (4, 6, 6, 1)).astype(np.uint8), 'label': LABELS}
  parts = dict(method=method, optimizer=transform, augment=augment)

  @jax.jit
  def run(batch):
    before = initial_state({}, batch, **parts, seed=0)
    after, metrics = train_step(before, batch, **parts)
    sums = eval_step(
      {'params': after.params, **after.model_state},
      batch | {'mask': np.ones(4, bool)},
      method=method,
      normalize=lambda images: images / 255,
    )
    return before, after, metrics, sums

  before, after, metrics, sums = run(batch)
  same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
  changed = {n for n in before.params if not same(before.params[n], after.params[n])}
  learning, frozen = NETWORKS[name]
  assert (changed, set(method.frozen)) == (learning, frozen)
  for collection, networks_after in after.model_state.items():
    for network in frozen & networks_after.keys():
      assert same(networks_after[network], before.model_state[collection][network]), collection
  assert quantizer != 'lq_nets' or frozen <= after.model_state['quantizer_state'].keys()
  assert all(np.isfinite(value) for value in metrics.values())
  assert {n.removesuffix('/gradient_norm') for n in metrics if n.endswith('/gradient_norm')} == learning
  assert 'student' in sums and all(total['count'] == 4 for total in sums.values())

  # An export and the comparison of codes find each layer of the student once, with the values that it has.
  variables = {'params': after.params, **after.model_state}
  paths = []
  with inspect.visit_layers(lambda call: paths.append(call.path), layers.Activation):
    jax.eval_shape(functools.partial(method.apply, train=False), variables, np.zeros((1, 6, 6, 1), np.float32))
  activations = [path for path in paths if path.startswith('student/')]
  assert len(set(activations)) == len(activations) == 3
  steps = trace.trace(method, variables, (6, 6, 1), 'student')
  assert [step.output for step in steps if step.op == 'activation'] == activations
  own = lambda step: functools.reduce(lambda tree, part: tree[part], step.output.split('/'), after.params)
  assert all(
    same(step.variables['params'], own(step)) for step in steps if step.variables and step.variables.get('params')
  )


def test_ctkds_recipes_pad_and_start_every_network_as_its_code_does():
  for path in sorted(CONFIGS.glob('ctkd_*.py')):
    config = runpy.run_path(str(path))['get_config']('')
    runs = (config, config_lib.derive(config, config.prerequisites.expert.to_dict()))
    assert {(run.model.init, run.data.pad_mode) for run in runs} == {('ctkd', 'symmetric')}, path
  method = build.create_method(make_config('ctkd', **{'model.init': 'ctkd'}), CLASSES, trained(32))
  params = jax.jit(lambda: method.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), train=True)['params'])()
  scales = {name: np.asarray(params[name]['stage1']['norm1']['scale']) for name in params}
  assert {name for name in scales if np.any(scales[name] != 1)} == {'student', 'scratch_teacher'}


def test_ctkd_shares_the_first_convolution():
  for shared in (True, False):
    method = build.create_method(make_config('ctkd', **{'method.ctkd.shared_stem': shared}), CLASSES, trained(32))
    variables = jax.eval_shape(lambda: method.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), train=True))
    assert ('stem' in variables['params']['scratch_teacher']) == (not shared)
    assert 'stem' in variables['params']['student'] and 'stem' in variables['params']['expert']


def test_kdcl_gives_each_network_its_own_view():
  method = build.create_method(make_config('kdcl', **{'method.kdcl.peer_bits': (2,)}), CLASSES)
  assert method.views == 2
  images = np.random.default_rng(0).normal(size=(2, 4, 6, 6, 1)).astype(np.float32)
  variables = jax.jit(functools.partial(method.init, train=True))(jax.random.key(0), images)
  # Networks of one width with the same parameters differ by what they see alone.
  twin = {c: {n: tree['student'] for n in tree} for c, tree in variables.items()}
  of = lambda x: method.apply(twin, x, train=True, mutable=True)[0].logits
  assert not np.array_equal(of(images)['student'], of(images)['peer1_2bit'])
  np.testing.assert_array_equal(of(images)['peer1_2bit'], of(images[::-1])['student'])
  np.testing.assert_array_equal(of(images[0])['peer1_2bit'], of(images[0])['student'])


def test_speq_draws_precisions_anew_and_keeps_the_students_statistics():
  config = make_config('speq', bits=1)
  images = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
  keys = {name: jax.random.key(0) for name in ('params', 'sampling')}
  variables = jax.jit(functools.partial(build.create_method(config, CLASSES).init, train=True))(keys, images)

  def run(probability, seed):
    config.method.speq.high_probability = probability
    method = build.create_method(config, CLASSES)
    outputs, state = method.apply(
      variables, images, train=True, mutable=['batch_stats'], rngs={'sampling': jax.random.key(seed)}
    )
    return outputs.logits, state

  never, state = run(0.0, 0)
  np.testing.assert_array_equal(never['teacher'], never['student'])
  always, same_state = run(1.0, 0)
  np.testing.assert_array_equal(always['student'], never['student'])
  assert not np.array_equal(always['teacher'], never['teacher'])
  jax.tree.map(np.testing.assert_array_equal, state, same_state)
  drawn = {run(0.5, seed)[0]['teacher'].tobytes() for seed in range(8)}
  assert 2 < len(drawn) <= 2**3  # three activation layers

  # Layers to which a rule gives as many bits or more keep them.
  config.method.speq.high_bits, config.bits.rules = 4, (('.*', 1, 8),)
  kept, _ = run(1.0, 0)
  np.testing.assert_array_equal(kept['teacher'], kept['student'])
  config.bits.rules = ()

  # At 32 bits, all of its activations are ReLUs.
  config.method.speq.high_bits = 32
  relus, _ = run(1.0, 0)
  config.method.name, config.student.activation_bits = 'single', 32
  plain, _ = build.create_method(config, CLASSES).apply(variables, images, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(relus['teacher'], plain.logits['student'], rtol=1e-5, atol=1e-6)


def test_speq_teaches_with_the_weights_of_the_student():
  """Also where a step fits the quantizer of the weights: both passes use the values from before it."""
  config = make_config('speq', **{'quantizer.weights': 'lq_nets', 'quantizer.activations': 'hwgq'})
  config.method.speq.high_probability = 0.0
  images = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
  keys = {name: jax.random.key(0) for name in ('params', 'sampling')}
  method = build.create_method(config, CLASSES)
  variables = jax.jit(functools.partial(method.init, train=True))(keys, images)
  outputs, state = method.apply(variables, images, train=True, mutable=True, rngs={'sampling': jax.random.key(1)})
  np.testing.assert_array_equal(outputs.logits['teacher'], outputs.logits['student'])
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), variables['quantizer_state'], state['quantizer_state'])
  assert any(jax.tree.leaves(changed))


@pytest.mark.parametrize('quantizer', ['lq_nets', 'lsq'])
def test_guidance_leaves_the_students_quantizers_alone(quantizer):
  """The teacher's maps neither fit the values of the student's quantizers, nor train them."""
  config = make_config('guided', **{'quantizer.name': quantizer})
  images = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
  method = build.create_method(config, CLASSES)
  variables = jax.jit(functools.partial(method.init, train=True))(jax.random.key(0), images)
  if quantizer == 'lq_nets':
    outputs, state = method.apply(variables, 2 * images + 1, train=True, mutable=True)
    before, after = (
      tree['quantizer_state']['student']['stage1_activation']['activation_quantizer'] for tree in (variables, state)
    )
    assert after['updates'] == 1 and (before['basis'] != after['basis']).any()
    # The teacher's map is on the grid from before the step, as the student's is.
    b1, b2 = before['basis']
    for quantized in next(iter(outputs.aux.values())):
      assert np.isin(quantized, np.array([0, b1, b2, b1 + b2])).all()

  def guidance(params, network):
    outputs, _ = method.apply({**variables, 'params': params}, images, train=True, mutable=True)
    return method.loss(outputs, LABELS)[1][f'{network}/guidance']

  for network, other in (('student', 'teacher'), ('teacher', 'student')):
    gradients = jax.jit(functools.partial(jax.grad(guidance), network=network))(variables['params'])
    largest = {name: max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree)) for name, tree in gradients.items()}
    assert largest[other] == 0 < largest[network]


def test_guidance_by_logits_compares_no_maps():
  config = make_config('guided', **{'method.guided.hint': 'logits', 'model.name': 'wrn16_1', 'model.width': 0.25})
  method = build.create_method(config, CLASSES)
  outputs = jax.eval_shape(lambda: method.init_with_output(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=True)[0])
  assert outputs.aux == {}


# What is refused.


@pytest.mark.parametrize(
  'name, settings, widths, words',
  [
    ('kd', {}, (), r"config.teacher_workdirs=\(\) names 0 .* config.method.name='kd' needs 1;"),
    ('average_teacher', {}, (4,), "config.method.name='average_teacher' needs at least 2;"),
    ('kdcl', {'method.kdcl.ensemble': 'general'}, (), 'config.data.minival'),
    ('kdcl', {'method.kdcl.peer_bits': ()}, (), 'config.method.kdcl.peer_bits'),
    ('dml', {'method.dml.peer_bits': (9,)}, (), 'config.method.dml.peer_bits=9'),
    ('apprentice', {'method.apprentice.scheme': 'C'}, (32,), 'config.init_from'),
    ('apprentice', {'method.apprentice.scheme': 'D'}, (), 'config.method.apprentice.scheme'),
    (
      'apprentice',
      {'method.apprentice.scheme': 'B', 'method.apprentice.stop_gradient_target': False},
      (32,),
      "config.method.apprentice.stop_gradient_target=False changes nothing with scheme='B'",
    ),
    ('qkd', {'method.qkd.phase': 'tutoring'}, (), 'config.init_from'),
    ('speq', {'quantizer.name': 'lsq'}, (), "config.quantizer: 'lsq'"),
    ('speq', {'student.activation_bits': 8}, (), 'activation_bits=8 is not below config.method.speq.high_bits=8'),
    ('speq', {'student.activation_bits': 32}, (), 'activation_bits=32 is not below config.method.speq.high_bits=8'),
    ('speq', {'method.speq.high_bits': 1}, (), 'config.student.activation_bits=2 is not below .*high_bits=1'),
    (
      'speq',
      {'quantizer.activations': 'xnor'},
      (),
      'bits=8 is not supported; allowed: 1 .*config.method.speq.high_bits',
    ),
    ('speq', {'method.speq.high_probability': 1.5}, (), 'config.method.speq.high_probability=1.5'),
    ('guided', {'model.name': 'wrn16_1'}, (), "config.method.guided.hint='features' does not fit .*use 'logits'"),
    ('ctkd', {'method.ctkd.teacher_model': 'vgg'}, (32,), "config.method.ctkd.teacher_model='vgg'"),
    ('ctkd', {'method.ctkd.teacher_model': 'resnet8', 'model.name': 'resnet8'}, (32,), 'different numbers of stages'),
  ],
)
def test_what_cannot_be_honored_is_named(name, settings, widths, words):
  with pytest.raises(UserError, match=words):
    build.create_method(make_config(name, **settings), CLASSES, trained(*widths))


def test_ctkd_shares_a_stem_of_wide_residual_networks_only():
  resnets = {'model.name': 'resnet8', 'method.ctkd.teacher_model': 'resnet8'}
  expert = trained(32, **{'model.name': 'resnet8'})
  with pytest.raises(UserError, match='config.method.ctkd.shared_stem=True needs wide residual networks'):
    build.create_method(make_config('ctkd', **resnets), CLASSES, expert)
  build.create_method(make_config('ctkd', **resnets | {'method.ctkd.shared_stem': False}), CLASSES, expert)


@pytest.mark.parametrize('name', sorted(NETWORKS.keys() - TEACHERS.keys()))
def test_trained_teachers_that_nothing_reads_are_refused(name):
  message = f"config.teacher_workdirs=.*config.method.name='{name}' takes no trained teachers"
  with pytest.raises(UserError, match=message):
    build.create_method(make_config(name), CLASSES, trained(32))


@pytest.mark.parametrize(
  'settings, words',
  [
    ({}, "config.model.name='tiny' gives maps of 4x4, 2x2, the expert's 'strided' maps of 2x2, 1x1"),
    ({'method.ctkd.attention_to': 'scratch_teacher'}, "config.method.ctkd.teacher_model='tiny' gives maps of 4x4, 2x2"),
    ({'model.stem': 'imagenet'}, "config.model.stem='imagenet' gives maps of 4x4, 2x2, the expert's 'cifar' maps of"),
  ],
)
def test_an_expert_whose_maps_have_other_sizes_is_refused(monkeypatch, settings, words):
  monkeypatch.setitem(models.MODELS, 'strided', networks.tiny((4, 4, 'body'), (6, 2, 'body'), stem=3))
  monkeypatch.setitem(models.MODELS, 'tiny', networks.tiny((4, 2, 'body'), (6, 2, 'body'), stem=3))
  expert = trained(32, **{'model.name': 'strided'})
  with pytest.raises(UserError, match=words):
    build.create_method(make_config('ctkd', **settings), CLASSES, expert)
  # The scratch teacher's maps count where they are compared, and no others.
  config = make_config('ctkd', **{'method.ctkd.attention_to': 'scratch_teacher'})
  config.method.ctkd.teacher_model = 'strided'
  build.create_method(config, CLASSES, expert)


def test_a_method_without_a_student_is_refused(monkeypatch):
  single = METHODS['single']

  def create(*arguments):
    method = single.create(*arguments)
    return method.clone(networks=tuple(network._replace(name='pupil') for network in method.networks))

  config = make_config('single')
  monkeypatch.setitem(METHODS, 'single', types.SimpleNamespace(create=create, Settings=single.Settings))
  with pytest.raises(TypeError, match="cmtkd_jax.methods.single trains no network 'student', but pupil"):
    build.create_method(config, CLASSES)


def test_speq_switches_widths_that_only_rules_lower():
  config = make_config('speq', bits=32, **{'bits.rules': (('student/stage1_.*', 32, 2),)})
  build.create_method(config, CLASSES)


@pytest.mark.parametrize('method, network', [('apprentice', 'teacher'), ('ctkd', 'scratch_teacher')])
def test_a_teacher_of_another_width_does_not_take_over_the_values_of_quantizers(monkeypatch, method, network):
  """Its name does not hold its width. The student's values, whose width is the same, are taken over."""

  def of(bits):
    config = make_config(method, **{f'method.{method}.teacher_bits': bits, 'quantizer.name': 'lsq'})
    created = build.create_method(config, CLASSES, trained(*TEACHERS.get(method, ())))
    variables = jax.eval_shape(lambda: created.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), train=True))
    return config, created, variables, bit_table.collect(created, (6, 6, 1))

  there, _, variables, layers = of(4)
  found = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
  meta = provenance.meta(there, 5, layers)
  monkeypatch.setattr(checkpoint, 'load_variables', lambda directory: (found, meta, 5))
  for bits in (4, 8):
    config, created, variables, layers = of(bits)
    loaded, _ = initialize.load('runs/4', '', variables, created, config, layers)
    steps = {path[0] for path in traverse_util.flatten_dict(loaded['params']) if path[-1] == 'step'}
    assert ('student' in steps, network in steps) == (True, bits == 4)


def test_settings_are_frozen_and_have_defaults():
  for name, module in METHODS.items():
    settings = module.Settings()
    assert dataclasses.is_dataclass(settings) and settings.__dataclass_params__.frozen, name
