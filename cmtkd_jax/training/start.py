"""The state that a run starts from: its own newest checkpoint, trained networks, or nothing."""

import functools

import jax
from flax import traverse_util

from cmtkd_jax.errors import UserError
from cmtkd_jax.training import initialize, teachers
from cmtkd_jax.training.step import TrainState, abstract_state, initial_state, initial_state_options


def restore_or_create(plan, checkpoints, is_apart=False):
  """Returns (`TrainState`, lines of text that say where it comes from).

  Args:
    plan: a `plan.Plan`.
    checkpoints: the run's `Checkpoints`.
    is_apart: whether checkpoints hold other networks than those that are trained, see `release.Release`.

  Raises:
    UserError: a network that the configuration names cannot be read, or does not fit; or the checkpoint is beyond the
      end of the training.
  """
  parts = dict(plan.step_parts, seed=plan.config.seed)
  abstract = lambda: abstract_state(plan.dataset.train.batch_spec, plan.sharding, **parts)
  if checkpoints.latest() is not None:
    wanted = abstract()
    tree = wanted.to_tree(wanted.variables if is_apart else None)
    state = TrainState.from_tree(checkpoints.restore(tree)[0])
    if int(state.step) > plan.schedule.total:
      raise UserError(
        f'config.duration={plan.config.duration!r} ends at step {plan.schedule.total}, and {checkpoints.directory} '
        f'is at step {int(state.step)}; give a longer duration, or choose another workdir'
      )
    return state, [f'resuming {checkpoints.directory} at step {int(state.step)}']
  variables, report = {}, []
  if plan.teachers or plan.config.init_from:
    variables, report = _trained(plan, abstract().variables)
  create = functools.partial(initial_state, **parts)
  create = jax.jit(create, out_shardings=plan.sharding, compiler_options=initial_state_options())
  return create(jax.device_put(variables, plan.sharding), next(plan.dataset.train.batches(0))), report


def _trained(plan, wanted):
  """(variables, report) of the pretrained networks; `wanted` are the abstract variables of the run."""
  names = plan.method.frozen[: len(plan.teachers)]
  variables, report = teachers.load(plan.teachers, names, wanted)
  if plan.config.init_from:
    rest = {
      collection: {name: tree for name, tree in networks.items() if name not in names}
      for collection, networks in wanted.items()
    }
    config = plan.config
    found, lines = initialize.load(
      config.init_from, config.init_from_ignore, rest, plan.method, config, layers=plan.layers
    )
    variables = traverse_util.unflatten_dict(traverse_util.flatten_dict(found) | traverse_util.flatten_dict(variables))
    report += lines
  teachers.check_loaded(plan.method.frozen, wanted, variables)
  return variables, report
