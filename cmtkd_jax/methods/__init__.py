"""Methods: what trains together and on which loss, a file a method."""

from cmtkd_jax.methods import apprentice, average_teacher, cmtkd, ctkd, dml, guided, kd, kdcl, qkd, single, speq
from cmtkd_jax.methods.base import Method, Outputs

# Adding a method: its file, one line here, its config, its test. A module offers the frozen dataclass `Settings`, whose
# fields become `config.<name>`, and `create(config, settings, num_classes, teachers) -> Method`.
METHODS = {
  'apprentice': apprentice,
  'average_teacher': average_teacher,
  'cmtkd': cmtkd,
  'ctkd': ctkd,
  'dml': dml,
  'guided': guided,
  'kd': kd,
  'kdcl': kdcl,
  'qkd': qkd,
  'single': single,
  'speq': speq,
}

__all__ = ['METHODS', 'Method', 'Outputs']
