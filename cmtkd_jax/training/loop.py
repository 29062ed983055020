"""The training loop, from top to bottom: data, method, optimizer, state, step, loop, closing table."""

import contextlib
import functools
import itertools
import re
import time

import jax
import numpy as np
from flax import traverse_util

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import durations
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import bit_table
from cmtkd_jax.models.bit_policy import parse_rules
from cmtkd_jax.runs import run_files
from cmtkd_jax.runs.checkpoint import Checkpoints
from cmtkd_jax.runs.metric_log import MetricLog
from cmtkd_jax.runtime import distributed
from cmtkd_jax.runtime.preemption import Preemption, Stopped
from cmtkd_jax.runtime.profiler import Profile
from cmtkd_jax.runtime.progress import Progress
from cmtkd_jax.training import build, evaluate, initialize, optimizer, teachers
from cmtkd_jax.training.step import TrainState, initial_state, initial_state_options, train_step


def train_and_evaluate(config, workdir):
  """Trains `config` in `workdir`, resuming what is there; returns the run's summary, a JSON-able dict.

  Raises:
    UserError: the configuration, the data or the directory cannot be used, or the loss stopped being finite.
  """
  config_lib.check(config)
  mesh = build.make_mesh()
  replicated = build.replicated(mesh)

  # Data.
  dataset = build.load_data(config, mesh)
  distributed.check_agreement(run_files.facts(config, dataset))
  sizes = dict(steps_per_epoch=dataset.train.steps_per_epoch, batch_size=config.batch_size)
  steps = lambda field: durations.parse_one(config[field], f'config.{field}', **sizes)
  total_steps, log_every, eval_every, checkpoint_every, profiled = map(
      steps, ('duration', 'log_every', 'eval_every', 'checkpoint_every', 'profile'))
  if not total_steps:
    raise UserError(f"config.duration={config.duration!r} is no training; give e.g. '120 epochs' or '3000 steps'")

  # Method and optimizer.
  trained = teachers.open_all(config, workdir)
  teachers.check_fit(trained, config, dataset.class_names)
  method = build.create_method(config, dataset.num_classes, trained)
  if method.held_out and 'minival' not in dataset.evals:
    raise UserError('config.data.minival=0.0; this method measures on a held-out slice of train, set it to e.g. 0.1')
  rows = bit_table.collect(method, dataset.input_shape, parse_rules(config.bits.rules))
  networks = sorted({row.layer.partition('/')[0] for row in rows})
  if config.remat and not any(re.fullmatch(config.remat, name) for name in networks):
    raise UserError(f"config.remat={config.remat!r} matches none of {', '.join(networks)}; name one of them, or '.*'")
  learning_rate = optimizer.learning_rate(config, total_steps, **sizes)
  transform = optimizer.create(config, method, learning_rate)

  best_metric = f'minival/{method.main_network}/top1' if 'minival' in dataset.evals else ''
  with (run_files.claim(workdir, config, dataset, rows) as run, run_files.told_of_disk(run), _told_of_memory(config),
        Checkpoints(run / run_files.CHECKPOINTS, config.keep_checkpoints, best_metric) as checkpoints):
    teachers.save(run, trained)
    state, report = _restore_or_create(config, method, trained, transform, dataset, checkpoints, replicated)
    start = int(state.step)
    run_files.check_space(run, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))

    with (MetricLog(run, resume_step=start, tensorboard=config.tensorboard) as log,
          Progress(total_steps, start, steps_per_epoch=dataset.train.steps_per_epoch,
                   enabled=distributed.is_first()) as progress,
          Profile(run, start, profiled, progress.note) as profile, Preemption() as preemption):
      progress.note(dataset.summary)
      progress.note(bit_table.render(rows))
      if not start:
        log.write_text(start, 'bits', bit_table.render(rows))
      for line in report:
        progress.note(line)

      # The step, compiled before the first one so that its time is told apart.
      batches = dataset.train.batches(start)
      batch = next(batches)
      step_fn = jax.jit(functools.partial(train_step, method=method, optimizer=transform, augment=dataset.augment,
                                          accumulate=config.accumulate),
                        donate_argnums=0, out_shardings=replicated)
      if start < total_steps:
        begin = time.monotonic()
        step_fn = step_fn.lower(state, batch).compile()
        progress.compiled(time.monotonic() - begin)
        progress.note(_memory(step_fn))
      evaluator = evaluate.Evaluator(method, dataset, replicated)
      learn = evaluate.HeldOut(method, dataset, replicated) if method.held_out else None

      # The loop. Metrics stay on the device until they are logged, and no step waits for the one before it.
      pending, since, waited, broken = [], time.monotonic(), 0.0, 0
      for step in range(start + 1, total_steps + 1):
        with profile.step(step, state), jax.transfer_guard('disallow'):
          state, metrics = step_fn(state, batch)
        pending.append(metrics)
        before = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - before
        stops = preemption.requested(step)
        if method.held_out and step % dataset.train.steps_per_epoch == 0:
          state = learn(state)
        evaluates = step == total_steps or eval_every and step % eval_every == 0
        saves = evaluates or stops or checkpoint_every and step % checkpoint_every == 0
        if saves or log_every and step % log_every == 0:
          history = jax.device_get(pending)
          _check_finite(history, step, checkpoints.latest())
          elapsed = time.monotonic() - since
          speed = len(pending) * config.batch_size / elapsed
          means = {name: float(np.mean([m[name] for m in history])) for name in history[0]}
          log.write(step, {f'train/{name}': value for name, value in means.items()} | {
              'train/epoch': step / dataset.train.steps_per_epoch, 'train/images_per_second': speed,
              'train/data_wait': waited / elapsed,
              **({'train/corrupt_images': len(dataset.train.broken)} if dataset.train.broken else {}),
              **optimizer.rates(config, method, learning_rate(step - 1)),
              **jax.device_get(method.summary(state.params))})
          if len(dataset.train.broken) > 2 * broken:  # Not at every row, where there are many.
            broken = len(dataset.train.broken)
            progress.note(_told_of_broken(dataset.train.broken))
          # Told where it matters: a step that waits for its data is no step that computes.
          slow = {'waits for data': f'{100 * waited / elapsed:.0f} %'} if waited > 0.1 * elapsed else {}
          progress.update(step, speed, loss=means['loss'], **_accuracies(means), **slow)
          pending, since, waited = [], time.monotonic(), 0.0
        if saves:
          results = evaluator.run({'params': state.params, **state.model_state}) if evaluates else {}
          if results:
            log.write(step, results)
            progress.note(f'step {step}: ' + '  '.join(
                f'{name.removesuffix("/top1")} {value:.2f} %' for name, value in results.items() if 'top1' in name))
          checkpoints.save(step, state.to_tree(), run_files.meta(config, step, rows), results)
          since = time.monotonic()
        if stops:
          checkpoints.wait()
          raise Stopped(f'asked to stop: step {step} of {total_steps} is saved; the same command goes on from there')
      checkpoints.wait()  # before SIGTERM ends the process again

  with run_files.told_of_disk(run):
    summary = run_files.write_summary(run, config, dataset.train.steps_per_epoch)
  print(run_files.closing_table(summary))
  return summary


