"""The training loop, from top to bottom: plan, directory, state, step, loop, summary."""

import jax

from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import compatibility, provenance, run_files, run_summary
from cmtkd_jax.runs.checkpoint import Checkpoints
from cmtkd_jax.runtime import local_file
from cmtkd_jax.runtime.preemption import Preempted, Preemption
from cmtkd_jax.training import early_stopping, evaluate, memory, plan, start, teachers
from cmtkd_jax.training.journal import announce, open_journal
from cmtkd_jax.training.release import Release
from cmtkd_jax.training.step import jit_train_step
from cmtkd_jax.training.window import Window


def train_and_evaluate(config, workdir, root=''):
  """Trains `config` in `workdir`, resuming what is there; returns the run's summary, a JSON-able dict.

  root: directory of the chain or table that the run belongs to, which may have been moved.

  Raises:
    UserError: the configuration, the data or the directory cannot be used, or the loss stopped being finite.
    Preempted: the process was asked to stop; what was trained is saved.
  """
  workdir = local_file.expanded(workdir)
  if config.prerequisites:
    raise UserError(
      f'config.prerequisites: {", ".join(config.prerequisites)} must be trained first; call '
      'cmtkd_jax.experiments.chain.train_chain(config, workdir), which does'
    )
  parts = plan.create(config, workdir)
  announce(parts.dataset.summary)
  with (
    compatibility.claim(workdir, config, parts.dataset, root) as run,
    run_files.disk_errors_as_user_errors(run),
    memory.errors_as_advice(config),
    Checkpoints(run / run_files.CHECKPOINTS, config.max_checkpoints, parts.best_metric) as checkpoints,
  ):
    announce(f'preparing {parts.config.model.name}, {len(parts.layers)} layers in all networks')
    released = Release(parts)
    state, report = start.restore_or_create(parts, checkpoints, released.is_apart)
    first = int(state.step)
    stopping = early_stopping.create(parts, run, first)
    ended = first >= parts.schedule.total or stopping.is_due
    if ended:
      fix = 'set a longer config.early_stopping' if stopping.is_due else 'raise config.duration'
      compatibility.check_unchanged(run, config, fix, root)
    run_files.check_space(run, sum(leaf.nbytes for leaf in jax.tree.leaves(released.tree(state))))
    run_files.describe(run, config, parts.dataset, parts.layers)
    teachers.save(run, parts.teachers)
    with open_journal(parts, run, first) as journal, Preemption() as preemption:
      for line in report:
        journal.note(line)
      if not ended:
        _train(parts, state, released, stopping, checkpoints, journal, preemption)
      elif not run_summary.has_evaluation(run, first):  # it was lost, but not the checkpoint
        evaluator = evaluate.Evaluator(parts.method, parts.dataset, parts.sharding)
        journal.evaluated(first, _evaluate(evaluator, parts.config, released(state, journal.meanwhile), journal))
      checkpoints.wait()  # before SIGTERM ends the process again
      stops = preemption.requested()
  with run_files.disk_errors_as_user_errors(run):
    summary = run_summary.write(run, config, parts.dataset, stopping.describe())
  if stops:  # during the last evaluation: a chain or table shall not begin its next run
    raise Preempted(f'asked to stop: {workdir} is finished; the same command continues from there')
  return summary


def _train(parts, state, released, stopping, checkpoints, journal, preemption):
  """Trains from `state` to the end of the schedule, until `stopping` is due, or the process is asked to stop."""
  method, schedule, data = parts.method, parts.schedule, parts.dataset.train
  batches = data.batches(int(state.step))
  batch = next(batches)
  step_fn = _compile(parts, state, batch, journal)
  evaluator = evaluate.Evaluator(method, parts.dataset, parts.sharding)
  learn = evaluate.MinivalUpdate(method, parts.dataset, parts.sharding) if method.uses_minival else None
  window = Window(parts.config.batch_size)
  for step in range(int(state.step) + 1, schedule.total + 1):
    with journal.profile.step(step, state), jax.transfer_guard('disallow'):
      state, metrics = step_fn(state, batch)
    window.add(metrics)
    batch = window.next_batch(batches)
    stops = preemption.requested()
    if learn and step % data.steps_per_epoch == 0:
      with _evaluating(parts.config, state), window.paused():
        state = jax.block_until_ready(learn(state))
    if stops or schedule.logs(step):
      journal.trained(step, window.close(step, checkpoints.latest()), state)
    else:
      journal.stepped(step, window.images_per_second())
    if stops or schedule.saves(step):
      results = {}
      variables = released(state, journal.meanwhile) if schedule.saves(step) else released.without_measuring(state)
      if schedule.evaluates(step):
        results = _evaluate(evaluator, parts.config, variables, journal)
        journal.evaluated(step, results)
        stopping.add(step, results)
      meta = provenance.meta(parts.config, step, parts.layers, statistics_measured=schedule.saves(step))
      checkpoints.save(step, released.tree(state, variables), meta, results)
      window.restart()
    if stops:
      checkpoints.wait()
      raise Preempted(f'asked to stop: step {step} of {schedule.total} is saved; the same command resumes from there')
    if stopping.is_due:
      journal.note(stopping.describe())
      return


def _evaluate(evaluator, config, variables, journal):
  with _evaluating(config, variables):
    return evaluator.evaluate(variables, journal.meanwhile)


def _evaluating(config, ready):
  """The context of an evaluation, which is not blamed for a lack of memory in what makes `ready`."""
  jax.block_until_ready(ready)
  return memory.evaluation_errors_as_advice(config)


def _compile(parts, state, batch, journal):
  """The train step, compiled before the first one so that its time is reported apart."""
  step_fn = jit_train_step(parts.sharding, **parts.step_parts, mix=parts.dataset.mix, loss_at=parts.loss_at)
  with journal.compiling():
    step_fn = step_fn.lower(state, batch).compile()
  journal.note(memory.describe(step_fn))
  return step_fn
