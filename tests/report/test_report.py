"""Reports: every section of the page, and its numbers against the run's files and independent NumPy."""

import base64
import json
import pathlib
import re
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cmtkd_jax import quantizers, report
from cmtkd_jax.errors import UserError
from cmtkd_jax.report import confusion, pareto, plotting, weight_histograms
from cmtkd_jax.runs import checkpoint, run_reader
from cmtkd_jax.training import build, loop, restore

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTIONS = [
  'What was run',
  'Results',
  'Networks',
  'Learning curves',
  'Loss terms',
  'Importance factors',
  'Weights of the student',
  'Accuracy against model size',
  'Confusion of classes',
]


def smoke_config():
  return runpy.run_path(str(ROOT / 'configs' / 'digits_resnet8.py'))['get_config']('smoke')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Work directory of a finished CMT-KD run."""
  workdir = tmp_path_factory.mktemp('runs') / 'together'
  loop.train_and_evaluate(smoke_config(), workdir)
  return workdir


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """Work directory of a run of one network, with minival, that did not reach its end."""
  config = smoke_config()
  config.method.name, config.data.minival, config.eval_every = 'single', 0.25, '1 steps'
  workdir = tmp_path_factory.mktemp('runs') / 'alone'
  loop.train_and_evaluate(config, workdir)
  (workdir / 'summary.json').rename(workdir / 'finished.json')
  return workdir


def titles(page):
  return re.findall('<h2>(.*?)</h2>', page)


def check_images(page, folder, number):
  """The page holds the PNG files beside it, and nothing from elsewhere."""
  embedded = [base64.b64decode(text) for text in re.findall('src="data:image/png;base64,([^"]*)"', page)]
  assert len(embedded) == page.count('<img') == number
  assert sorted(embedded) == sorted(path.read_bytes() for path in folder.glob('*.png'))
  assert all(image.startswith(b'\x89PNG') for image in embedded)
  assert 'http' not in page and '<script' not in page and 'url(' not in page


def test_page_of_a_finished_run(run, alone):
  path = report.write(run, others=[alone])
  assert pathlib.Path(path) == run / 'report' / 'report.html'
  page = pathlib.Path(path).read_text()
  assert titles(page) == SECTIONS
  check_images(page, run / 'report', 6)
  assert 'not finished' not in page and 'missing' not in page
  summary = json.loads((run / 'summary.json').read_text())
  for network in ('student', 'combined_teacher'):
    assert f'{summary["results"][f"test/{network}"]["last"]["top1"]:.2f} %' in page
  for word in (
    summary['device'],
    summary['commit'],
    'cmtkd',
    'resnet8',
    'generated:8x8x1:10:48',
    'teacher 1 (4 bit)',
    'alone',
  ):
    assert word in page


def test_unfinished_run_without_importance(alone):
  page = pathlib.Path(report.write(alone)).read_text()
  assert titles(page) == [title for title in SECTIONS if title != 'Importance factors']
  check_images(page, alone / 'report', 5)
  assert 'This run is not finished' in page and 'missing' not in page
  # Its results are what the summary of the finished run says.
  finished = json.loads((alone / 'finished.json').read_text())['results']
  assert set(finished) == {'minival/student', 'test/student'} and 'chosen' in finished['test/student']
  assert run_reader.results(run_reader.read(alone)) == finished


def test_confusion_counts_are_those_of_the_evaluation(run):
  summary = json.loads((run / 'summary.json').read_text())
  config = run_reader.read(run).config
  test = build.load_data(config, build.make_mesh()).evals['test']
  labels = np.concatenate([np.asarray(batch['label'])[np.asarray(batch['mask'])] for batch in test.batches()])
  step, matrices = confusion.count(run)
  assert step == summary['steps'] and set(matrices) == {'student', 'combined_teacher'}
  for network, counts in matrices.items():
    assert counts.sum() == test.num_examples
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(labels, minlength=10))
    assert 100 * np.trace(counts) / counts.sum() == pytest.approx(summary['results'][f'test/{network}']['last']['top1'])


def test_most_frequent_confusions():
  counts = np.array([[9, 1, 0], [0, 5, 5], [0, 0, 3]])
  assert confusion.most_frequent(counts, ['a', 'b', 'c']) == [('b', 'c', 5, 0.5), ('a', 'b', 1, 0.1)]


def test_levels_and_shares_of_two_bit_layers(run):
  variables = checkpoint.load_variables(run / 'checkpoints')[0]
  layers = weight_histograms.collect(restore.load_trained(run_reader.read(run)), (8, 8, 1))
  rows = json.loads((run / 'bits.json').read_text())
  assert [layer.path for layer in layers] == [
    row['layer'] for row in rows if row['layer'].startswith('student/') and row['weight_bits'] == 2
  ]
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  widest = [layer for layer in layers if len(layer.levels) == 4]
  assert len(widest) >= 4
  for layer in widest:
    w = np.asarray(flat[f'{layer.path}/kernel'], np.float64)
    scale = 0.995687 * w.std(ddof=1)
    np.testing.assert_allclose(layer.levels, scale * np.array([-1.5, -0.5, 0.5, 1.5]), rtol=1e-5)
    thresholds = [-np.inf, -scale, 0, scale, np.inf]
    np.testing.assert_allclose(layer.shares, np.histogram(w, thresholds)[0] / w.size, atol=1.5 / w.size)
    assert layer.counts.sum() >= 0.99 * w.size and not layer.per_channel
    assert 0 < layer.entropy <= 2


def filled(config):
  """(method, variables) of uniform numbers, without compiling an initializer."""
  method = build.create_method(config, 10)
  abstract = jax.eval_shape(lambda: method.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True))
  rng = np.random.default_rng(0)
  return method, jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), abstract)


def test_levels_of_channels_stand_at_the_mean_scale():
  config = smoke_config()
  config.method.name, config.quantizer.name, config.quantizer.lsq.weight.per_channel = 'single', 'lsq', True
  method, variables = filled(config)
  layer = weight_histograms.collect(restore.Trained(method, variables, {}, 0), (8, 8, 1))[-1]
  step = np.asarray(traverse_util.flatten_dict(variables['params'], sep='/')[f'{layer.path}/weight_quantizer/step'])
  assert layer.per_channel and step.shape == (8,)
  np.testing.assert_allclose(layer.levels, step.mean() * np.arange(2)[-len(layer.levels) :], rtol=1e-6)


@pytest.mark.parametrize('name', [name for name, module in quantizers.QUANTIZERS.items() if hasattr(module, 'Weight')])
def test_every_quantizer_has_a_histogram(name):
  config = smoke_config()
  config.method.name, config.quantizer.weights = 'single', name
  config.student.weight_bits = 2 if 2 in quantizers.QUANTIZERS[name].Weight.bit_widths else 1
  method, variables = filled(config)
  for layer in weight_histograms.collect(restore.Trained(method, variables, {}, 0), (8, 8, 1)):
    assert len(layer.levels) == len(layer.shares) <= 4 and np.all(np.diff(layer.levels) > 0)
    assert layer.shares.sum() == pytest.approx(1)


def test_lq_nets_levels_are_the_mean_of_those_of_the_channels():
  config = smoke_config()
  config.method.name, config.quantizer.weights = 'single', 'lq_nets'
  method, variables = filled(config)
  variables['params'] = jax.tree.map(lambda leaf: 6 * (leaf - 0.2), variables['params'])  # both signs, all levels
  state = traverse_util.flatten_dict(variables['quantizer_state'], sep='/')
  layer = weight_histograms.collect(restore.Trained(method, variables, {}, 0), (8, 8, 1))[-1]
  basis = state[f'{layer.path}/weight_quantizer/basis']
  of_channels = np.sort([[a * v[0] + b * v[1] for a in (-1, 1) for b in (-1, 1)] for v in basis], axis=-1)
  assert layer.per_channel and len(layer.levels) == 4
  np.testing.assert_allclose(layer.levels, of_channels.mean(0), rtol=1e-5)


def test_model_sizes_by_hand(run, alone):
  rows = json.loads((run / 'bits.json').read_text())
  size = lambda member: sum(row['parameters'] * row['weight_bits'] for row in rows if member(row['layer']))
  found = {point.network: point for point in pareto.points(run_reader.read(run))}
  assert found['student'].bits == size(lambda layer: layer.startswith('student/'))
  assert found['combined_teacher'].bits == size(lambda layer: layer.startswith(('teacher', 'combined_head/')))
  (single,) = pareto.points(run_reader.read(alone))
  assert (single.run, single.bits) == ('alone', found['student'].bits)
  section = pareto.section(run_reader.read(run), [run_reader.read(alone)])
  for point in (*found.values(), single):
    assert f'<td>{point.run}</td>' in section.table and f'<td>{point.bits:,}</td>' in section.table


def test_front():
  small, good, beaten = (pareto.Point('', '', bits, top1) for bits, top1 in ((1, 50), (3, 60), (4, 60)))
  assert pareto.front([beaten, good, small]) == [small, good]


def test_what_is_not_there_is_said(run, tmp_path):
  shutil.copytree(run, tmp_path, dirs_exist_ok=True)
  config = json.loads((tmp_path / 'config.json').read_text())
  config['data']['name'] = 'npy:/nowhere<'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  section = confusion.section(run_reader.read(tmp_path))
  assert 'missing' in section.text and '/nowhere&lt;' in section.text and not section.images
  assert weight_histograms.section(run_reader.read(tmp_path)).images  # needs no data
  # Nothing but a configuration: a run that was killed before its first step.
  for name in ('checkpoints', 'report'):
    shutil.rmtree(tmp_path / name, ignore_errors=True)
  for name in ('metrics.jsonl', 'summary.json'):
    (tmp_path / name).unlink()
  page = pathlib.Path(report.write(tmp_path)).read_text()
  assert titles(page) == [title for title in SECTIONS if title != 'Importance factors']
  check_images(page, tmp_path / 'report', 0)
  assert 'nothing was logged yet' in page and 'no checkpoint in' in page


def test_directory_without_a_run_is_refused(run, tmp_path):
  for arguments in ((tmp_path,), (run, [tmp_path / 'nope'])):
    with pytest.raises(UserError, match='config.json') as e:
      report.write(*arguments)
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)
  assert not (tmp_path / 'report').exists()


def test_names_for_people():
  names = ('teacher1_4bit', 'teacher2_w2a8', 'combined_teacher', 'adaptor_tap3')
  assert [run_reader.display_name(name) for name in names] == [
    'teacher 1 (4 bit)',
    'teacher 2 (w2a8)',
    'combined teacher',
    'adaptor tap 3',
  ]
  assert plotting.plain('$5') == r'\$5'
