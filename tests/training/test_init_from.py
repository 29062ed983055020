"""Starting networks from trained ones: what is loaded where, what is created from data, what is refused."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import init_from
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import bit_table, pytorch_weights
from cmtkd_jax.quantizers import lsq
from cmtkd_jax.runs import provenance, run_files
from cmtkd_jax.runs.checkpoint import Checkpoints
from cmtkd_jax.training import build, initialize, optimizer, plan
from cmtkd_jax.training.step import TrainState, initial_state
from tests import networks, small_run

CLASSES = 5
TEACHERS = {'teacher1_4bit': 4, 'teacher2_8bit': 8}
NETWORKS = {'student': 2, **TEACHERS}


tiny_model = networks.named(networks.tiny((4, 1, 'first'), (8, 2, 'body')))


def make_config(method='cmtkd', **changes):
  config = config_lib.default()
  config.method.name, config.model.name, config.method.cmtkd.teacher_bits = method, 'tiny', (4, 8)
  config.update_from_flattened_dict(changes)
  return config


def cmtkd():
  return build.create_method(make_config(), CLASSES)


def abstract_variables(config, classes=CLASSES):
  method = build.create_method(config, classes)
  images = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
  return jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)


def fill(abstract):
  rng = np.random.default_rng(0)
  # All positive: some are variances.
  return jax.tree.map(lambda leaf: rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32), abstract)


def save(directory, config, variables, step=5, meta=None):
  transform = optimizer.create(config, build.create_method(config, CLASSES), lambda step: 0.1)
  model_state = dict(variables)
  params = model_state.pop('params')
  state = TrainState(np.int32(step), params, model_state, transform.init(params), np.zeros(2, np.uint32))
  with Checkpoints(directory / run_files.CHECKPOINTS) as checkpoints:
    checkpoints.save(step, state.to_tree(), meta or {})
  return str(directory)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """(work directory, flat variables) of a full-precision network."""
  config = make_config('single', **{'student.weight_bits': 32, 'student.activation_bits': 32})
  variables = fill(abstract_variables(config))
  return save(tmp_path_factory.mktemp('source'), config, variables), traverse_util.flatten_dict(variables)


@pytest.mark.parametrize('quantizer', ['hwgq', 'lsq'])
def test_every_network_starts_from_the_trained_one(source, quantizer):
  directory, trained = source
  abstract = abstract_variables(make_config(**{'quantizer.name': quantizer}))
  loaded, report = initialize.load(directory, '', abstract, cmtkd())
  loaded = traverse_util.flatten_dict(loaded)
  expected = {
    (collection, network, *rest): array
    for (collection, _, *rest), array in trained.items()
    for network in NETWORKS
    if network == 'student' or rest[0] != 'head'
  }
  expected |= {
    ('params', 'combined_head', *rest[1:]): array for (_, _, *rest), array in trained.items() if rest[0] == 'head'
  }
  assert loaded.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(loaded[path], array, err_msg=str(path))

  wanted = traverse_util.flatten_dict(abstract)
  created = {'/'.join(path) for path in wanted if path not in expected}
  steps = {path for path in created if path.endswith('_quantizer/step')}
  assert created - steps == {'params/importance/tap1', 'params/importance/tap2'}
  # The first convolution is not quantized; two activations, one convolution per network.
  assert len(steps) == (9 if quantizer == 'lsq' else 0)
  lines = [line.split(maxsplit=1) for line in report]
  assert report[0] == f'init_from {directory} (step 5): {len(trained)} of {len(trained)} arrays used'
  assert {rest for word, rest in lines if word == 'created'} == created
  assert [word for word, _ in lines if word in ('unused', 'mismatched')] == []
  (loaded_line,) = (rest for word, rest in lines if word == 'loaded')
  assert loaded_line.split()[0] == str(len(expected)) and all(name in loaded_line for name in NETWORKS)


def test_missing_values_are_created_from_data_and_the_loaded_weights(source):
  config = make_config(**{'quantizer.name': 'lsq'})
  method = build.create_method(config, CLASSES)
  loaded, _ = initialize.load(source[0], '', abstract_variables(config), cmtkd())
  images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 1)), jnp.float32)
  transform = optimizer.create(config, method, lambda step: 0.1)
  state = initial_state(
    loaded, {'image': images}, method=method, optimizer=transform, augment=lambda key, images: images, seed=3
  )
  assert state.step == 0
  assert jax.tree.structure(state.opt_state) == jax.tree.structure(transform.init(state.params))
  merged = state.to_tree()['variables']
  assert jax.tree.structure(merged) == jax.tree.structure(abstract_variables(config))
  flat = traverse_util.flatten_dict(merged)
  for path, array in traverse_util.flatten_dict(loaded).items():
    np.testing.assert_array_equal(flat[path], array)  # running statistics too: the batch has not moved them

  params = merged['params']
  normalized = None
  for name, bits in NETWORKS.items():
    kernel = source[1]['params', 'student', 'stage2', 'conv1', 'kernel']
    step = params[name]['stage2']['conv1']['weight_quantizer']['step']
    np.testing.assert_allclose(step, 2 * np.mean(np.abs(kernel)) / np.sqrt(2 ** (bits - 1) - 1), rtol=1e-5)
    np.testing.assert_allclose(step, lsq.init_step(jnp.asarray(kernel), bits, signed=True), rtol=1e-6)
    # The first closing quantizer sees the batch through the loaded convolution, normalized by the batch.
    if normalized is None:
      kernel = np.asarray(params['student']['stage1']['conv1']['kernel'], np.float64)[:, :, 0]
      padded = np.pad(np.asarray(images, np.float64)[..., 0], ((0, 0), (1, 1), (1, 1)))
      windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
      y = np.einsum('bhwij,ijc->bhwc', windows, kernel)
      norm = params['student']['stage1']['norm1']
      normalized = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5) * np.asarray(norm['scale']) + np.asarray(
        norm['bias']
      )
    step = params[name]['stage1_activation']['activation_quantizer']['step']
    np.testing.assert_allclose(step, 2 * np.mean(np.maximum(normalized, 0)) / np.sqrt(2**bits - 1), rtol=1e-4)


def layers(config):
  return bit_table.collect(build.create_method(config, CLASSES), (8, 8, 1))


def kept(tmp_path, before, after, *networks):
  """Whether the learned steps of each network are those of a run of `before` that one of `after` starts from."""
  variables = fill(abstract_variables(before))
  directory = save(tmp_path, before, variables, meta=provenance.meta(before, 5, layers(before)))
  method = build.create_method(after, CLASSES)
  loaded, _ = initialize.load(directory, '.*', abstract_variables(after), method, after, layers(after))
  trees = [tree['params'] for tree in (loaded, variables, abstract_variables(after))]
  return [steps_kept(*(tree.get(name) for tree in trees)) for name in networks]


def steps_kept(loaded, trained, wanted):
  loaded, wanted = traverse_util.flatten_dict(loaded), traverse_util.flatten_dict(wanted)
  steps = {path: step for path, step in loaded.items() if path[-1] == 'step'}
  for path, step in steps.items():
    np.testing.assert_array_equal(step, traverse_util.flatten_dict(trained)[path])
  # All or none; a teacher that starts from the student has another width.
  assert steps.keys() in (set(), {path for path in wanted if path[-1] == 'step'})
  return bool(steps)


@pytest.mark.parametrize(
  ('changes', 'student', 'teacher'),
  [
    ({}, True, True),
    ({'student.weight_bits': 3}, False, True),
    ({'method.cmtkd.teacher_bits': (4,)}, True, True),
    ({'bits.first_last': 8}, False, False),
    ({'bits.rules': (('.*/stage2/conv1', 3, 4),)}, False, False),
    ({'quantizer.lsq.activation.count': 'batch'}, False, False),
  ],
)
def test_quantizers_are_kept_where_nothing_about_them_changed(tmp_path, changes, student, teacher):
  lsq = {'quantizer.name': 'lsq'}
  before, after = make_config(**lsq), make_config(**lsq | changes)
  assert kept(tmp_path, before, after, 'student', 'teacher1_4bit') == [student, teacher]


def test_a_student_keeps_its_quantizers_and_teachers_that_start_from_it_do_not(tmp_path):
  before, after = (make_config(method, **{'quantizer.name': 'lsq'}) for method in ('single', 'cmtkd'))
  assert kept(tmp_path, before, after, 'student', 'teacher1_4bit') == [True, False]


def test_one_named_network(source):
  directory, trained = source
  abstract = abstract_variables(make_config())
  loaded, report = initialize.load(f'teacher1_4bit={directory}', '', abstract, cmtkd())
  assert {path[1] for path in traverse_util.flatten_dict(loaded)} == {'teacher1_4bit'}
  unused = {line.split()[1] for line in report if line.split()[0] == 'unused'}
  assert unused == {'/'.join(path) for path in trained if path[2] == 'head'}  # teachers share a classifier
  assert not any(line.split()[0] == 'created' for line in report)

  both, _ = initialize.load(f'student={directory}, combined_head={directory}', '', abstract, cmtkd())
  np.testing.assert_array_equal(
    both['params']['combined_head']['classifier']['kernel'],
    trained['params', 'student', 'head', 'classifier', 'kernel'],
  )
  assert both['params'].keys() == {'student', 'combined_head'}


def test_a_network_prefers_its_namesake(tmp_path):
  config = make_config()
  variables = fill(abstract_variables(config))
  directory = save(tmp_path, config, variables)
  loaded, report = initialize.load(directory, '', abstract_variables(config), cmtkd())
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert len(report) == 2  # nothing created, unused or mismatched
  # A single network takes the student of them all.
  single = abstract_variables(make_config('single'))
  loaded, _ = initialize.load(directory, '', single, cmtkd())
  np.testing.assert_array_equal(
    loaded['params']['student']['head']['classifier']['bias'],
    variables['params']['student']['head']['classifier']['bias'],
  )


def test_a_network_named_twice_and_the_run_itself_are_refused(tmp_path):
  with pytest.raises(UserError, match="config.init_from: 'student=a, student=b' names 'student' twice"):
    init_from.parse('student=a, student=b')
  config = small_run.make_config()
  config.init_from = f'student={tmp_path}/./run'
  with pytest.raises(UserError, match='config.init_from: .*/run is the directory of this run itself'):
    plan.create(config, tmp_path / 'run')


def test_other_width_is_refused(source):
  abstract = abstract_variables(make_config(**{'model.width': 2.0}))
  with pytest.raises(UserError, match='config.init_from'):
    initialize.load(source[0], '', abstract, cmtkd())
  with pytest.raises(UserError, match='config.init_from'):
    initialize.load(source[0], '.*/norm1/.*', abstract, cmtkd())


def test_other_classes_are_refused_unless_allowed(source):
  abstract = abstract_variables(make_config(), classes=7)
  with pytest.raises(UserError, match='config.init_from.*classifier'):
    initialize.load(source[0], '', abstract, cmtkd())
  with pytest.raises(UserError, match='config.init_from.*classifier'):
    initialize.load(source[0], 'classifier', abstract, cmtkd())  # the whole path must match
  loaded, report = initialize.load(source[0], '.*/classifier/.*', abstract, cmtkd())
  assert not any('classifier' in path for path in traverse_util.flatten_dict(loaded))
  assert 'kernel' in loaded['params']['student']['stage2']['conv1']
  mismatched = [line for line in report if line.split()[0] == 'mismatched']
  assert len(mismatched) == 4
  (line,) = (line for line in mismatched if 'combined_head/classifier/bias' in line)
  assert '[5]' in line and '[7]' in line


@pytest.mark.parametrize('target', ['', 'student=', 'teacher2_8bit='])
def test_another_architecture_is_refused(source, target):
  config = make_config(**{'model.name': 'resnet8', 'model.width': 0.25})
  with pytest.raises(UserError, match='config.init_from'):
    initialize.load(target + source[0], r'params/[^/]*/head/.*|.*/batch_stats/.*', abstract_variables(config), cmtkd())


@pytest.mark.parametrize('text', ['nobody={}', 'student={},=x', 'student={},teacher1_4bit=', 'student={},{}'])
def test_bad_text_is_refused(source, text):
  with pytest.raises(UserError, match='config.init_from'):
    initialize.load(text.format(source[0], source[0]), '', abstract_variables(make_config()), cmtkd())


def test_directory_without_a_checkpoint_is_refused(tmp_path):
  with pytest.raises(UserError, match=tmp_path.name):
    initialize.load(str(tmp_path), '', abstract_variables(make_config()), cmtkd())


# --- Files of PyTorch.


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'state_dict.module.', '_orig_mod.'])
def test_prefixes_of_wrappers_and_half_precision(tmp_path, prefix):
  """DataParallel, compiled and nested state dicts; float16 weights become float32."""
  kernel = np.arange(2 * 3 * 7 * 7, dtype=np.float16).reshape(2, 3, 7, 7) / 64
  np.savez(tmp_path / 'w.npz', **{f'{prefix}conv1.weight': kernel, f'{prefix}bn1.num_batches_tracked': np.int64(3)})
  loaded = pytorch_weights.load(tmp_path / 'w.npz', resnet18_settings())['params']['student']['stage1']['stem']['conv']
  assert loaded['kernel'].dtype == np.float32
  np.testing.assert_array_equal(loaded['kernel'][2, 5, 1], kernel[:, 1, 2, 5].astype(np.float32))


def test_weights_that_are_not_finite_are_named(tmp_path):
  """Not the learning rate is to blame for what follows."""
  np.savez(tmp_path / 'w.npz', **{'bn1.weight': np.array([1, np.nan], np.float32)})
  with pytest.raises(UserError, match=r"w.npz: 'bn1.weight' holds NaN or infinite values"):
    pytorch_weights.load(tmp_path / 'w.npz', resnet18_settings())


@pytest.mark.parametrize('name', ['a.pth', 'a.pt', 'pytorch_model.bin', 'a.ckpt'])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, name):
  (tmp_path / name).write_bytes(b'hello')
  with pytest.raises(UserError, match=r'is a pickle of PyTorch.*convert it: python -c .*safetensors'):
    pytorch_weights.is_weight_file(tmp_path / name)
  (tmp_path / 'run.pt').mkdir()  # a work directory may be called so
  assert not pytorch_weights.is_weight_file(tmp_path / 'run.pt')


def resnet18_settings():
  return ml_collections.ConfigDict({'name': 'resnet18', 'stem': 'imagenet', 'block_order': 'post'})
