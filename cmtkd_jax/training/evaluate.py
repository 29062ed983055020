"""Evaluation: every example of a split exactly once, at top-1 and top-5, for every network that has logits."""

import functools

import jax

from cmtkd_jax.runs import run_files
from cmtkd_jax.runtime import distributed, local_file
from cmtkd_jax.runtime.progress import Progress
from cmtkd_jax.training import memory, restore
from cmtkd_jax.training.step import eval_step

_AHEAD = 2  # batches queued on the device at most, so that the shown progress is accurate


class Evaluator:
  """Evaluates a method's networks on the evaluation splits of a data set, with one compiled step."""

  def __init__(self, method, dataset, sharding):
    self._splits = dataset.evals
    self._step = jax.jit(
      functools.partial(eval_step, method=method, normalize=dataset.normalize), out_shardings=sharding
    )

  def evaluate(self, variables, show=lambda text: None):
    """Returns {'<split>/<network>/top1': percent, '.../top5': percent, '.../cross_entropy': nats}.

    show: function that shows the user how far it is, called often.
    """
    results = {}
    for split, loader in self._splits.items():
      sums, done = [], 0
      for batch in loader.batches():
        show(f'evaluating {split}: image {done}/{loader.num_examples}')
        sums.append(self._step(variables, batch))
        if len(sums) > _AHEAD:
          jax.block_until_ready(sums[-1 - _AHEAD])
        done += len(batch['label'])
      totals = jax.tree.map(lambda *values: sum(map(float, values)), *jax.device_get(sums))
      for network, total in totals.items():
        if round(total['count']) != loader.num_examples:
          raise AssertionError(f'{split}: counted {total["count"]} of {loader.num_examples} examples')
        for name, scale in (('top1', 100), ('top5', 100), ('cross_entropy', 1)):
          results[f'{split}/{network}/{name}'] = scale * total[name] / total['count']
    return results


class MinivalUpdate:
  """What a method learns from the held-out slice of train, `Method.uses_minival`."""

  def __init__(self, method, dataset, sharding):
    self._method, self._loader = method, dataset.evals['minival']

    def measure(variables, batch):
      outputs = method.apply(variables, dataset.normalize(batch['image']), train=False)
      return method.minival_statistics(outputs.logits, batch['label'], batch['mask'])

    self._measure = jax.jit(measure, out_shardings=sharding)
    self._learn = jax.jit(method.update_from_minival, out_shardings=sharding)

  def __call__(self, state):
    """Returns the train state after one pass over the held-out slice."""
    sums = [self._measure(state.variables, batch) for batch in self._loader.batches()]
    return state.replace(model_state=self._learn(jax.tree.map(lambda *parts: sum(parts), *sums), state.model_state))


def evaluate_run(workdir, config=None, step=None):
  """Returns the step and the accuracies of a checkpoint, a JSON-able dict, see `Evaluator.evaluate`.

  Arguments and errors: as of `restore.open_run`.
  """
  workdir = local_file.expanded(workdir)
  run = restore.open_run(workdir, config, step)
  with (
    Progress(1, enabled=distributed.is_first()) as progress,
    memory.evaluation_errors_as_advice(config or run_files.read_config(workdir)),
  ):
    results = Evaluator(run.method, run.dataset, run.sharding).evaluate(run.variables, progress.meanwhile)
  return {'workdir': str(workdir), 'step': run.step, **results}
