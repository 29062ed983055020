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
from cmtkd_jax.models.bit_table import LayerCost
from cmtkd_jax.report import (
  comparison,
  confusion,
  curves,
  headline,
  model_size,
  overview,
  page,
  pareto,
  plotting,
  training_rows,
  weight_histograms,
)
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


def check_images(page, folder, names):
  """The page holds the PNG files beside it, each a figure of its own, and nothing from elsewhere."""
  embedded = [base64.b64decode(text) for text in re.findall('src="data:image/png;base64,([^"]*)"', page)]
  assert len(embedded) == page.count('<figure><img') == page.count('<img') == len(names)
  assert sorted(embedded) == sorted(path.read_bytes() for path in folder.glob('*.png'))
  assert {path.name for path in folder.glob('*.png')} == names
  assert all(image.startswith(b'\x89PNG') for image in embedded)
  assert 'http' not in page and '<script' not in page and 'url(' not in page


def image_names(*terms, importance=()):
  """Names of the images of a ResNet8 run with these terms of the loss."""
  blocks = [f'stage{s}_block1_{layer}' for s in (1, 2, 3) for layer in ('conv1', 'conv2', 'shortcut')[: 2 + (s > 1)]]
  return {
    'learning_curves_test.png',
    'learning_curves_train.png',
    *(f'loss_terms_{term}.png' for term in ('total', 'cross_entropy', 'gradient_norm', 'learning_rate', *terms)),
    *(f'importance_{tap}.png' for tap in importance),
    *(f'weights_{block}.png' for block in blocks),
    'accuracy_size.png',
    'confusion.png',
  }


def test_page_of_a_finished_run_and_its_comparison(run, alone, monkeypatch):
  path = report.write(run)
  assert pathlib.Path(path) == run / 'report' / 'report.html'
  page = pathlib.Path(path).read_text()
  assert titles(page) == SECTIONS
  names = image_names('mutual', 'feature', importance=('tap3', 'tap5', 'tap7'))
  check_images(page, run / 'report', names)
  assert 'not finished' not in page and 'missing' not in page and 'Pareto' not in page
  summary = json.loads((run / 'summary.json').read_text())
  for network in ('student', 'combined_teacher'):
    assert f'{summary["results"][f"test/{network}"]["last"]["top1"]:.2f}\N{NO-BREAK SPACE}%' in page
  for word in (
    summary['device'],
    summary['commit'],
    'cmtkd',
    'resnet8',
    'generated:8x8x1:10:48',
    'teacher 1 (4 bit)',
  ):
    assert word in page
  # The headline and what the accuracies are worth stand above everything else.
  lead = page[page.index('</h1>') : page.index('<nav>')]
  assert 'The 2-bit student reaches' in lead and 'accuracies mean nothing' in lead
  # Tables and figures are no wider than a narrow screen, or scroll by themselves.
  assert page.count('<table') == page.count('<div class="wide"><table') > 4
  assert all(int(width) <= 550 for width in re.findall('<img [^>]*width="([0-9]+)"', page))
  assert ' %' not in page

  for module in (weight_histograms, confusion):  # seen above, and slow
    monkeypatch.setattr(module, 'section', lambda run: None)
  compared = report.write(run, others=[alone])
  assert pathlib.Path(compared) == run / 'report' / 'comparison' / 'report.html'
  text = pathlib.Path(compared).read_text()
  assert titles(text) == [
    title for title in SECTIONS if title not in ('Weights of the student', 'Confusion of classes')
  ]
  assert 'Report on together, compared with alone' in text and '>student</td>' in text
  drawn = {name for name in names if not name.startswith(('weights', 'confusion'))}
  check_images(text, run / 'report' / 'comparison', drawn)
  assert pathlib.Path(path).read_text() == page  # the page of the run alone is still there
  check_images(page, run / 'report', names)


def test_unfinished_run_without_importance(alone):
  page = pathlib.Path(report.write(alone)).read_text()
  assert titles(page) == [title for title in SECTIONS if title != 'Importance factors']
  check_images(page, alone / 'report', image_names())
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


