"""A trace of some training steps by JAX's profiler, for `config.profile`."""

import contextlib

import jax

from cmtkd_jax.runtime import distributed

FOLDER = 'profile'
WARM_UP = 5  # steps that are not recorded


class Profile(contextlib.AbstractContextManager):
  """Records `steps` training steps after the first few of this start, in the first process; 0 records none.

  The trace opens in https://ui.perfetto.dev (`*.trace.json.gz`) and in XProf or TensorBoard (`*.xplane.pb`).

  Args:
    workdir: directory of the run; the trace goes into its folder 'profile'.
    start: step the run starts or resumes from.
    steps: how many to record.
    tell: called with a line of text when the trace is written.
  """

  def __init__(self, workdir, start, steps, tell):
    self._directory, self._tell = workdir / FOLDER, tell
    self._steps = range(start + WARM_UP + 1, start + WARM_UP + 1 + (steps if distributed.is_first() else 0))
    self._running, self._last = False, None

  def step(self, step, state):
    """To be called before step `step`, with the state that it starts from; returns a context for the step."""
    if self._running and step not in self._steps:
      self._stop(state)
    if not self._running and step in self._steps:
      jax.block_until_ready(state)  # what was asked for before is not part of it
      jax.profiler.start_trace(self._directory)
      self._running = True
    if not self._running:
      return contextlib.nullcontext()
    self._last = step
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def _stop(self, state=None):
    jax.block_until_ready(state)
    self._running = False
    jax.profiler.stop_trace()
    self._tell(f'profile of steps {self._steps[0]} to {self._last}: {self._directory}')

  def __exit__(self, *unused):
    if self._running:  # the run ends before the trace does
      self._stop()
