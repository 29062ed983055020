"""The bit table, by hand, and where feature maps go through more than layers: recomputed stages, and pools."""

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import ORDERS, bit_table
from cmtkd_jax.models.bit_policy import parse_rules
from cmtkd_jax.training import build, teachers


def make_config(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict({'method.name': 'single', 'model.width': 1 / 16, **changes})
  return config


def table(**changes):
  return bit_table.collect(build.create_method(make_config(**changes), 10), (32, 32, 3))


@pytest.mark.parametrize('method', ['single', 'cmtkd'])
def test_stages_that_are_computed_again_read_the_same_bits(method):
  changes = {'method.name': method, 'method.cmtkd.teacher_bits': (4,)}
  assert table(**changes, remat='.*') == table(**changes)


@pytest.mark.parametrize('order', ORDERS)
def test_a_maximum_has_the_bits_of_its_map(order):
  """`post` pools quantized maps, the others before they are quantized; the classifier reads an average."""
  rows = table(**{'model.stem': 'imagenet', 'model.block_order': order, 'student.activation_bits': 3})
  read = {row.layer: row.activation_bits for row in rows}
  assert {layer for layer, width in read.items() if width == 32} == {
    'student/stage1/stem/conv',
    'student/head/classifier',
  }
  assert set(read.values()) == {32, 3}


def test_a_maximum_of_a_relu_has_32_bits():
  rows = table(**{'model.stem': 'imagenet', 'model.block_order': 'post', 'student.activation_bits': 32})
  assert {row.activation_bits for row in rows} == {32}


def test_a_network_of_another_width_has_lines_of_its_own():
  """A kernel of 3x3 from 1 to 1 channels has 9 parameters, from 2 to 2 it has 36; both stems read the image."""
  teacher = teachers.Teacher('run', make_config(**{'model.width': 2 / 16}))
  method = build.create_method(make_config(**{'method.name': 'kd', 'teacher_workdirs': ('run',)}), 10, (teacher,))
  lines = bit_table.render(bit_table.collect(method, (8, 8, 3))).splitlines()
  found = [line.split() for line in lines if line.startswith('stage1/block1/conv1 ')]
  assert found == [
    ['stage1/block1/conv1', '9', '576', '2/2', '-'],
    ['stage1/block1/conv1', '36', '2,304', '-', '2/2'],
  ]


def small_cmtkd():
  """ResNet8 with teachers of 4 and 8 bits."""
  config = config_lib.default()
  config.method.cmtkd.teacher_bits = (4, 8)
  return config


def table_of(config):
  """`{layer: (weight bits, activation bits, parameters, MACs)}` for images of 8x8x1 in ten classes."""
  method = build.create_method(config, 10)
  return {row.layer: row[1:] for row in bit_table.collect(method, (8, 8, 1), parse_rules(config.bits.rules))}


def test_bit_table_by_hand():
  rows = table_of(small_cmtkd())
  costs = {  # layer: (parameters, MACs), counted by hand
    'stage1/stem/conv': (9 * 16, 9 * 16 * 64),
    'stage1/block1/conv1': (9 * 16 * 16, 9 * 16 * 16 * 64),
    'stage1/block1/conv2': (9 * 16 * 16, 9 * 16 * 16 * 64),
    'stage2/block1/conv1': (9 * 16 * 32, 9 * 16 * 32 * 16),
    'stage2/block1/conv2': (9 * 32 * 32, 9 * 32 * 32 * 16),
    'stage2/block1/shortcut': (16 * 32, 16 * 32 * 16),
    'stage3/block1/conv1': (9 * 32 * 64, 9 * 32 * 64 * 4),
    'stage3/block1/conv2': (9 * 64 * 64, 9 * 64 * 64 * 4),
    'stage3/block1/shortcut': (32 * 64, 32 * 64 * 4),
  }
  expected = {'combined_head/classifier': (32, 32, 640, 640), 'student/head/classifier': (32, 32, 640, 640)}
  for network, bits in (('student', 2), *zip(('teacher1_4bit', 'teacher2_8bit'), (4, 8))):
    for layer, expense in costs.items():
      first = layer == 'stage1/stem/conv'
      # Teachers read the mixture after a tap, which is on no grid.
      mixed = network != 'student' and layer in (
        'stage2/block1/conv1',
        'stage2/block1/shortcut',
        'stage3/block1/conv1',
        'stage3/block1/shortcut',
      )
      expected[f'{network}/{layer}'] = (32 if first else bits, 32 if first or mixed else bits, *expense)
  assert rows == expected
  text = bit_table.render([bit_table.LayerCost(layer, *row) for layer, row in rows.items()])
  line = next(line for line in text.splitlines() if line.startswith('stage2/block1/conv1 '))
  assert line.split() == ['stage2/block1/conv1', '4,608', '73,728', '4/32', '8/32', '2/2', '-']


def test_bit_table_follows_options_and_rules():
  config = small_cmtkd()
  config.bits.first_last, config.bits.shortcut, config.method.cmtkd.requantize = 8, 'full_precision', True
  config.bits.rules = (
    ('student/stage2/block1/conv2', 3, 5),
    ('student/stage2/.*', 6, 7),
    (r'teacher2_8bit/stage1_activation', 1, 5),
  )
  bits = {layer: row[:2] for layer, row in table_of(config).items()}
  assert bits['student/stage1/stem/conv'] == (8, 32) and bits['student/head/classifier'] == (8, 32)
  assert bits['student/stage2/block1/conv1'] == (6, 2)
  assert bits['student/stage2/block1/conv2'] == (3, 7)
  assert bits['student/stage2/block1/shortcut'] == (6, 2)
  assert bits['student/stage3/block1/shortcut'] == (32, 2)
  # A mixture that is quantized again has the teacher's own bits.
  assert bits['teacher1_4bit/stage2/block1/conv1'] == (4, 4)
  assert bits['teacher2_8bit/stage2/block1/conv1'] == (8, 5)
  config.method.name, config.student.weight_bits, config.student.activation_bits = 'single', 32, 32
  config.bits.rules = ()
  rows = table_of(config)
  assert {layer.split('/')[0] for layer in rows} == {'student'} and len(rows) == 10
  assert all(row[:2] == (32, 32) for row in rows.values())


def test_totals_by_hand():
  """100 parameters at 2 bits and 10 at 32; 1000 MACs at 2 x 4 bits and 50 at 32 x 32."""
  rows = [bit_table.LayerCost('student/a', 2, 4, 100, 1000), bit_table.LayerCost('student/b', 32, 32, 10, 50)]
  assert bit_table.total(rows) == (110, 200 + 320, 1050, 8000 + 51200)
  assert 'size of the weights, KiB' in bit_table.render(rows) and bit_table.render(rows).split()[-1] == '0.1'


def test_rule_that_matches_nothing_is_refused():
  config = small_cmtkd()
  config.method.name = 'single'
  config.bits.rules = (('student/.*', 2, 2), ('student/stage9/.*', 4, 4))
  with pytest.raises(UserError, match='config.bits.rules.*stage9'):
    table_of(config)


def test_rule_for_a_trained_teacher_is_refused():
  """It keeps the bits that it was trained with."""
  config = small_cmtkd()
  config.method.name = 'kd'
  config.bits.rules = (('teacher1/stage1.*', 4, 4),)
  teacher = teachers.Teacher('runs/teacher', config_lib.default())
  method = build.create_method(config, 10, (teacher,))
  with pytest.raises(
    UserError, match=r"config.bits.rules: 'teacher1/stage1.*' matches no layer that is trained; .* student/"
  ):
    bit_table.collect(method, (8, 8, 1), parse_rules(config.bits.rules))
