"""Runs with averages, re-estimated statistics, smoothing, schedules, early stopping: resumed, evaluated, read again."""

import copy
import functools
import itertools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.data.transforms import mix
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods import Outputs
from cmtkd_jax.runs import checkpoint, metric_log, run_files, run_summary
from cmtkd_jax.runtime.preemption import Preempted, Preemption
from cmtkd_jax.training import averaging, build, evaluate, loop, release
from cmtkd_jax.training.step import MixedLabels, TrainState, mixed, train_step
from tests import networks

tiny_model = networks.named(networks.tiny((4, 1, 'first'), (6, 2, 'body')))
STEPS = 8


def make_config(**fields):
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      'data.name': 'generated:8x8x1:5:64',
      'data.minival': 0.25,
      'model.name': 'tiny',
      'quantizer.name': 'lsq',
      'method.cmtkd.teacher_bits': (8,),
      'batch_size': 16,
      'eval_batch_size': 16,
      'duration': f'{STEPS} steps',
      'eval_every': '2 steps',
      'log_every': '1 steps',
      'checkpoint_every': '',
      'max_checkpoints': STEPS,
      'tensorboard': False,
      'averaging.name': 'ema',
      'averaging.decay': 0.8,
      'bn_reestimation': 2,
      'label_smoothing': 0.1,
      'beta_schedule.warmup': '4 steps',
      **fields,
    }
  )
  return config


def read(workdir, step=None):
  return checkpoint.load_variables(workdir / 'checkpoints', step)[0]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  loop.train_and_evaluate(make_config(), workdir)
  return workdir


def test_a_run_that_was_interrupted_ends_with_the_same_bits(whole, tmp_path, monkeypatch, caplog):
  with monkeypatch.context() as patch:
    steps = itertools.count(1)
    patch.setattr(Preemption, 'requested', lambda self: next(steps) == 5)
    measured, measure = [], release.Release.__call__
    patch.setattr(
      release.Release,
      '__call__',
      lambda self, state, show: measured.append(int(state.step)) or measure(self, state, show),
    )
    with pytest.raises(Preempted):
      loop.train_and_evaluate(make_config(), tmp_path)
    assert measured and 5 not in measured  # who asks to stop may not wait for statistics
  read(tmp_path)
  assert f'{tmp_path}/checkpoints/5 was saved when the run was asked to stop, before config.bn_reest' in caplog.text
  loop.train_and_evaluate(make_config(), tmp_path)
  caplog.clear()
  jax.tree.map(np.testing.assert_array_equal, read(tmp_path), read(whole))
  assert 'bn_reestimation' not in caplog.text
  final = [next(row for row in metric_log.read(run) if 'test/student/top1' in row) for run in (tmp_path, whole)]
  assert final[0] | {'time': 0} == final[1] | {'time': 0}


def test_a_scheduled_weight_is_logged(whole):
  rows = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  found = {row['step']: row['train/beta'] for row in rows if 'train/loss' in row}
  assert found and found == pytest.approx({step: 0.5 * min(1, (step - 1) / 4) for step in found})
  assert not any('train/gamma' in row or 'train/temperature' in row for row in rows)


def test_what_was_evaluated_is_what_others_read(whole):
  evaluated = evaluate.evaluate_run(whole)
  logged = [row for row in metric_log.read(whole) if 'test/student/cross_entropy' in row][-1]
  for name in ('test/student/cross_entropy', 'minival/combined_teacher/cross_entropy'):
    assert evaluated[name] == pytest.approx(logged[name], rel=1e-5)


def test_the_checkpoint_holds_the_average(whole, tmp_path):
  """Against the average of what a run without one leaves after every step."""
  config = make_config(**{'averaging.name': 'none', 'bn_reestimation': 0, 'eval_every': '1 steps'})
  loop.train_and_evaluate(config, tmp_path)
  kernel = lambda run, step: read(run, step)['params']['student']['stage2']['conv1']['kernel']
  expected = None
  for t in range(1, STEPS + 1):
    decay = min(0.8, (1 + t) / (10 + t))
    # The first state is not saved; that of step 1 stands for it. Of either, 0.0002 is left in the end.
    expected = kernel(tmp_path, t) if expected is None else decay * expected + (1 - decay) * kernel(tmp_path, t)
  np.testing.assert_allclose(kernel(whole, STEPS), expected, atol=2e-4)
  assert np.abs(kernel(whole, STEPS) - kernel(tmp_path, STEPS)).max() > 2e-3


