"""The memory that a step needs on a device, and what to change if there is not enough."""

import contextlib

import jax

from cmtkd_jax.errors import UserError, one_line

ADVICE = "raise config.grad_accum_steps, set config.remat='.*', or lower config.batch_size"


def errors_as_advice(config):
  """Within the block, turns a device's lack of memory into one line that says what to change in training."""
  return _errors_as(
    f'config.batch_size={config.batch_size} does not fit into the memory of a device with '
    f'config.grad_accum_steps={config.grad_accum_steps} and config.remat={config.remat!r}; {ADVICE}'
  )


def evaluation_errors_as_advice(config):
  """The same for an evaluation."""
  return _errors_as(
    f'config.eval_batch_size={config.eval_batch_size} does not fit into the memory of a device; lower it'
  )


@contextlib.contextmanager
def _errors_as(advice):
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise UserError(f'{advice} ({one_line(e, 120)})') from None


def describe(compiled):
  """Returns a line on the memory that a compiled step needs on each device, if the backend reports it."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 'the backend does not report how much memory a step takes'
  return (
    f'memory of a step on each device: {size_text(held(analysis))} for state and batch, '
    f'{size_text(analysis.temp_size_in_bytes)} for temporary buffers'
  )


def size_text(size):
  """Returns a number of bytes as '1,823 MiB', or as '12 KiB' below one MiB."""
  return f'{size / 2**20:,.0f} MiB' if size >= 2**20 else f'{size / 2**10:.0f} KiB'


def held(analysis):
  """Returns the bytes that state, batch and metrics take, of a compiled step's `memory_analysis()`."""
  return analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
