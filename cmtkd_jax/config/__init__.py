"""The configuration of a run: its fields, the checks, variants, JSON."""

from cmtkd_jax.config.defaults import LOSSES, default, flat
from cmtkd_jax.config.serialization import difference, from_json, to_json
from cmtkd_jax.config.validation import CHOICES, check, check_field, check_runs, derive, settings, suggest
from cmtkd_jax.config.variants import apply_argument, load_config, smoke

__all__ = [
  'CHOICES',
  'LOSSES',
  'apply_argument',
  'check',
  'check_field',
  'check_runs',
  'default',
  'derive',
  'difference',
  'flat',
  'from_json',
  'load_config',
  'settings',
  'smoke',
  'suggest',
  'to_json',
]
