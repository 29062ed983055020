"""Tables say what was run, not what their recipe says."""

import json
import pathlib
import runpy
import types

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.cli import commands
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain, table, table_text
from cmtkd_jax.runs import run_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANDOM = 'these accuracies mean nothing'
FILES = sorted([*ROOT.glob('configs/*.py'), *ROOT.glob('benchmarks/*.py')])
TABLES = [path for path in FILES if 'config.table' in path.read_text() and 'def get_config' in path.read_text()]


@pytest.fixture
def config():
  config = runpy.run_path(str(ROOT / 'configs' / 'digits_resnet8.py'))['get_config']()
  config.table.title, config.table.seeds = 'Digits, ResNet8, 10 epochs', (0, 1)
  config.table.runs = dict(single=dict(method=dict(name='single')), cmtkd=dict(), later=dict())
  config.table.lines = (
    ('single', '2/2', 'single', 'student', (98.0, None)),
    ('CMT-KD', '2/2', 'cmtkd', 'student', (None, None)),
    ('combined teacher', '4, 6, 8', 'cmtkd', 'combined_teacher', (None, None)),
    ('later', '1/1', 'later', 'student', (None, None)),
  )
  return config


def finish(workdir, run, seed=0, epochs=40.0, widths=(2, 2), data='digits', top1=99.0, **more):
  """Writes the summary of a finished run."""
  result = {'last': {'top1': top1, 'top5': 100.0}, 'best': {'top1': 99.0, 'top5': 100.0, 'epoch': 1}}
  summary = {
    'config': {
      'model': {'name': 'resnet8'},
      'data': {'name': data},
      'student': {'weight_bits': widths[0], 'activation_bits': widths[1]},
    },
    'epochs': epochs,
    'commit': 'c0ffee',
    'device': '1 x cpu',
    'results': {'test/student': result, 'test/combined_teacher': result},
    **more,
  }
  directory = workdir / run / f'seed{seed}'
  directory.mkdir(parents=True)
  (directory / 'summary.json').write_text(json.dumps(summary))


def test_epochs_and_bits_are_those_that_were_run(config, tmp_path):
  finish(tmp_path, 'single', widths=(3, 4))
  finish(tmp_path, 'cmtkd')
  rows = table.collect(config, tmp_path)
  text = table_text.render(config.table.title, rows).splitlines()
  assert text[1:3] == ['Digits, ResNet8, 40 epochs', 'run: 40 epochs, network resnet8, digits']
  bits = {line[:16].strip(): line for line in text[4:8]}
  assert '3/4' in bits['single'] and '2/2' not in bits['single']
  assert '2/2' in bits['CMT-KD'] and '4, 6, 8' in bits['combined teacher'] and '1/1' in bits['later']
  assert RANDOM not in '\n'.join(text) and 'test:' not in '\n'.join(text)
  # What a recipe says stays in the JSON form, next to what was run.
  stored = json.loads(table_text.as_json(config.table.title, rows))
  assert stored['title'] == 'Digits, ResNet8, 10 epochs' and stored['printed_title'] == 'Digits, ResNet8, 40 epochs'
  assert stored['lines'][0]['bits'] == '2/2' and stored['lines'][0]['run_bits'] == ['3/4']
  assert table_text.markdown(config.table.title, rows).startswith('**Digits, ResNet8, 40 epochs**\n\nrun: 40 epochs')
  assert table_text.markdown('', rows).startswith('run: 40 epochs')
  assert table_text.render('', rows).startswith('\nrun: 40 epochs')


def test_differing_runs_are_all_named(config, tmp_path):
  finish(tmp_path, 'single', epochs=10.0)
  finish(tmp_path, 'single', seed=1, widths=(4, 4), epochs=2.5, data='npy:other')
  text = table_text.render(config.table.title, table.collect(config, tmp_path)).splitlines()
  assert text[1:3] == ['Digits, ResNet8, 2.5, 10 epochs', 'run: 2.5, 10 epochs, network resnet8, digits, npy:other']
  assert '2/2, 4/4' in text[4]
  cells = table_text.markdown('', table.collect(config, tmp_path)).splitlines()[4:6]
  assert [line.split(' | ')[2] for line in cells] == ['98.0 / -', '-']


