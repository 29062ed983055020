"""Durations, the checks of a configuration, its JSON, and the files in configs/."""

import json
import pathlib
import runpy

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import durations, validation
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods import METHODS

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
SIZES = dict(steps_per_epoch=20, batch_size=64)

# Durations.


@pytest.mark.parametrize(
  'text, steps',
  [
    ('', ()),
    ('  ', ()),
    ('3000 steps', (3000,)),
    ('1 step', (1,)),
    ('120 epochs', (2400,)),
    ('1 epoch', (20,)),
    ('0.5 epochs', (10,)),
    ('6400 examples', (100,)),
    ('64 example', (1,)),
    ('100 examples', (2,)),
    ('50, 100 epochs', (1000, 2000)),
    (' 30 ,60,  90 steps ', (30, 60, 90)),
    ('0 steps', (0,)),
  ],
)
def test_durations(text, steps):
  parsed = durations.parse(text, 'config.duration', **SIZES)
  assert parsed == steps and all(isinstance(step, int) for step in parsed)


@pytest.mark.parametrize(
  'text',
  [
    '100',
    'epochs',
    '10 hours',
    '-3 steps',
    '10 epochs 3 steps',
    '10 steps, 3 epochs',
    '1e3 steps',
    '3,, 4 steps',
    '3 4 steps',
    ', 3 steps',
    'steps 3',
    'nan steps',
  ],
)
def test_bad_durations_are_refused(text):
  with pytest.raises(UserError, match='config.log_every'):
    durations.parse(text, 'config.log_every', **SIZES)


def test_one_duration():
  assert durations.parse_one('2 epochs', 'config.duration', **SIZES) == 40
  assert durations.parse_one('', 'config.duration', **SIZES) == 0
  with pytest.raises(UserError, match='config.duration'):
    durations.parse_one('2, 3 epochs', 'config.duration', **SIZES)


def test_the_form_of_every_duration_is_checked():
  words = ('duration', "epochs'", "steps'")
  count = {
    name: field.allowed['durations'] for name, field in config_lib.fields().items() if field.allowed.get('durations')
  }
  assert count.keys() >= {
    name
    for name, field in config_lib.fields().items()
    if isinstance(field.default, str) and any(word in f'{field.doc} {field.default!r}' for word in words)
  }
  assert {name for name in count if count[name] == 'several'} == {
    'optimizer.decay_at',
    *(f'{value}_schedule.change_at' for value in ('beta', 'gamma', 'temperature')),
  }
  for field in count:
    config = config_lib.default()
    config.optimizer.schedule = 'step'
    set_field(config, field, '5 weeks')
    with pytest.raises(UserError, match=f"config.{field}='5 weeks' is not a duration") as error:
      config_lib.check(config)
    assert ('50, 100 epochs' in str(error.value)) == (count[field] == 'several')


# Configurations.


def test_default_is_accepted():
  config_lib.check(config_lib.default())


def set_field(config, field, value):
  *parents, name = field.split('.')
  for parent in parents:
    config = config[parent]
  with config.unlocked(), config.ignore_type():
    config[name] = value


