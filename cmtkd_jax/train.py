"""The training loop, from top to bottom: mesh, data, method, optimizer, restore, step, loop, closing table."""

import functools
import time

import jax
import numpy as np

from cmtkd_jax import assembly, bit_table, durations, evaluate, init_from, metric_log, optimizer, run_files
from cmtkd_jax import config as config_lib
from cmtkd_jax.bit_policy import parse_rules
from cmtkd_jax.checkpoint import Checkpoints
from cmtkd_jax.errors import UserError
from cmtkd_jax.progress import Progress
from cmtkd_jax.step import TrainState, train_step


def train_and_evaluate(config, workdir):
  """Trains `config` in `workdir`, resuming what is there; returns the run's summary, a JSON-able dict.

  Raises:
    UserError: the configuration, the data or the directory cannot be used, or the loss stopped being finite.
  """
  config_lib.check(config)
  mesh = assembly.make_mesh()
  replicated = assembly.replicated(mesh)

  # Data.
  dataset = assembly.load_data(config, mesh)
  sizes = dict(steps_per_epoch=dataset.train.steps_per_epoch, batch_size=config.batch_size)
  steps = lambda field: durations.parse_one(config[field], f'config.{field}', **sizes)
  total_steps, log_every, eval_every, checkpoint_every = map(
      steps, ('duration', 'log_every', 'eval_every', 'checkpoint_every'))
  if not total_steps:
    raise UserError(f"config.duration: {config.duration!r} is no training; give e.g. '120 epochs' or '3000 steps'")

  # Method and optimizer.
  method = assembly.create_method(config, dataset.num_classes)
  rows = bit_table.collect(method, dataset.input_shape, parse_rules(config.bits.rules))
  learning_rate = optimizer.learning_rate(config, total_steps, **sizes)
  transform = optimizer.create(config, method, learning_rate)

  # State: its shapes, then its values from the run's own checkpoint, from trained networks, or from scratch.
  key = jax.random.key(config.seed)

  def initialise(loaded, batch):
    images = dataset.augment(jax.random.fold_in(key, 0), batch['image'])
    init_key = jax.random.fold_in(key, 2**31 - 1)
    if loaded:
      # What is missing, such as learned steps, is created from the loaded weights and the first batch.
      _, created = method.apply(loaded, images, train=True, mutable=True, rngs={'params': init_key})
      variables = init_from.merge(created, loaded)
    else:
      variables = method.init(init_key, images, train=True)
    model_state = dict(variables)
    params = model_state.pop('params')
    return TrainState(jax.numpy.int32(0), params, model_state, transform.init(params), key)

  first_batch = next(dataset.train.batches(0))
  abstract = jax.eval_shape(initialise, {}, first_batch)

  run = run_files.open_run(workdir, config, dataset, rows)
  best_metric = f'minival/{method.main_network}/top1' if 'minival' in dataset.evals else ''
  with Checkpoints(run / init_from.CHECKPOINTS, config.keep_checkpoints, best_metric) as checkpoints:
    resumed = checkpoints.latest() is not None
    if resumed:
      placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), abstract.to_tree())
      tree, _ = checkpoints.restore(placed)
      state = TrainState.from_tree(tree)
    else:
      loaded, report = {}, []
      if config.init_from:
        variables = {'params': abstract.params, **abstract.model_state}
        loaded, report = init_from.load(config.init_from, config.init_from_allow, variables)
        loaded = jax.device_put(loaded, replicated)
      state = jax.jit(initialise, out_shardings=replicated)(loaded, first_batch)
    start = int(state.step)

    log = metric_log.MetricLog(run, resume_step=start, tensorboard=config.tensorboard)
    progress = Progress(total_steps, start, steps_per_epoch=sizes['steps_per_epoch'],
                        enabled=jax.process_index() == 0)
    progress.note(bit_table.render(rows))
    log.write_text(start, 'bits', bit_table.render(rows))
    for line in report if not resumed else [f'resuming {run} at step {start}']:
      progress.note(line)

    # Steps, compiled before the first one so that their time is told apart.
    begin = time.monotonic()
    step_fn = jax.jit(functools.partial(train_step, method=method, optimizer=transform, augment=dataset.augment),
                      donate_argnums=0).lower(state, first_batch).compile()
    evaluator = evaluate.Evaluator(method, dataset)
    progress.compiled(time.monotonic() - begin)

    # The loop. Metrics stay on the device until they are logged; batches come ahead of the step.
    batches = dataset.train.batches(start)
    pending, since = [], time.monotonic()
    for step in range(start + 1, total_steps + 1):
      state, metrics = step_fn(state, next(batches))
      pending.append(metrics)
      last = step == total_steps
      evaluates = last or eval_every and step % eval_every == 0
      saves = evaluates or checkpoint_every and step % checkpoint_every == 0
      if saves or step % max(1, log_every) == 0:
        history = jax.device_get(pending)
        _check_finite(history, step, checkpoints.latest())
        images_per_second = len(pending) * config.batch_size / (time.monotonic() - since)
        means = {name: float(np.mean([m[name] for m in history])) for name in history[0]}
        log.write(step, {f'train/{name}': value for name, value in means.items()} | {
            'train/learning_rate': float(learning_rate(step - 1)),
            f'train/learning_rate/{method.importance_group}':
                config.optimizer.importance_lr_factor * float(learning_rate(step - 1)),
            'train/epoch': step / sizes['steps_per_epoch'], 'train/images_per_second': images_per_second,
            **jax.device_get(method.summary(state.params))})
        progress.update(step, images_per_second, loss=means['loss'],
                        **{f'train {name.partition("/")[2]}': f'{100 * value:.1f} %'
                           for name, value in means.items() if name.startswith('top1/')})
        pending, since = [], time.monotonic()
      if saves:
        results = evaluator.run({'params': state.params, **state.model_state}) if evaluates else {}
        if results:
          log.write(step, results)
          progress.note(_result_line(step, results))
        checkpoints.save(step, state.to_tree(), run_files.meta(config, step, rows), results)
        since = time.monotonic()
    checkpoints.wait()
    progress.close()
    log.close()

  summary = run_files.write_summary(run, config, dataset)
  print(run_files.closing_table(summary))
  return summary


def _check_finite(history, step, last_good):
  """Raises `UserError` that names the first metric of the first step that is not finite."""
  for i, metrics in enumerate(history):
    # Loss terms before their sum, and before what follows from them.
    for name in sorted(metrics, key=lambda name: (name.startswith('gradient_norm'), name == 'loss')):
      if not np.isfinite(metrics[name]):
        where = f'the last good checkpoint, of step {last_good}, is kept' if last_good else 'no checkpoint was made yet'
        raise UserError(f'step {step - len(history) + i + 1}: {name} is {metrics[name]}, the first value that is not '
                        f'finite; {where}; lower config.optimizer.learning_rate or set config.optimizer.gradient_clip')


def _result_line(step, results):
  shown = '  '.join(f'{name.removesuffix("/top1")} {value:.2f} %'
                    for name, value in results.items() if name.endswith('/top1'))
  return f'step {step}: {shown}'
