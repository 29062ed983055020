"""What bit policies cost before training: runs of a table side by side, and one configuration with its layers."""

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import cost


@pytest.fixture
def config():
  """CMT-KD of ResNet8 with teachers of 4 and 8 bits, on images of 8x8x1 in ten classes."""
  config = config_lib.default()
  config.method.cmtkd.teacher_bits = (4, 8)
  config.data.name = 'generated:8x8x1:10:48'
  config.batch_size = 32
  return config


def test_policies_are_compared_before_training(config):
  """Two rule sets as runs of a table: stage 3 at 4 bits costs its 57,344 weights and their products 2 bits more."""
  config.table.runs = dict(
    uniform={}, deep=dict(bits=dict(rules=(('student/stage3/.*', 4, 4), ('student/stage2_activation', 4, 4))))
  )
  compared = cost.compare(config)
  totals = compared.students
  assert totals['deep'].size - totals['uniform'].size == 2 * (18432 + 36864 + 2048)
  stage3 = 18432 * 4 + 36864 * 4 + 2048 * 4  # MACs at 2x2
  assert totals['deep'].bops - totals['uniform'].bops == stage3 * (16 - 4)
  assert compared.layers == []
  lines = cost.render(compared, 'cmtkd').splitlines()
  assert [line.split()[0] for line in lines] == ['student', 'deep', 'uniform']


def test_policies_on_other_data_are_compared_on_theirs(config):
  """100 classes in place of 10: 90 more rows of the classifier's 64 weights."""
  config.table.runs = dict(ten={}, hundred=dict(data=dict(name='generated:8x8x1:100:480')))
  found = cost.compare(config).students
  assert found['hundred'].parameters - found['ten'].parameters == 90 * 64


def test_one_configuration_has_its_layers(config):
  """Its student is counted as if it were alone: the teachers' layers are listed and not counted."""
  found = cost.compare(config)
  networks = {row.layer.split('/')[0] for row in found.layers}
  assert networks == {'student', 'teacher1_4bit', 'teacher2_8bit', 'combined_head'}
  own = [row for row in found.layers if row.layer.startswith('student/')]
  assert list(found.students) == [''] and found.students[''].parameters == sum(row.parameters for row in own)
  lines = cost.render(found, 'cmtkd').splitlines()
  assert 'teacher1_4bit' in lines[1] and lines[-1].split()[0] == 'cmtkd'


def test_layers_of_trained_teachers_are_not_shown(config):
  config.method.name, config.teacher_workdirs = 'kd', ('{teacher}',)
  config.prerequisites.teacher = {}
  found = cost.compare(config)
  assert found.layers == [] and found.students[''].parameters > 0


def test_weights_that_are_still_to_train_change_no_bits(config):
  alone = cost.compare(config)
  config.init_from = '{first}'
  config.prerequisites.first = {}
  assert cost.compare(config) == alone


def test_only_the_runs_that_are_asked_for(config):
  config.table.runs = dict(a={}, b={})
  config.table.lines = (('a', '2/2', 'a', 'student', None),)
  config.table.only = ('b',)
  assert list(cost.compare(config).students) == ['b']


def test_a_configuration_that_cannot_be_trained_is_refused(config):
  config.student.weight_bits = 9
  with pytest.raises(UserError, match='config.student.weight_bits=9'):
    cost.compare(config)
