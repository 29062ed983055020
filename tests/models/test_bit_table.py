"""The bit table of networks whose maps go through more than layers: recomputed stages, and pools."""

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.models import ORDERS, bit_table
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