def test_without_a_finished_run_the_recipe_speaks(config, tmp_path):
  text = table_text.render(config.table.title, table.collect(config, tmp_path)).splitlines()
  assert text[1] == 'Digits, ResNet8, 10 epochs' and not any(line.startswith('run:') for line in text)
  assert '2/2' in text[3]
  # None can be trained: each says why, and so does the last line, where there is not even a directory.
  config.data.name, config.table.only = 'npy:/nowhere', ('cmtkd', 'later')
  config.table.runs.cmtkd = dict(init_from='{single}')
  config.table.runs.later = dict(init_from='{cmtkd}')
  missing = "config.data.name='npy:/nowhere': /nowhere/train_images.npy does not exist"
  needed = f'it needs the run single, which was not trained: {missing}'
  said = []
  with pytest.raises(UserError, match=f'^config.table: no run could be trained; single: {missing}; the folder must'):
    table.train_table(config, tmp_path / 'new', said.append)
  reasons = [line for line in said if line.startswith('not run: ')]
  assert reasons[0].startswith(f'not run: {missing}; the folder must') and reasons[3] == reasons[0]
  assert reasons[1:3] == [f'not run: {needed}'] * 2
  assert [row['note'] for row in table.train_table(config, tmp_path)] == [needed] * 3


def test_random_images_and_a_held_out_test_are_said_once(config, tmp_path):
  held_out = '20 % of the images of every class, held out from training'
  finish(tmp_path, 'single', data='generated:8x8x1:10:48', test=held_out)
  finish(tmp_path, 'cmtkd', test=held_out)
  rows = table.collect(config, tmp_path)
  for form in (table_text.render, table_text.markdown):
    printed = form(config.table.title, rows)
    assert printed.count(f'test: {held_out}') == 1 and printed.count(RANDOM) == 1


def test_runs_that_stopped_early_are_counted(config, tmp_path):
  finish(tmp_path, 'cmtkd')
  assert 'stopped early' not in table_text.render('', table.collect(config, tmp_path))
  finish(tmp_path, 'cmtkd', seed=1, epochs=4.5, stopped_early='stopped early at step 96: ...')
  rows = table.collect(config, tmp_path)
  assert [row['stopped_early'] for row in rows] == [[], [1], [1], []]  # two lines of one run
  assert table_text.markdown('', rows).count('1 of 2 seeds of cmtkd stopped early.') == 1


def test_differences_are_paired_by_seed(config, tmp_path):
  for seed, top1 in enumerate((90.0, 80.0, 70.0)):
    finish(tmp_path, 'single', seed, top1=top1)
  for seed, top1 in ((1, 82.0), (2, 73.0), (3, 99.0)):  # Seed 3 has no partner.
    finish(tmp_path, 'cmtkd', seed, top1=top1)
  finish(tmp_path, 'later', 0, top1=88.5)
  finish(tmp_path, 'later', 9, top1=88.5)
  assert [row['difference'] for row in table.collect(config, tmp_path)] == [None] * 4
  config.table.baseline = 'single'
  rows = table.collect(config, tmp_path)
  single, student, combined, later = (row['difference'] for row in rows)
  assert single is None and student == combined and student['values'] == [2.0, 3.0]
  assert (student['mean'], student['standard_error']) == pytest.approx((2.5, 0.5))
  assert (later['mean'], later['standard_error']) == (-1.5, None)
  text = table_text.markdown(config.table.title, rows)
  assert text.splitlines()[4].split(' | ')[4] == 'difference'
  assert [line.split(' | ')[4] for line in text.splitlines()[6:10]] == ['-', '+2.50 ± 0.50', '+2.50 ± 0.50', '-1.50']
  assert [line.split(' | ')[5] for line in text.splitlines()[6:10]] == ['10.00', '13.20', '13.20', '0.00']
  assert 'Difference to single: top-1 of the last epoch' in text
  config.table.baseline, config.table.seeds = 'later', (1, 2)
  assert [row['note'] for row in table.collect(config, tmp_path)][:2] == ['', 'no seed in common with later']
  config.table.baseline = 'singel'
  with pytest.raises(UserError, match="there is no run 'singel'"):
    table.collect(config, tmp_path)