@pytest.mark.parametrize(
  'field, value',
  [
    ('no_such_field', 1),
    ('optimizer.lr', 0.1),
    ('method.cmtkd.tau', 2.0),  # unknown
    ('seed', 'zero'),
    ('seed', 0.5),
    ('seed', None),
    ('batch_size', None),
    ('batch_size', True),
    ('model.name', 8),
    ('optimizer.nesterov', 1),
    ('optimizer.learning_rate', '0.1'),
    ('method.cmtkd.taps', 3),  # wrong type
    ('method.name', 'kdd'),
    ('dtype', 'float16'),
    ('model.name', 'vgg'),
    ('model.stem', 'x'),
    ('model.block_order', 'x'),
    ('bits.first_last', 4),
    ('bits.shortcut', 'x'),
    ('quantizer.name', 'lqw'),
    ('quantizer.weights', 'lqw'),
    ('optimizer.schedule', 'linear'),
    ('quantizer.hwgq.activation.scheme', 'x'),
    ('feature_loss.name', 'x'),
    ('logit_loss.name', 'x'),
    ('feature_loss.attention.norm', 'x'),
    ('feature_loss.fitnet.adaptor', 'x'),
    ('method.cmtkd.combined_head', 'x'),
    ('method.cmtkd.fused', 'x'),  # wrong choice
    ('seed', -1),
    ('batch_size', 0),
    ('model.width', 0.0),
    ('optimizer.learning_rate', 0.0),
    ('optimizer.grad_clip_norm', -1.0),
    ('optimizer.momentum', -0.1),
    ('optimizer.weight_decay', -1e-4),
    ('optimizer.learning_rate', float('nan')),
    ('student.weight_bits', 9),
    ('student.activation_bits', 0),
    ('method.cmtkd.alpha', -1.0),
    ('method.cmtkd.temperature', 0.0),
    ('feature_loss.attention.power', 0.0),
    ('feature_loss.fitnet.weight', -1.0),
    ('logit_loss.dkd.beta', -1.0),
    ('bits.rules', (('student/(', 2, 2),)),
    ('bits.rules', (('student/.*', 2),)),  # out of range
  ],
)
def test_config_check_refuses(field, value):
  config = config_lib.default()
  set_field(config, field, value)
  with pytest.raises(UserError, match=f'config.{field}'):
    config_lib.check(config)


def test_missing_field_is_refused():
  config = config_lib.default()
  with config.unlocked():
    del config.optimizer.momentum
  with pytest.raises(UserError, match='config.optimizer.momentum'):
    config_lib.check(config)


@pytest.mark.parametrize('method', METHODS)
def test_json_round_trip(method):
  config = config_lib.default()
  config.method.name = method
  again = config_lib.from_json(config_lib.to_json(config))
  assert again.to_dict() == config.to_dict() and config_lib.difference(config, again) == []
  assert config_lib.create(again, f'method.{method}') == METHODS[method].Settings()

  config.bits.rules = (('student/stage1/.*', 3, 4), ('teacher.*', 8, 8))
  config.method.cmtkd.update(teacher_bits=((2, 4), 8), taps=(3, 7), importance_init=(0.0, 1.0))
  config.feature_loss.attention.weight = 5.0
  config.optimizer.grad_clip_norm = 1.0
  again = config_lib.from_json(config_lib.to_json(config))
  assert again.to_dict() == config.to_dict()
  assert again.method.cmtkd.teacher_bits == ((2, 4), 8) and again.bits.rules[0] == ('student/stage1/.*', 3, 4)
  assert {line.split(':')[0] for line in config_lib.difference(config_lib.default(), again)} >= {
    'bits.rules',
    'method.cmtkd.teacher_bits',
    'feature_loss.attention.weight',
    'method.cmtkd.taps',
    'optimizer.grad_clip_norm',
  }


@pytest.mark.parametrize(
  'field, relative, absolute, other',
  [
    ('teacher_workdirs', ('runs/a', 'gs://b'), ('{here}/runs/a', 'gs://b'), ('{here}/a', 'gs://b')),
    ('init_from', 'runs/a', '{here}/runs/../runs/a/', '{here}/runs/b'),
    ('init_from', 'x=runs/a,y=~/b', 'x = {here}/runs/a, y={home}/b', 'y={here}/runs/a,x={home}/b'),
    ('data.name', 'npy:images', 'npy:{here}/images', 'folder:{here}/images'),
  ],
)
def test_a_relative_path_and_its_absolute_one_do_not_differ(field, relative, absolute, other, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))

  def of(value):
    config = config_lib.default()
    named = lambda text: text.format(here=tmp_path, home=tmp_path / 'home')
    config.update_from_flattened_dict({field: named(value) if isinstance(value, str) else tuple(map(named, value))})
    return config

  assert config_lib.difference(of(relative), of(absolute)) == []
  (line,) = config_lib.difference(of(relative), of(other))
  assert line.startswith(f'{field}: ')


