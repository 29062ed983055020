"""Methods: what trains together and on which loss, a file a method."""

from cmtkd_jax.methods import cmtkd, single
from cmtkd_jax.methods.base import Method, Outputs

# Adding a method: its file, one line here, its config, its test. A module offers the frozen dataclass `Settings`, whose
# fields become `config.<name>`, and `create(config, settings, num_classes) -> Method`.
METHODS = {
    'cmtkd': cmtkd,
    'single': single,
}

__all__ = ['METHODS', 'Method', 'Outputs']
