"""The bit table of networks whose maps go through more than layers: recomputed stages, and pools."""

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.models import ORDERS, bit_table
from cmtkd_jax.training import build


def table(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict({'method.name': 'single', 'model.width': 1 / 16, **changes})
  return bit_table.collect(build.create_method(config, 10), (32, 32, 3))


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