def test_results_on_held_out_training_images(config, tmp_path):
  of = lambda top1: {'last': {'top1': top1, 'top5': 100.0}, 'best': {'top1': top1, 'top5': 100.0, 'epoch': 1}}
  for run, top1 in (('single', 60.0), ('cmtkd', 62.0)):
    results = {'test/student': of(99.0), 'minival/student': of(top1), 'minival/combined_teacher': of(70.0)}
    finish(tmp_path, run, results=results)
  config.table.split, config.table.baseline = 'minival', 'single'
  with pytest.raises(
    UserError, match=r"^config.table.split='minival' .*config.data.minival=0.0 holds out none; set it"
  ):
    table.collect(config, tmp_path)
  config.data.minival = 0.2
  rows = table.collect(config, tmp_path)
  assert [row['last'] and row['last']['top1']['mean'] for row in rows] == [60.0, 62.0, 70.0, None]
  assert rows[1]['difference']['mean'] == 2.0
  text = table_text.render(config.table.title, rows)
  assert 'on held-out training images (minival): mean' in text and 'test split' not in text
  finish(tmp_path, 'cmtkd', 1)
  with pytest.raises(UserError, match="run 'cmtkd' has no results of network 'student' on minival; .*table.split$"):
    table.collect(config, tmp_path)


def test_only_training_writes_the_table(config, tmp_path, monkeypatch):
  finish(tmp_path, 'single')
  for name in ('table.md', 'table.json'):
    (tmp_path / name).write_text('as it was')
  table.collect(config, tmp_path)
  assert {(tmp_path / name).read_text() for name in ('table.md', 'table.json')} == {'as it was'}
  monkeypatch.setattr(table.chain, 'train_chain', lambda *unused: None)
  rows = table.train_table(config, tmp_path)
  assert (tmp_path / 'table.md').read_text() == table_text.markdown(config.table.title, rows)
  assert json.loads((tmp_path / 'table.json').read_text())['lines'][0]['seeds'] == [0]


def test_files_have_all_rows_also_where_one_is_trained(config, tmp_path, monkeypatch):
  finish(tmp_path, 'single')
  finish(tmp_path, 'cmtkd')
  finish(tmp_path, 'cmtkd', seed=7)  # one more than is planned, in place of none
  config.table.only = ('cmtkd',)
  monkeypatch.setattr(table.chain, 'train_chain', lambda *unused: None)
  assert [row['title'] for row in table.train_table(config, tmp_path)] == ['CMT-KD', 'combined teacher']
  written = json.loads((tmp_path / 'table.json').read_text())['lines']
  assert [(row['title'], row['seeds'], row['note']) for row in written] == [
    ('single', [0], '1 seed not run'),
    ('CMT-KD', [0, 7], '1 seed not run'),
    ('combined teacher', [0, 7], '1 seed not run'),
    ('later', [], '2 seeds not run'),
  ]
  assert not list(tmp_path.glob('*.tmp'))


def test_a_note_is_no_missing_run(config, tmp_path, monkeypatch):
  """`--mode=table` exits with 1 only where a run that was asked for is missing; a note names the seed that failed."""
  config.table.only = ('single', 'cmtkd')
  for run in ('single', 'cmtkd'):
    for seed in (0, 1):
      finish(tmp_path, run, seed, config=dict(config.to_dict(), duration=f'{seed + 1} epochs'))

  def diverged(run_config, directory, *unused):
    if directory.endswith('cmtkd/seed1'):
      raise UserError('the loss is not finite')

  monkeypatch.setattr(table.chain, 'train_chain', lambda *unused: None)
  rows = table.train_table(config, tmp_path)
  assert {(row['is_complete'], row['note']) for row in rows} == {(True, 'seeds differ in duration')}
  run_table = lambda: commands.run_table(types.SimpleNamespace(config=config, workdir=str(tmp_path)))
  assert run_table() == 0
  monkeypatch.setattr(table.chain, 'train_chain', diverged)
  rows = {row['run']: row for row in table.train_table(config, tmp_path)}
  assert rows['single']['is_complete'] and not rows['cmtkd']['is_complete']
  assert rows['cmtkd']['note'] == 'seed 1: the loss is not finite' and run_table() == 1
  config.table.only = ('later',)
  assert run_table() == 1
  config.table.only = ()
  for seeds, complete in (((0,), True), ((1, 0), True), ((0, 3), False)):  # of those that were asked for
    config.table.seeds = seeds
    assert table.collect(config, tmp_path)[0]['is_complete'] == complete


