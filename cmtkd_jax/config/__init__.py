"""The configuration of a run: its fields, the checks, variants, JSON."""

from cmtkd_jax.config import own_images
from cmtkd_jax.config.defaults import default, flat
from cmtkd_jax.config.description import describe
from cmtkd_jax.config.sections import SECTIONS, fields
from cmtkd_jax.config.serialization import difference, from_json, same_path, to_json
from cmtkd_jax.config.validation import check, check_field, check_runs, create, derive, suggest
from cmtkd_jax.config.variants import apply_argument, load_config, smoke

__all__ = [
  'SECTIONS',
  'apply_argument',
  'check',
  'check_field',
  'check_runs',
  'create',
  'default',
  'derive',
  'describe',
  'difference',
  'fields',
  'flat',
  'from_json',
  'load_config',
  'own_images',
  'same_path',
  'smoke',
  'suggest',
  'to_json',
]