@pytest.mark.parametrize(
  'name, leaf, value',
  [('hwgq', 'kernel', np.inf), ('hwgq', 'kernel', np.nan), ('lsq', 'step', np.inf), ('lsq', 'step', np.nan)],
)
def test_weights_of_a_run_that_has_diverged(monkeypatch, name, leaf, value):
  config = smoke_config()
  config.method.name, config.quantizer.name = 'single', name
  method, variables = filled(config)
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  layer = 'student/stage2/block1/conv2'
  (path,) = (path for path in flat if path.startswith(f'{layer}/') and path.endswith(leaf))
  flat[path].flat[-1] = value
  variables['params'] = traverse_util.unflatten_dict(flat, sep='/')
  monkeypatch.setattr(weight_histograms, 'load_trained', lambda run: restore.Trained(method, variables, {}, 0))
  section = weight_histograms.section(made_run())
  assert section.text == f'This part is missing, because weights or levels of {layer} are not finite.'
  assert not section.images and not section.table


def test_weights_as_large_as_float32_have_a_histogram():
  config = smoke_config()
  config.method.name, config.quantizer.name = 'single', 'lsq'
  method, variables = filled(config)
  variables = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), variables)
  for layer in weight_histograms.collect(restore.Trained(method, variables, {}, 0), (8, 8, 1)):
    assert layer.counts.sum() > 0 and np.isfinite(layer.edges).all()


def test_model_sizes_by_hand(run, alone):
  rows = json.loads((run / 'bits.json').read_text())
  size = lambda member: sum(row['parameters'] * row['weight_bits'] for row in rows if member(row['layer']))
  found = {point.network: point for point in model_size.points(run_reader.read(run))}
  assert found['student'].bits == size(lambda layer: layer.startswith('student/'))
  assert found['combined_teacher'].bits == size(lambda layer: layer.startswith(('teacher', 'combined_head/')))
  (single,) = model_size.points(run_reader.read(alone))
  assert (single.run, single.bits) == ('alone', found['student'].bits)
  section = pareto.section(run_reader.read(run), [run_reader.read(alone)])
  for point in (*found.values(), single):
    assert f'<td>{point.run}</td>' in section.table and f'<td class="n">{point.bits:,}</td>' in section.table
    assert f'<td class="n">{point.bits / 8192:.1f} KiB</td>' in section.table


def test_a_comparison_names_what_it_lacks(run, alone, tmp_path):
  """A run that has not finished, and one without the bits of its layers; the others are shown."""
  shutil.copytree(alone, tmp_path / 'unknown')
  (tmp_path / 'unknown' / 'bits.json').unlink()
  section = pareto.section(run_reader.read(run), [run_reader.read(alone), run_reader.read(tmp_path / 'unknown')])
  assert ' Not finished: alone, unknown.' in section.text
  assert ' a size or an accuracy is not known: unknown.' in section.text
  assert section.images and '<td>alone</td>' in section.table and '<td>unknown</td>' not in section.table


def test_front():
  small, good, beaten = (model_size.Point('', '', bits, top1) for bits, top1 in ((1, 50), (3, 60), (4, 60)))
  assert model_size.front([beaten, good, small]) == [small, good]
  same = good._replace(run='another')
  assert model_size.front([same, beaten, good, small]) == [small, same, good]


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
  check_images(page, tmp_path / 'report', set())
  assert 'nothing was logged yet' in page and 'no checkpoint in' in page


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
  def full(path, data):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(report.local_file, 'write_whole', full)
  with pytest.raises(UserError, match=f'^{tmp_path}/report cannot be written .No space left on device.; make room, or'):
    report._write(tmp_path / 'report', '', [])


def test_directory_without_a_run_is_refused(run, tmp_path):
  for arguments in ((tmp_path,), (run, [tmp_path / 'nope'])):
    with pytest.raises(UserError, match='config.json') as e:
      report.write(*arguments)
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)
  with pytest.raises(UserError, match=r"^others='x3' is one directory; give a list of directories: \['x3'\]$"):
    report.write(run, 'x3')
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


def made_run(directory='runs/made', rows=(), summary=None, bits=(), **changes):
  """A `run_reader.Run` without files."""
  config = smoke_config()
  config.update_from_flattened_dict(changes)
  return run_reader.Run(pathlib.Path(directory), config, list(rows), summary or {}, list(bits), list('ab'))


