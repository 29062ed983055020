"""Names that tell the compared runs apart."""

import re

from cmtkd_jax import config as config_lib
from cmtkd_jax.runs.compatibility import MUTABLE_FIELDS

# The fields that people compare; the others only enter a name where these do not tell the runs apart.
_FIRST = (
  'method.name',
  'student.weight_bits',
  'student.activation_bits',
  'model.name',
  'quantizer.name',
  'data.name',
  'duration',
  'seed',
)
_SAYS_NOTHING = re.compile(r'(runs?|seed|trial|exp|experiment|job|test|tmp|out|output|workdir)?[-_.]?\d*', re.I)


def names(runs):
  """Returns a name for each `run_reader.Run`: of its directory where these tell the runs apart.

  Otherwise the fields in which the configurations differ, as 'method.name=single'; of equal ones the whole path.
  """
  directories = [run.name for run in runs]
  if len(runs) < 2 or (len(set(directories)) == len(runs) and not any(map(_SAYS_NOTHING.fullmatch, directories))):
    return directories
  configs = [config_lib.flat(run.config) for run in runs]
  fields = differing(configs)
  for chosen in (fields[:3], fields):
    labels = [', '.join(f'{field}={config.get(field)}' for field in chosen) for config in configs]
    if chosen and len(set(labels)) == len(runs):
      return labels
  return directories if len(set(directories)) == len(runs) else [str(run.directory) for run in runs]


def differing(configs):
  """Returns the fields in which flat configurations differ and that touch what is trained, the telling ones first."""
  names = {name for config in configs for name in config} - set(MUTABLE_FIELDS)
  fields = [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]
  return sorted(fields, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