def _restore_or_create(config, method, trained, transform, dataset, checkpoints, sharding):
  """The run's own newest state, else one that starts from trained networks, else from scratch; and what to tell."""
  create = functools.partial(initial_state, method=method, optimizer=transform, augment=dataset.augment,
                             seed=config.seed)
  abstract = lambda: jax.eval_shape(create, {}, dataset.train.batch_spec).to_tree()
  if checkpoints.latest() is not None:
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract())
    state = TrainState.from_tree(checkpoints.restore(placed)[0])
    return state, [f'resuming {checkpoints.directory} at step {int(state.step)}']
  variables, report = {}, []
  if trained or config.init_from:
    wanted = abstract()['variables']
    variables, report = teachers.load(trained, method.frozen[:len(trained)], wanted)
    if config.init_from:
      rest = {collection: {name: tree for name, tree in networks.items() if name not in method.frozen[:len(trained)]}
              for collection, networks in wanted.items()}
      found, lines = initialize.load(config.init_from, config.init_from_allow, rest, method, config)
      variables = traverse_util.unflatten_dict(
          traverse_util.flatten_dict(found) | traverse_util.flatten_dict(variables))
      report += lines
    teachers.check_loaded(method.frozen, wanted, variables)
  create = jax.jit(create, out_shardings=sharding, compiler_options=initial_state_options())
  return create(jax.device_put(variables, sharding), next(dataset.train.batches(0))), report


@contextlib.contextmanager
def _told_of_memory(config):
  """Says in one line what to change when a device's memory does not suffice."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise UserError(f'config.batch_size={config.batch_size} does not fit into the memory of a device; raise '
                    f"config.accumulate={config.accumulate}, set config.remat='.*' (now {config.remat!r}), or lower "
                    f'the batch size; {" ".join(str(e).split())[:120]}') from None


def _told_of_broken(images):
  """One line about training images that were replaced, {record: name}."""
  first = ', '.join(itertools.islice(images.values(), 3))
  return f'training images that cannot be decoded and are replaced by the next ones, so far {len(images)}: {first}'


def _memory(compiled):
  """What the compiled step needs on each device, as far as the backend tells."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 'the backend does not tell how much memory a step takes'
  mebibytes = lambda size: f'{size / 2**20:,.0f} MiB'
  held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return (f'memory of a step on each device: {mebibytes(held)} for state and batch, '
          f'{mebibytes(analysis.temp_size_in_bytes)} for everything between')


def _check_finite(history, step, last_good):
  """Raises `UserError` that names the first metric of the first step that is not finite."""
  for i, metrics in enumerate(history):
    # Loss terms before their sum, and that before what follows from it.
    for name in sorted(metrics, key=lambda name: (name.startswith('gradient_norm'), name == 'loss')):
      if not np.isfinite(metrics[name]):
        kept = f'the last good checkpoint, of step {last_good}, is kept' if last_good else 'there is no checkpoint yet'
        raise UserError(f'step {step - len(history) + i + 1}: {name} is {metrics[name]}, the first value that is not '
                        f'finite; {kept}; lower config.optimizer.learning_rate or set config.optimizer.gradient_clip')


def _accuracies(means):
  return {f'train {name.partition("/")[2]}': f'{100 * value:.1f} %'
          for name, value in means.items() if name.startswith('top1/')}