@pytest.mark.parametrize('parts, groups', [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_statistics_of_several_batches_are_those_of_all_their_rows(parts, groups):
  config = make_config(
    **{
      'bn_reestimation': 3,
      'grad_accum_steps': parts,
      'model.bn_groups': groups,
      'averaging.name': 'none',
      'method.name': 'single',
      'student.weight_bits': 32,
    }
  )
  method = build.create_method(config, 5)
  images = jnp.asarray(np.random.default_rng(0).normal(1, 2, (24, 8, 8, 1)), jnp.float32)
  variables = dict(method.init(jax.random.key(0), images[:8], train=True))
  before = copy.deepcopy(jax.device_get(variables['batch_stats']))
  loader = types.SimpleNamespace(batches=lambda start: ({'image': part} for part in jnp.split(images, 3)))
  plan = types.SimpleNamespace(
    config=config,
    averaging=averaging.Averaging(),
    dataset=types.SimpleNamespace(train=loader, augment=lambda key, x: x, num_classes=5),
    method=method,
    teachers=(),
    sharding=build.replicated(build.make_mesh(jax.devices()[:1])),
  )
  released = release.Release(plan)(types.SimpleNamespace(variables=variables))
  found = released['batch_stats']['student']['stage1']['norm1']
  rows = np.asarray(
    jax.lax.conv_general_dilated(
      images,
      variables['params']['student']['stage1']['conv1']['kernel'],
      (1, 1),
      ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  )
  np.testing.assert_allclose(found['mean'], rows.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found['var'], rows.var((0, 1, 2)), rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(variables['batch_stats']))


def test_training_stops_early_and_stays_stopped(tmp_path):
  config = make_config(**{'optimizer.learning_rate': 1e-9, 'early_stopping': '4 steps', 'method.name': 'single'})
  config.beta_schedule.warmup = ''
  summary = loop.train_and_evaluate(config, tmp_path)
  assert summary['steps'] == 6  # the first evaluation, of step 2, is never surpassed
  assert loop.train_and_evaluate(config, tmp_path)['steps'] == 6
  assert max(row['step'] for row in metric_log.read(tmp_path)) == 6
  reason = 'stopped early at step 6: minival/student/top1 has not risen above '
  assert summary['stopped_early'].startswith(reason) and reason in run_summary.closing_table(summary)
  assert run_summary.read(tmp_path)['stopped_early'] == summary['stopped_early']

  # A shorter patience may end a run that is not finished: here that of step 4.
  shorter = tmp_path / 'shorter'
  shutil.copytree(tmp_path, shorter, ignore=shutil.ignore_patterns('6', 'summary.json', 'lock', 'shorter'))
  config.allow_config_changes, config.early_stopping = True, '2 steps'
  summary = loop.train_and_evaluate(config, shorter)
  assert summary['steps'] == 4 and summary['stopped_early'].startswith('stopped early at step 4')
  config.early_stopping = '4 steps'

  # Its results are not those of another configuration; with more patience it goes on.
  config.allow_config_changes, config.seed = True, 7
  before = (tmp_path / run_files.CONFIG).read_bytes()
  with pytest.raises(UserError, match=r'trained to its end, .*\(seed: 0 -> 7\) .*; set a longer config.early_stopping'):
    loop.train_and_evaluate(config, tmp_path)
  assert (tmp_path / run_files.CONFIG).read_bytes() == before
  config.early_stopping = '5 steps'
  assert loop.train_and_evaluate(config, tmp_path)['steps'] == 8


def test_the_loss_of_mixed_labels_is_the_cross_entropy_with_the_mixed_label():
  rng = np.random.default_rng(0)
  z, share = rng.normal(size=(6, 5)).astype(np.float32), 0.3
  own, partner = rng.integers(0, 5, 6), rng.integers(0, 5, 6)
  method = build.create_method(make_config(**{'method.name': 'single', 'label_smoothing': 0.0}), 5)
  labels = MixedLabels(jnp.asarray(own), jnp.asarray(partner), jnp.full(6, share))
  found = mixed(lambda one: method.cross_entropy(jnp.asarray(z), one), labels)
  target = share * np.eye(5)[own] + (1 - share) * np.eye(5)[partner]
  log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
  np.testing.assert_allclose(found, -(target * log_p).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize('alphas', [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_mixed_images_have_the_labels_and_shares_of_the_images_in_them(alphas, grad_accum_steps):
  """A method that reads the shares off the image itself: its cross entropy is their entropy, at most log 2."""
  labels = np.arange(6, dtype=np.int32)
  batch = {'image': np.broadcast_to(np.eye(6, dtype=np.uint8)[:, None, None], (6, 8, 8, 6)), 'label': labels}
  shares_of = lambda variables, images, **unused: (Outputs({'student': jnp.log(images.mean((1, 2)) + 1e-9)}), {})
  cross_entropy = lambda outputs, labels: (
    jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs.logits['student'], labels)),
    {},
  )
  step = functools.partial(
    train_step,
    method=types.SimpleNamespace(views=1, frozen=(), apply=shares_of, loss=cross_entropy),
    optimizer=optax.identity(),
    augment=lambda key, images: images.astype(jnp.float32),
    grad_accum_steps=grad_accum_steps,
    mix=lambda key, images: mix.mix(key, images, *alphas),
  )
  run = jax.jit(
    jax.vmap(lambda seed: step(TrainState(seed, {}, {}, optax.EmptyState(), np.zeros(2, np.uint32)), batch)[1])
  )
  losses = np.asarray(run(jnp.arange(50))['loss'])
  assert 0 <= losses.min() < 0.1 and 0.6 < losses.max() <= np.log(2) + 1e-5