@pytest.mark.parametrize('only, trained', [((), ['later', 'single']), (('cmtkd',), ['cmtkd'])])
def test_runs_that_no_line_prints(config, tmp_path, monkeypatch, only, trained):
  """The baseline and runs that are named are trained all the same."""
  config.table.lines = config.table.lines[:1]
  config.table.only, config.table.baseline, config.table.seeds = only, 'later', (0,)
  seen = []
  monkeypatch.setattr(table.chain, 'train_chain', lambda run, directory, *unused: seen.append(directory))
  tmp_path.joinpath('table.md').touch()
  table.train_table(config, tmp_path)
  assert seen == [f'{tmp_path}/{name}/seed0' for name in trained]


def test_of_several_processes_none_goes_on_alone(config, tmp_path, monkeypatch):
  """An error of one process would leave the others waiting in a run that it has left."""

  def locked(*unused):
    raise UserError('is in use')

  finish(tmp_path, 'single')
  monkeypatch.setattr(table.chain, 'train_chain', locked)
  assert {row['note'] for row in table.train_table(config, tmp_path)} == {'is in use'}
  monkeypatch.setattr(table.jax, 'process_count', lambda: 2)
  with pytest.raises(UserError, match='is in use'):
    table.train_table(config, tmp_path)


@pytest.mark.parametrize('enter', [config_lib.check, table.train_table, table.collect])
@pytest.mark.parametrize(
  'field, value, message',
  [
    ('seeds', (), 'give one or more different numbers'),
    ('seeds', (0, 0), 'give one or more different numbers'),
    ('split', 'train', "is not one of 'test', 'minival'"),
    ('only', ('singel',), "there is no run 'singel'"),
    ('baseline', 'singel', "there is no run 'singel'"),
  ],
)
def test_wrong_values_are_refused_before_a_run_begins(config, tmp_path, monkeypatch, enter, field, value, message):
  monkeypatch.setattr(table.chain, 'train_chain', lambda *unused: pytest.fail('a run has begun'))
  config.table[field] = value
  with pytest.raises(UserError, match=f'^config.table.{field}=.*{message}'):
    enter(config, *([] if enter is config_lib.check else [tmp_path]))


@pytest.mark.parametrize('path', [*TABLES], ids=lambda path: path.stem)
@pytest.mark.parametrize('argument', ['', 'smoke'])
def test_every_table_can_be_collected(path, argument, tmp_path):
  config = runpy.run_path(str(path))['get_config'](argument)
  assert len(table.collect(config, tmp_path)) == len(config.table.lines) > 0
  if argument == 'smoke':
    own = {field for run in config.table.runs.values() for field in run}
    assert config.duration == '3 steps' and not own & {'duration', 'eval_every', 'checkpoint_every', 'batch_size'}


@pytest.mark.parametrize(
  'name, row, unread',  # unread: by networks alone
  [
    ('few_digits_average_teacher', 'average_deep', {'method.average_teacher.beta'}),
    ('few_digits_cmtkd', 'cmtkd', {'method.cmtkd.beta', 'feature_loss.name'}),
  ],
)
def test_a_recipe_is_the_row_that_was_measured(name, row, unread):
  load = lambda name, argument='': runpy.run_path(str(ROOT / f'{name}.py'))['get_config'](argument)
  recipe, study = load(f'configs/{name}'), load('benchmarks/few_digits_cutmix')
  fields = lambda config, changes: config_lib.flat(config_lib.derive(config, changes.to_dict()))
  assert fields(recipe, type(recipe)()) == fields(study, study.table.runs[row])
  for earlier in recipe.prerequisites:
    own, measured = config_lib.flat(chain.prerequisite(recipe, earlier)), fields(study, study.table.runs[earlier])
    assert {field for field in own if own[field] != measured[field]} == unread
  small = load(f'configs/{name}', 'smoke')
  assert {fields(small, changes)['duration'] for changes in small.prerequisites.values()} == {'3 steps'}


