"""Fields that a flag sets in vain."""

import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import sections
from cmtkd_jax.config.unread import find

PER_CHANNEL = 'quantizer.lsq.weight.per_channel'


def changed(**fields):
  config = config_lib.default()
  config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
  return config


@pytest.mark.parametrize(
  'fields, field, reason',
  [
    ({}, PER_CHANNEL, "config.quantizer.name is 'hwgq'"),
    ({'quantizer__name': 'lsq'}, PER_CHANNEL, ''),
    ({'quantizer__weights': 'lsq'}, PER_CHANNEL, ''),
    ({'quantizer__weights': 'lsq'}, 'quantizer.lsq.activation.count', "config.quantizer.name is 'hwgq'"),
    ({'quantizer__name': 'lsq', 'quantizer__weights': 'twn'}, PER_CHANNEL, "config.quantizer.weights is 'twn'"),
    ({}, 'method.kd.beta', "config.method.name is 'cmtkd'"),
    ({}, 'method.cmtkd.beta', ''),
    ({}, 'feature_loss.fitnet.weight', "config.feature_loss.name is 'attention'"),
    ({}, 'feature_loss.name', ''),
    ({'method__name': 'kd'}, 'feature_loss.name', "config.method.name is 'kd', and feature_loss is for cmtkd"),
    ({'method__name': 'kd'}, 'logit_loss.name', ''),
    (
      {'method__name': 'dml'},
      'logit_loss.dkd.beta',
      "config.method.name is 'dml', and logit_loss is for average_teacher, cmtkd, kd",
    ),
    ({}, 'optimizer.momentum', ''),
    ({}, 'optimizer.beta2', "config.optimizer.name is 'sgd'"),
    ({'optimizer__name': 'lamb'}, 'optimizer.beta2', ''),
    ({}, 'optimizer.decay_factor', "config.optimizer.decay_at is ''"),
    ({'optimizer__decay_at': '5 epochs'}, 'optimizer.decay_factor', ''),
    ({}, 'averaging.start', "config.averaging.name is 'none'"),
    ({'averaging__name': 'swa'}, 'averaging.start', ''),
    ({'averaging__name': 'swa'}, 'averaging.decay', "config.averaging.name is 'swa'"),
    ({'averaging__name': 'ema'}, 'averaging.every', "config.averaging.name is 'ema'"),
    ({'averaging__name': 'swa'}, 'averaging.every', ''),
    ({}, 'freezing.max_bits', 'config.freezing.threshold is 0.0'),
    ({'freezing__threshold': 0.02}, 'freezing.momentum', ''),
    ({}, 'prerequisites.teacher.seed', ''),
    ({}, 'method.cmtkd.temperature', ''),
    ({'method__cmtkd__beta': 0.0}, 'method.cmtkd.temperature', 'config.method.cmtkd.beta is 0.0'),
    ({'method__cmtkd__beta': 0.0}, 'method.cmtkd.stop_gradient_target', 'config.method.cmtkd.beta is 0.0'),
    (
      {'logit_loss__name': 'logits_regression'},
      'method.cmtkd.temperature',
      "config.logit_loss.name is 'logits_regression'",
    ),
    ({'feature_loss__name': 'none'}, 'method.cmtkd.student_map', "config.feature_loss.name is 'none'"),
    ({'feature_loss__name': 'ofd'}, 'method.cmtkd.student_map', "config.feature_loss.name is 'ofd'"),
    ({'feature_loss__name': 'fitnet'}, 'method.cmtkd.student_map', ''),
    ({'feature_loss__name': 'none'}, 'method.cmtkd.stop_gradient_shared', "config.feature_loss.name is 'none'"),
    ({'feature_loss__name': 'ofd'}, 'method.cmtkd.stop_gradient_shared', ''),
    ({}, 'method.ctkd.temperature', "config.method.name is 'cmtkd'"),
    ({'method__name': 'ctkd'}, 'method.ctkd.temperature', 'config.method.ctkd.alpha is 0.0'),
    ({'method__name': 'ctkd', 'method__ctkd__beta': 0.0}, 'method.ctkd.attention_to', 'config.method.ctkd.beta is 0.0'),
    (
      {'method__name': 'apprentice', 'method__apprentice__scheme': 'B'},
      'method.apprentice.teacher_bits',
      "config.method.apprentice.scheme is 'B'",
    ),
    ({'method__name': 'guided'}, 'method.guided.temperature', "config.method.guided.hint is 'features'"),
    (
      {'method__name': 'qkd', 'method__qkd__phase': 'self_studying'},
      'method.qkd.temperature',
      "config.method.qkd.phase is 'self_studying'",
    ),
  ],
)
def test_what_no_run_reads(fields, field, reason):
  assert find(changed(**fields), [field]) == ({field: reason} if reason else {})


def test_options_that_others_turn_off_name_them():
  for field, option in sections.fields().items():
    for other, values in option.allowed.get('unread_with', {}).items():
      turns_off = sections.fields()[other if '.' in other else f'{field.rpartition(".")[0]}.{other}']
      for value in values:
        turns_off.check(value)


def test_a_field_of_one_run_is_judged_by_that_run():
  config = config_lib.default()
  config.prerequisites = {'full': {'method': {'name': 'single'}}}
  config.table.runs = {'kd': {'method': {'name': 'kd'}, 'quantizer': {'name': 'lsq'}, 'prerequisites': {'first': {}}}}
  found = {
    'prerequisites.full.method.kd.beta': "in this run config.method.name is 'single'",
    f'prerequisites.full.{PER_CHANNEL}': "in this run config.quantizer.name is 'hwgq'",
    'table.runs.kd.method.kd.beta': '',
    'table.runs.kd.method.cmtkd.beta': "in this run config.method.name is 'kd'",
    f'table.runs.kd.prerequisites.first.{PER_CHANNEL}': '',
    'seed': 'the runs of a table have config.table.seeds',
    'table.runs.kd.seed': 'the runs of a table have config.table.seeds',
    'table.runs.kd.prerequisites.first.seed': '',
  }
  assert find(config, found) == {field: why for field, why in found.items() if why}


def test_a_run_of_the_chain_or_table_may_read_it():
  config = config_lib.default()
  assert find(config, ['seed']) == {}
  config.method.name = 'kd'
  config.prerequisites = {'teacher': {'method': {'name': 'cmtkd'}, 'quantizer': {'name': 'lsq'}}}
  assert find(config, [PER_CHANNEL, 'method.cmtkd.beta', 'feature_loss.name']) == {}
  config.table.runs = {'row': {'method': {'name': 'dml'}}}
  reason = "config.method.name is 'kd'"
  assert find(config, ['method.dml.temperature', 'method.ctkd.beta']) == {'method.ctkd.beta': reason}