def results(**top1):
  """A summary whose networks have these accuracies on test."""
  accuracy = lambda value: {'last': {'top1': value, 'top5': 100.0}, 'best': {'top1': value, 'top5': 100.0, 'epoch': 1}}
  return {'epochs': 10, 'results': {f'test/{network}': accuracy(value) for network, value in top1.items()}}


BITS = [
  LayerCost('student/stem', 32, 32, 1024, 1),  # 4 KiB
  LayerCost('student/conv', 2, 2, 98304, 1),  # 24 KiB
  LayerCost('teacher1_4bit/conv', 4, 4, 98304, 1),
  LayerCost('teacher2_8bit/conv', 8, 8, 98304, 1),
]


@pytest.mark.parametrize(
  'top1, changes, sentence',
  [
    (
      {'student': 99.44, 'combined_teacher': 99.5},
      {},
      # 28 KiB where 32 bits make 97 * 4 = 388 KiB, 13.86 times as much.
      'The 2-bit student reaches 99.44 % top-1 on test (last epoch) in 28.0 KiB, 13.9 times smaller than in full '
      'precision; its combined teacher reaches 99.50 %.',
    ),
    (
      {'student': 90.0, 'teacher1_4bit': 91.0, 'teacher2_8bit': 92.0},
      {'student.activation_bits': 4},
      'The student (2-bit weights, 4-bit activations) reaches 90.00 % top-1 on test (last epoch) in 28.0 KiB, 13.9 '
      'times smaller than in full precision; its best teacher (teacher 2 (8 bit)) reaches 92.00 %.',
    ),
    ({'peer': 1.0}, {}, ''),
    ({}, {}, ''),
  ],
)
def test_headline_by_hand(top1, changes, sentence):
  text = headline.summary(made_run(summary=results(**top1), bits=BITS, **changes))
  assert re.sub('<.*?>', '', text) == sentence


def test_headline_of_a_full_precision_network_names_no_ratio():
  run = made_run(
    summary=results(student=75.0), bits=BITS[:1], **{'student.weight_bits': 32, 'student.activation_bits': 32}
  )
  text = re.sub('<.*?>', '', headline.summary(run))
  assert text == 'The full-precision student reaches 75.00 % top-1 on test (last epoch) in 4.0 KiB.'


@pytest.mark.parametrize(
  'data, duration, words',
  [
    ('generated:8x8x1:10:48', '10 epochs', ['the images are random (generated:8x8x1:10:48).']),
    ('digits', '3 steps', ['as short as a smoke test (3 steps)']),
    ('digits', '0.9 epochs', ['as short as a smoke test']),  # 21 of 23 steps
    ('generated:8x8x1:10:48', '20 steps', ['the images are random', 'and the run is as short as']),
    ('digits', '1 epochs', []),
  ],
)
def test_banner_where_accuracies_mean_nothing(data, duration, words):
  rows = [{'step': 2, 'time': 0.0, 'train/epoch': 2 / 23, 'train/loss': 1.0}]
  run = made_run(rows=rows, summary=results(student=1.0), **{'data.name': data, 'duration': duration})
  text = headline.notices(run)
  assert all(word in text for word in words) and ('mean nothing' in text) == bool(words)


def training(*points, **more):
  """Rows of training at (step, loss), 10 steps an epoch, a second a step."""
  return [
    {'step': step, 'time': float(step), 'train/epoch': step / 10, 'train/loss': loss, **more} for step, loss in points
  ]