def test_a_summary_of_an_earlier_version(config, tmp_path):
  finish(tmp_path, 'single')
  path = tmp_path / 'single' / 'seed0' / 'summary.json'
  summary = json.loads(path.read_text())
  del summary['config'], summary['device']
  path.write_text(json.dumps(summary))
  with pytest.raises(UserError, match='is damaged'):
    table.collect(config, tmp_path)
  path.write_text('{"results": 3}')
  with pytest.raises(UserError, match='is damaged'):
    table.collect(config, tmp_path)


def test_seeds_of_other_configurations_are_noted(config, tmp_path):
  finish(tmp_path, 'single', 0)
  finish(tmp_path, 'single', 1, data='other')
  finish(tmp_path, 'cmtkd', 0)
  finish(tmp_path, 'cmtkd', 1)
  notes = {row['run']: row['note'] for row in table.collect(config, tmp_path)}
  assert notes['single'] == 'seeds differ in data.name' and notes['cmtkd'] == ''


def test_only_fields_that_a_run_reads_are_noted():
  def differing(field, values):
    configs = [config_lib.default() for _ in values]
    for config, value in zip(configs, values):
      config.update_from_flattened_dict({'quantizer.name': 'hwgq', field: value})
    return table._differing({seed: {'config': config.to_dict()} for seed, config in enumerate(configs)})

  assert differing('quantizer.lqw_caq.weight.gradient', ('sum', 'mean')) == []
  assert differing('quantizer.weights', ('', 'lsq')) == ['quantizer.weights']
  assert differing('method.cmtkd.beta', (0.5, 2.0)) == ['method.cmtkd.beta']


@pytest.mark.parametrize('published', [None, 78.1, ('78.1', '90'), (78.1,), (True, None)])
def test_published_figures_are_a_pair_of_numbers(published, config, tmp_path):
  config.table.lines = (('single', '2/2', 'single', 'student', published),)
  with pytest.raises(
    UserError, match=r'config.table.lines: .* give the published \(top-1, top-5\), None where unknown'
  ):
    table.train_table(config, tmp_path / 'table')
  assert not (tmp_path / 'table').exists()


def test_a_table_without_lines_is_refused(config, tmp_path):
  config.table.lines = ()
  with pytest.raises(UserError, match='config.table.lines is empty; give a line for each run'):
    table.train_table(config, tmp_path)


def test_a_run_that_fails_and_that_no_line_prints_is_said(config, tmp_path):
  finish(tmp_path, 'single')
  config.data.name, config.table.only = 'npy:/nowhere', ('hidden',)
  config.table.runs.hidden = {}
  (row,) = table.train_table(config, tmp_path)
  assert row['run'] == 'hidden' and not row['is_complete'] and '/nowhere' in row['note']
  assert '/nowhere' in (tmp_path / 'table.md').read_text()


def test_a_run_has_begun_once_one_that_comes_first_has(config, tmp_path):
  config.table.runs.later = dict(prerequisites=dict(first={}))
  note = lambda: table.collect(config, tmp_path)[3]['note']
  (tmp_path / 'later' / 'seed0' / 'first').mkdir(parents=True)
  assert note() == '2 seeds not run'
  (tmp_path / 'later' / 'seed0' / 'first' / run_files.CONFIG).touch()
  assert note() == 'not finished'


def test_a_column_that_no_row_fills_is_left_out(config, tmp_path):
  finish(tmp_path, 'single')
  header = lambda: table_text.render('', table.collect(config, tmp_path))
  assert 'published' in header() and 'difference' not in header()
  config.table.lines = tuple((*line[:4], (None, None)) for line in config.table.lines)
  assert 'published' not in header() and 'last epoch' in header()


def test_names_of_runs_may_have_any_sign(config):
  runs = config_lib.default().table.runs
  runs['x'], runs['w2-a2, größer'] = dict(init_from='{w2-a2, größer}'), dict()
  assert chain.in_order(runs, ['x']) == ['w2-a2, größer', 'x']
  config.init_from = 'student={w2-a2, größer}'
  assert chain.resolve(config, {'w2-a2, größer': 'DIR'}).init_from == 'student=DIR'
