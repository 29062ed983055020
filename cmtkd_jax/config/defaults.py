"""The base configuration: every field with its default."""

import ml_collections
from ml_collections import config_dict

from cmtkd_jax.config import sections


def default():
  """Returns the base `ConfigDict`: CMT-KD with HWGQ, a 2-bit student and 4/6/8-bit teachers, on the digits."""
  config = ml_collections.ConfigDict()
  for section in sections.SECTIONS:
    if section:
      _section(config, section)
  for name, field in sections.fields().items():
    section, _, leaf = name.rpartition('.')
    parent = _section(config, section)
    if field.default is None:
      parent[leaf] = config_dict.placeholder(float)
    else:
      parent[leaf] = ml_collections.ConfigDict() if isinstance(field.default, dict) else field.default
  return config


def flat(config):
  """Returns `{'optimizer.momentum': value}` of all fields of a `ConfigDict` or a dict of dicts."""
  fields = {}

  def visit(section, prefix):
    for name, value in section.items():
      if isinstance(value, dict):
        visit(value, f'{prefix}{name}.')
      else:
        fields[f'{prefix}{name}'] = value

  visit(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config, '')
  return fields


def _section(config, path):
  """The section at `path`, such as 'method.kd', made where it does not exist."""
  for name in filter(None, path.split('.')):
    if name not in config:
      config[name] = ml_collections.ConfigDict()
    config = config[name]
  return config
