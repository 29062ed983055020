"""The configuration of a run that trains in moments."""

from cmtkd_jax import config as config_lib


def make_config(**changes):
  """Two steps of a narrow network alone, on generated images, with `changes` of fields."""
  config = config_lib.default()
  config_lib.smoke(config, 8, channels=1)
  config.method.name, config.model.width = 'single', 4 / 64
  config.optimizer.decay_at = ''
  config.duration, config.checkpoint_every, config.eval_every = '2 steps', '1 steps', '2 steps'
  config.update_from_flattened_dict(changes)
  return config_lib.derive(config, {})  # without the table of smoke