@pytest.mark.parametrize(
  'before, now, same',
  [
    ('/old/kd/teacher', '/new/kd/teacher', True),
    ('/old/kd/teacher', '/new/kd/student', False),
    ('/old/kd/my_teacher', '/new/kd/teacher', False),
    ('/old/kd/teacher', '/new/teacher', False),  # not of the chain
    ('/old/kd', '/new/kd', False),
  ],
)
def test_runs_of_a_chain_that_was_moved_do_not_differ(before, now, same):
  def differing(field, value, root):
    a, b = config_lib.default(), config_lib.default()
    a[field], b[field] = value(before), value(now)
    return config_lib.difference(a, b, root=root)

  for field, value in (('teacher_workdirs', lambda path: (path,)), ('init_from', lambda path: f'student={path},x=/y')):
    assert differing(field, value, '')
    assert (differing(field, value, '/new/kd') == []) == same


def test_parts_of_other_installations_are_no_obstacle_where_they_are_not_used():
  stored = config_lib.default().to_dict()
  stored['feature_loss']['own'] = {'weight': 3.0}
  stored['quantizer']['lsq']['weight']['own'] = 1
  stored['method']['own'] = {'beta': 1.0}
  assert config_lib.difference(config_lib.from_json(json.dumps(stored)), config_lib.default()) == []
  stored['quantizer']['name'] = 'lsq'
  with pytest.raises(UserError, match='config.quantizer.lsq.weight.own: there is no such field'):
    config_lib.from_json(json.dumps(stored))
  stored['method']['name'] = 'own'
  del stored['quantizer']['lsq']['weight']['own']
  with pytest.raises(UserError, match="config.method.name='own' is not one of "):
    config_lib.from_json(json.dumps(stored))


def test_fields_of_other_versions_are_named():
  with pytest.raises(UserError, match='config.resident: there is no such field'):
    config_lib.from_json('{"resident": "no"}')


# Files.


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_file_is_valid_and_short(path):
  needs_folder = path.stem == 'folder'
  config_lib.check(runpy.run_path(str(path))['get_config']('smoke' if needs_folder else ''))
  text = path.read_text()
  assert text.count('\n') <= 75  # as ruff format breaks lines
  assert f'--config=configs/{path.name}' in text


@pytest.mark.parametrize(
  'file, argument, expected',
  [
    ('cifar100_resnet18', 'w3a3', {'student.weight_bits': 3, 'student.activation_bits': 3}),
    ('cifar100_resnet18', 'w4a4', {'student.activation_bits': 4, 'method.cmtkd.teacher_bits': (5, 6, 8)}),
    ('imagenet_resnet18', '', {'data.augment': 'inception_crop_flip', 'data.resize': 256}),
    ('imagenet_alexnet', 'resize_crop', {'data.augment': 'resize_crop_flip', 'data.resize': 256}),
    ('imagenet_resnet50', 'resize_crop,lsq', {'data.augment': 'resize_crop_flip', 'quantizer.name': 'lsq'}),
    ('imagenet_resnet18', 'resize_crop,smoke', {'data.augment': 'pad_crop_flip', 'data.resize': 0}),
    (
      'ctkd_cifar100',
      '',
      {'data.mean': (125.3 / 255, 123.0 / 255, 113.9 / 255), 'data.std': (63.0 / 255, 62.1 / 255, 66.7 / 255)},
    ),
  ],
)
def test_variants_of_files(file, argument, expected):
  config = runpy.run_path(str(CONFIGS / f'{file}.py'))['get_config'](argument)
  config_lib.check(config)
  found = config_lib.flat(config)
  assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
  'run, expected',
  [
    ('kd_lsq', {'bits.first_last': 8, 'quantizer.lsq.activation.count': 'features'}),
    ('lsq', {'bits.first_last': 32, 'quantizer.lsq.activation.count': 'batch'}),
    ('qkd', {'quantizer.name': 'qil', 'method.qkd.phase': 'tutoring'}),
  ],
)
def test_rows_of_table_5_with_settings_of_their_own(run, expected):
  config = runpy.run_path(str(CONFIGS / 'table5_imagenet.py'))['get_config']('')
  found = config_lib.flat(config_lib.derive(config, config.table.runs[run].to_dict()))
  assert {name: found[name] for name in expected} == expected


