"""`config.profile`: the trace of a run holds the steps that were asked for, and a run without it leaves none."""

import gzip
import json
import pathlib
import runpy

import pytest

from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import profiler
from cmtkd_jax.training import loop
from tests import networks

small_network = networks.named(networks.two_convolutions, 'resnet8')

pytestmark = pytest.mark.integration

CONFIG = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'digits_resnet8.py'


def make_config(profiled, steps):
  config = runpy.run_path(str(CONFIG))['get_config']('smoke')
  config.method.name, config.profile, config.duration, config.optimizer.decay_at = (
    'single',
    profiled,
    f'{steps} steps',
    '',
  )
  config.log_every = config.eval_every = config.checkpoint_every = '100 steps'
  return config


def traced_steps(workdir):
  """Numbers of the steps in the trace, and the names of everything that ran on a thread of XLA."""
  (path,) = (workdir / profiler.FOLDER).rglob('*.trace.json.gz')
  assert len(list(path.parent.glob('*.xplane.pb'))) == 1
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  steps = [int(e['args']['step_num']) for e in events if e.get('name') == 'train' and 'step_num' in e.get('args', {})]
  return sorted(steps), {e.get('name', '') for e in events}


def test_a_trace_holds_its_steps(tmp_path, capsys):
  first = profiler.WARM_UP + 1
  loop.train_and_evaluate(make_config('2 steps', profiler.WARM_UP + 4), tmp_path)
  steps, names = traced_steps(tmp_path)
  assert steps == [first, first + 1]
  assert any('convolution' in name for name in names)  # of the compiled step, not of Python alone
  assert f'profile of steps {first} to {first + 1}: {tmp_path / profiler.FOLDER}' in capsys.readouterr().err


def test_a_run_that_ends_first(tmp_path, capsys):
  first = profiler.WARM_UP + 1
  loop.train_and_evaluate(make_config('9 steps', first + 1), tmp_path)
  assert traced_steps(tmp_path)[0] == [first, first + 1]
  assert f'profile of steps {first} to {first + 1}: ' in capsys.readouterr().err


def test_without_a_profile_nothing_is_recorded(tmp_path):
  told = []
  with profiler.Profile(tmp_path, 0, 0, told.append) as recorder:
    for step in range(1, 2 * profiler.WARM_UP):
      with recorder.step(step, ()):
        pass
  assert not told and not (tmp_path / profiler.FOLDER).exists()


def test_what_is_no_duration(tmp_path):
  with pytest.raises(UserError, match='config.profile'):
    loop.train_and_evaluate(make_config('ten', 1), tmp_path)


def test_operations_are_told_by_where_they_come_from():
  parts_of = runpy.run_path(str(CONFIG.parents[1] / 'benchmarks' / 'operations.py'))['parts_of']
  text = """HloModule jit_train_step
%rewritten (a: f32[2]) -> f32[2] {
  %transpose.1 = f32[2] transpose(%a), metadata={op_name="jit(train_step)/transpose(jvp(M))/norm1/mul"}
  ROOT %convolution.1 = f32[2] convolution(%transpose.1, %a), window={size=3x3}
}
ENTRY %main (p: f32[2]) -> f32[2] {
  %fusion.1 = f32[2] fusion(%p), kind=kCustom, calls=%rewritten
  %fusion.2 = f32[2] fusion(%p), calls=%other, metadata={op_name="jit(train_step)/jvp(M)/conv1/weight_quantizer/div"}
  %fusion.3 = f32[2] fusion(%p), calls=%other, metadata={op_name="jit(train_step)/transpose(jvp(M.loss))/mul"}
  %transpose_copy_fusion.4 = f32[2] fusion(%p), calls=%other
  ROOT %add.5 = f32[2] add(%p, %p)
}"""
  found = parts_of(text)
  assert [found[name] for name in ('fusion.1', 'fusion.2', 'fusion.3', 'transpose_copy_fusion.4', 'add.5')] == [
    'convolutions and dense layers',
    'quantizers of weights',
    'losses',
    'copies',
    'optimizer, metrics and what has no name',
  ]