def test_short_windows_are_merged_by_hand():
  # A stop after step 51: the mean of steps 51 to 100 is (1 * 40 + 49 * 20) / 50.
  run = made_run(rows=training((50, 10.0), (51, 40.0), (100, 20.0), (150, 8.0)))
  epochs, losses = training_rows.series(run, 'train/loss')
  np.testing.assert_allclose(epochs, [5, 10, 15])
  np.testing.assert_allclose(losses, [10, 20.4, 8])
  # The last window has nothing after it: (50 * 2 + 3 * 5) / 53 goes to the one before.
  run = made_run(rows=training((50, 1.0), (100, 2.0), (103, 5.0)))
  epochs, losses = training_rows.series(run, 'train/loss')
  np.testing.assert_allclose(epochs, [5, 10.3])
  np.testing.assert_allclose(losses, [1, 115 / 53])
  # Half the typical number is enough to stay alone; what is no mean, and what is no training, stays as it is.
  run = made_run(
    rows=training((50, 1.0), (75, 2.0), (125, 3.0), **{'train/learning_rate': 0.1, 'importance/tap3/a': 1})
  )
  assert len(training_rows.series(run, 'train/loss')[0]) == 3
  run = made_run(
    rows=training((50, 1.0), (51, 2.0), (100, 3.0), **{'train/learning_rate': 0.1, 'importance/tap3/a': 1})
  )
  for name in ('train/learning_rate', 'importance/tap3/a'):
    np.testing.assert_array_equal(training_rows.series(run, name), run.series(name))


def test_merged_windows_keep_the_mean_over_all_steps():
  rng = np.random.default_rng(1)
  steps = np.unique(np.concatenate([np.arange(46, 460, 46), np.arange(50, 460, 50)]))  # evaluations, rows
  losses = rng.uniform(size=len(steps))
  run = made_run(rows=training(*zip(steps.tolist(), losses.tolist())))
  epochs, merged = training_rows.series(run, 'train/loss')
  windows = np.diff(10 * epochs, prepend=0)
  assert len(merged) < len(steps) and windows.min() >= 12
  np.testing.assert_allclose(np.sum(windows * merged), np.sum(np.diff(steps, prepend=0) * losses))


def test_panels_of_learning_curves_have_scales_of_their_own():
  rows = training((10, 1.0), (20, 0.5), **{'train/student/top1': 40.0})
  rows += [{'step': step, 'time': 0.0, 'test/student/top1': top1} for step, top1 in ((10, 90.0), (20, 98.0))]
  limits = [
    curves.accuracies(made_run(rows=rows), ['student'], (split,), split).axes[0].get_ylim()
    for split in ('test', 'train')
  ]
  assert limits[0][0] > 85 and limits[1][1] < 45


def test_learning_rate_falls_in_steps_or_along_a_line():
  x, y = plotting.stairs(np.array([1.0, 2, 3, 4]), np.array([0.1, 0.2, 0.2, 0.02]))  # warm-up, then a fall after 3
  np.testing.assert_array_equal((x, y), [[1, 2, 3, 3, 4], [0.1, 0.2, 0.2, 0.02, 0.02]])
  rows = [
    row | {'train/learning_rate': rate} for row, rate in zip(training((10, 1), (20, 1), (30, 1)), (0.1, 0.1, 0.01))
  ]
  for schedule, points in (
    ('step', [(1, 0.1), (2, 0.1), (2, 0.01), (3, 0.01)]),
    ('cosine', [(1, 0.1), (2, 0.1), (3, 0.01)]),
  ):
    run = made_run(rows=rows, **{'optimizer.schedule': schedule})
    (line,) = curves.learning_rate(run, ['train/learning_rate']).axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), points)


def test_figure_of_accuracy_against_size():
  near = [[model_size.Point(f'run{i}', 'student', 200_000 + 100 * i, 100 - i / 50)] for i in range(5)]
  far = [[model_size.Point('big', 'teacher', 64 * 8 * 1024 * 1024, 40.0)]]
  figure = pareto.draw(near + far)
  (panel,) = figure.axes
  low, high = panel.get_ylim()
  assert 0 <= low < 40 and high == 100
  markers = [line for line in panel.lines if len(line.get_xdata())]
  assert len(markers) == 6 and not any(line.get_clip_on() for line in markers)
  assert markers[-1].get_xdata() == [65536] and panel.get_xscale() == 'log'  # KiB
  assert [pareto.size_text(kib) for kib in (0.5, 25, 1024, 65536)] == ['0.5 KiB', '25 KiB', '1 MiB', '64 MiB']
  figure.draw_without_rendering()
  labels = [text for text in panel.texts if text.get_text()]
  assert {text.get_text() for text in labels} == {*(f'student (run{i})' for i in range(5)), 'teacher (big)'}
  boxes = [text.get_window_extent() for text in labels]
  for i, box in enumerate(boxes):
    assert not box.count_overlaps(boxes[:i]) and box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_front_is_named_from_three_points_on():
  runs = [
    made_run(f'runs/{name}', summary=results(student=top1), bits=bits)
    for name, top1, bits in (('small', 80.0, BITS[1:2]), ('large', 90.0, BITS[:2]), ('worse', 70.0, BITS[:2]))
  ]
  two, three = pareto.section(runs[0], runs[1:2]), pareto.section(runs[0], runs[1:])
  assert 'Pareto' not in two.text and 'on the front' not in two.table
  assert 'Pareto' in three.text and three.table.count('<td>yes</td>') == 2