def test_smoke_shortens_the_networks_of_every_method():
  config = config_lib.default()
  config_lib.smoke(config, 8, channels=1)
  config_lib.check(config)
  found = {
    name: value
    for name, value in config_lib.flat(config).items()
    if name.endswith(('.teacher_bits', '.peer_bits')) and isinstance(value, tuple)
  }
  assert found.keys() == {'method.cmtkd.teacher_bits', 'method.dml.peer_bits', 'method.kdcl.peer_bits'}
  assert set(found.values()) == {(4, 8)}


def test_a_flag_for_one_run_leaves_those_that_share_its_dict_alone():
  config = config_lib.default()
  student, method = dict(weight_bits=1), dict(name='cmtkd', cmtkd=dict(beta=2.0))
  config.table.runs = {'one': dict(student=student, method=method), 'two': dict(student=student, method=method)}
  for field, value in (('student.weight_bits', 4), ('method.cmtkd.beta', 3.0), ('method.cmtkd.alpha', 5.0)):
    validation.add_to_run(config, f'table.runs.one.{field}')
    config.update_from_flattened_dict({f'table.runs.one.{field}': value})
  runs = config.table.runs.to_dict()
  assert runs['one'] == {
    'student': {'weight_bits': 4},
    'method': {'name': 'cmtkd', 'cmtkd': {'beta': 3.0, 'alpha': 5.0}},
  }
  assert runs['two'] == {'student': student, 'method': method}


def test_stages_that_are_computed_again_are_those_of_other_methods_only_in_the_student():
  config = config_lib.default()
  for remat, kept in (('teacher.*', ''), ('student', 'student'), ('.*', '.*')):
    config.remat = remat
    assert config_lib.derive(config, {'method': {'name': 'single'}}).remat == kept
    assert config_lib.derive(config, {'seed': 3}).remat == remat
    assert config_lib.derive(config, {'method': {'name': 'kd'}, 'remat': 'x.*'}).remat == 'x.*'
  config.remat = '('
  with pytest.raises(UserError, match=r"config.remat='\('"):
    config_lib.derive(config, {'method': {'name': 'single'}})


def test_rules_of_bits_are_for_runs_with_the_same_student():
  config = config_lib.default()
  config.bits.rules = (('student/stage3.*', 1, 2),)
  rules = lambda **changes: config_lib.derive(config, changes).bits.rules
  assert rules() == rules(student={'weight_bits': 2}, seed=3) == config.bits.rules
  assert rules(student={'weight_bits': 32, 'activation_bits': 32}) == rules(student={'activation_bits': 4}) == ()
  own = (('student/stage1.*', 8, 8),)
  assert rules(student={'weight_bits': 32}, bits={'rules': own}) == own


def test_smoke_shortens_the_schedule_of_a_row():
  config = config_lib.default()
  config.optimizer.schedule, config.optimizer.warmup = 'cosine', '1 epochs'
  config.table.runs = {'steps': {'optimizer': {'schedule': 'step', 'decay_at': '17, 33 epochs', 'warmup': '2 epochs'}}}
  config_lib.smoke(config, 8, channels=1)
  optimizer = config_lib.derive(config, config.table.runs['steps'].to_dict()).optimizer
  assert (optimizer.decay_at, optimizer.warmup, config.optimizer.warmup) == ('2 steps', '', '')