def test_numbers_stand_to_the_right():
  text = page.table(('name', 'value', 'mixed'), [('a', '1,234', '3'), ('b', '99.44 %', 'x'), ('c', '', '')])
  assert text.count('<td class="n">') == 3 and '<th class="n">value</th>' in text
  assert '<td>3</td>' in text and '<td>a</td>' in text
  assert 'class="n"' not in page.table((), [('seed', 0)]) and '<th>empty</th>' in page.table(('empty',), [])
  assert '<td class="long">' in page.table(('note', 'n'), [('x' * 40, 1)])


def test_pauses_are_left_out_of_the_time():
  times = {10: 0.0, 20: 10.0, 30: 20.0, 40: 3000.0, 50: 3010.0}  # a second a step; stopped after step 30
  rows = [{'step': step, 'time': time} for step, time in times.items()]
  assert training_rows.run_time(rows) == (30, 2980)
  # An evaluation takes its time, and six times as long for some steps is no pause.
  rows = [
    {'step': step, 'time': time} for step, time in ((10, 0.0), (10, 500.0), (20, 510.0), (30, 520.0), (40, 579.0))
  ]
  assert training_rows.run_time(rows) == (579, 0)
  # From ten times the usual on, and a minute.
  for gap, expected in ((99.0, (129, 0)), (101.0, (30, 101))):
    rows = [{'step': 10 * i, 'time': time} for i, time in enumerate((0.0, 10.0, 20.0, 30.0, 30.0 + gap))]
    assert training_rows.run_time(rows) == expected
  assert training_rows.run_time(rows[:1]) == training_rows.run_time([]) == (0, 0)


def test_facts_say_that_pauses_and_a_held_out_test_are_there():
  rows = training(*((step, 1.0) for step in range(10, 60, 10)))
  for row in rows[3:]:
    row['time'] += 3600
  summary = results(student=1.0) | {'test': '20 % of the images of every class <held out>'}
  facts = overview.sections(made_run(rows=rows, summary=summary))[0].table
  assert '30.0 s from first to last logged line, without pauses (1 h 0 min)' in facts
  assert '<td>test split</td><td>20 % of the images of every class &lt;held out&gt;</td>' in facts
  facts = overview.sections(made_run(rows=rows[:3], summary=results(student=1.0)))[0].table
  assert '20.0 s from first to last logged line<' in facts and 'test split' not in facts


def test_classes_have_their_number_of_images():
  (panel, _) = confusion.draw(np.array([[15, 5], [0, 1200]]), ['cat', 'dog']).axes
  assert [text.get_text() for text in panel.get_yticklabels()] == ['cat (20)', 'dog (1,200)']
  assert [text.get_text() for text in panel.get_xticklabels()] == ['cat', 'dog']


def test_compared_runs_are_named_by_what_differs():
  single, more = {'method.name': 'single'}, {'student.weight_bits': 4, 'log_every': '7 steps'}
  names = lambda *runs: comparison.names([made_run(directory, **changes) for directory, changes in runs])
  assert names(('a/digits', {}), ('b/alone', single)) == ['digits', 'alone']
  assert names(('a/seed0', {}), ('b/seed0', single)) == ['method.name=cmtkd', 'method.name=single']
  assert names(('run1', more), ('run2', single)) == [
    'method.name=cmtkd, student.weight_bits=4',
    'method.name=single, student.weight_bits=2',
  ]
  assert names(('run1', {}), ('run2', {})) == ['run1', 'run2']
  assert names(('a/x', {}), ('b/x', {})) == ['a/x', 'b/x']
  assert names(('run', {})) == ['run']
