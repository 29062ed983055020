"""How a command ends when it is interrupted, asked to stop, or loses the other processes of its run."""

import ast
import contextlib
import importlib.util
import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from absl.testing import flagsaver

from cmtkd_jax import main
from cmtkd_jax.cli import commands, interrupts, output
from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import checkpoint
from cmtkd_jax.runtime import peers, preemption, standard_error
from cmtkd_jax.runtime.preemption import Preemption
from tests import compiling

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location('local_processes', ROOT / 'launch' / 'local_processes.py')
local_processes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(local_processes)
pytestmark = pytest.mark.usefixtures('own_cache')
SINGLE = ('--config=configs/digits_resnet8.py:smoke', '--config.method.name=single', '--config.model.width=0.0625')


def start(arguments, **more):
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ | compiling.QUICK,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    **more,
  )


@pytest.mark.parametrize('argument', ['--help', '--mode=config'])
def test_a_reader_that_leaves_early_ends_the_command_quietly(argument):
  command = f"'{sys.executable}' -m cmtkd_jax.main {argument} | true; exit ${{PIPESTATUS[0]}}"
  ended = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, check=False)
  assert (ended.returncode, ended.stderr) == (141, '')


def test_another_broken_pipe_is_no_quiet_end(monkeypatch):
  """Such as that of a worker: standard output still has its reader."""

  def fail(command):
    raise BrokenPipeError

  reader, writer = os.pipe()
  monkeypatch.setitem(commands.MODES, 'config', fail)
  with os.fdopen(reader), os.fdopen(writer, 'w') as output, flagsaver.flagsaver():
    monkeypatch.setattr(sys, 'stdout', output)
    with pytest.raises(BrokenPipeError):
      main.main(['main', '--mode=config'])


# --- Standard output.


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '>&- 2>&- <&-'])
def test_closed_streams(tmp_path, closed):
  """Training writes its files, whoever listens."""
  command = f"'{sys.executable}' -m tests.tiny_main {' '.join(SINGLE)} --workdir={tmp_path}/run {closed}"
  environment = os.environ | compiling.QUICK
  ended = subprocess.run(
    ['bash', '-c', command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
  )
  assert ended.returncode == 0 and (tmp_path / 'run' / 'summary.json').exists()


@pytest.mark.skipif(not pathlib.Path('/dev/full').exists(), reason='the system has no /dev/full')
@pytest.mark.parametrize('mode', ['config', 'evaluate'])
def test_a_full_disk_for_the_output_is_one_line(monkeypatch, capsys, mode):
  def write(command):
    for _ in range(2):  # as where the first failure is that of one run of a table
      with contextlib.suppress(UserError):
        output.write('x')
    output.write('x')

  monkeypatch.setitem(commands.MODES, mode, write)
  with open('/dev/full', 'w') as full, flagsaver.flagsaver():
    monkeypatch.setattr(sys, 'stdout', full)
    assert main.main(['main', f'--mode={mode}', '--workdir=x']) == 2
    assert full.closed  # or Python would write again at its end
  error = 'error: standard output cannot be written (No space left on device); make room, or send it to another place\n'
  assert capsys.readouterr().err == error


def test_modes_print_through_the_function_that_says_so():
  for path in (ROOT / 'cmtkd_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func) == 'print':
        assert path.name == 'output.py' or 'file=sys.stderr' in ast.unparse(node), (path, node.lineno)


@pytest.mark.parametrize('encoding, shown', [('utf-8', 'é\\udcff'), ('ascii', '\\xe9\\udcff')])
def test_names_that_the_output_cannot_hold_become_escapes(monkeypatch, encoding, shown):
  """As of a file whose name is not UTF-8."""
  stream = io.TextIOWrapper(io.BytesIO(), encoding)
  monkeypatch.setattr(sys, 'stdout', stream)
  output.write('é\udcff')
  assert stream.buffer.getvalue().decode(encoding) == f'{shown}\n'
  monkeypatch.setattr(sys, 'stdout', None)  # closed by who started the command
  output.write('é')


# --- Ctrl-C.

IMPORTING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
"""


@pytest.mark.parametrize(
  'code, quiet',
  [
    ("runpy.run_module('cmtkd_jax.main', run_name='__main__')", True),
    ("sys.argv = ['/bin/cmtkd-jax']; import cmtkd_jax.main", True),
    ('import cmtkd_jax.main', False),  # a program of others
  ],
)
def test_ctrl_c_while_libraries_are_imported(tmp_path, monkeypatch, code, quiet):
  (tmp_path / 'jax.py').write_text(
    "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  process = start(['-c', IMPORTING + code])
  assert process.stderr.readline() == 'importing\n'
  process.send_signal(signal.SIGINT)
  text = process.communicate(timeout=10)[1]
  assert ('Traceback' in text, process.returncode) == ((not quiet), -signal.SIGINT)
  assert not quiet or not text


def test_ctrl_c_once_the_command_runs():
  code = """
import time
sys.argv = ['/bin/cmtkd-jax', '--mode=config']
import cmtkd_jax.main
from cmtkd_jax.cli import commands, output
from cmtkd_jax.errors import UserError
def mode(command):
  print('running', file=sys.stderr, flush=True)
  time.sleep(60)
commands.MODES['config'] = mode
cmtkd_jax.main.run()
"""
  process = start(['-c', IMPORTING + code])
  assert process.stderr.readline() == 'running\n'
  process.send_signal(signal.SIGINT)
  text = process.communicate(timeout=20)[1]
  waiting = interrupts._FIRST.decode().strip()  # of a thread, which may come too late to say it
  assert process.returncode == 130 and sorted({waiting, *filter(None, text.splitlines())}) == ['interrupted', waiting]


@pytest.mark.parametrize('mode', commands.MODES)
def test_what_an_interrupted_command_says(monkeypatch, capsys, mode):
  def interrupt(command):
    raise KeyboardInterrupt

  monkeypatch.setitem(commands.MODES, mode, interrupt)
  with flagsaver.flagsaver():
    assert main.main(['main', f'--mode={mode}', '--workdir=x']) == 130
  resumes = '; the same command continues from the last checkpoint, if there is one' * (mode in ('train', 'table'))
  assert capsys.readouterr().err == f'interrupted{resumes}\n'


LONG = """
import signal, sys, jax
from cmtkd_jax.cli import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
interrupts.watch()
long = jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda i, x: x * 1.0000001, x)).lower(1.0).compile()
print('computing', file=sys.stderr, flush=True)
long(1.0).block_until_ready()
"""


def test_ctrl_c_answers_during_a_computation_and_the_second_leaves_at_once():
  process = start(['-c', LONG])
  assert process.stderr.readline() == 'computing\n'
  time.sleep(0.5)
  for line in ('interrupted; waiting for the computation in flight, press Ctrl-C again to leave at once\n', None):
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    if line:
      assert process.stderr.readline() == '\n' and process.stderr.readline() == line
      assert process.poll() is None
    else:
      assert process.wait(timeout=10) == 130
    assert time.monotonic() - begin < 5
  assert not process.communicate()[1]


# --- Being asked to stop.


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_ask_to_stop(number):
  before = signal.signal(number, signal.SIG_DFL)  # the suite itself may run under nohup
  try:
    with Preemption() as asking:
      assert not asking.requested()
      os.kill(os.getpid(), number)
      assert asking.requested()
    assert signal.getsignal(number) == signal.SIG_DFL
  finally:
    signal.signal(number, before)


@pytest.mark.skipif(not pathlib.Path('/dev/full').exists(), reason='the system has no /dev/full')
def test_what_standard_error_does_not_take_is_dropped():
  with open('/dev/full', 'w') as full, Preemption() as asking:
    stream = standard_error.Forgiving(full)
    print('x', file=stream)
    stream.flush()
    assert stream.fileno() == full.fileno() and not asking.requested()


def test_a_run_whose_terminal_is_gone_is_saved(tmp_path):
  """Here the reader of a pipe: writing to it fails, as it does to a closed terminal."""
  endless = ['--config.duration=100000 steps', '--config.optimizer.decay_at=', '--config.eval_every=']
  process = start(
    ['-m', 'tests.tiny_main', *SINGLE, f'--workdir={tmp_path}/run', *endless, '--config.checkpoint_every=']
  )
  while 'compiled' not in process.stderr.readline():
    assert process.poll() is None
  process.stderr.close()
  assert process.wait(timeout=60) == preemption.EXIT_STATUS
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')


def test_processes_agree_on_numbers_that_rise_through_all_runs(monkeypatch):
  """JAX remembers the number that processes agreed on: were it a step of one run, the next run would wait for it."""
  asked = []
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(preemption.multihost_utils, 'reached_preemption_sync_point', lambda n: asked.append(n) or False)
  for steps in (3, 2):  # two runs of a table
    with Preemption() as run:
      assert not any(run.requested() for _ in range(steps))
  assert asked == list(range(asked[0], asked[0] + 5))


def test_a_hangup_that_is_switched_off_stays_off():
  """As under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with Preemption() as asking:
      os.kill(os.getpid(), signal.SIGHUP)
      assert not asking.requested()
  finally:
    signal.signal(signal.SIGHUP, before)


def test_threads_leave_signals_alone():
  seen = []

  def enter():
    with Preemption():
      seen.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert seen == [signal.SIG_DFL]


# --- Other processes.


def start_processes(tmp_path, per_process, count=2):
  """Starts processes of one run, each with arguments of its own."""
  port = local_processes.free_port()
  return [
    start(
      [
        '-m',
        'tests.tiny_main',
        *SINGLE,
        f'--workdir={tmp_path}/run',
        f'--coordinator_address=127.0.0.1:{port}',
        f'--num_processes={count}',
        f'--process_id={k}',
        *arguments,
      ]
    )
    for k, arguments in enumerate(per_process)
  ]


def ended(process):
  """(exit status, error lines, everything that it printed)."""
  text = process.communicate(timeout=120)[1]
  return process.returncode, [line for line in text.splitlines() if line.startswith('error: ')], text


def test_processes_that_differ_are_refused(tmp_path):
  """By their configuration; classes, numbers of images and versions are compared in the same way."""
  for status, errors, text in map(ended, start_processes(tmp_path, [[], ['--config.seed=1']])):
    assert status == 2 and len(errors) == 1 and 'Traceback' not in text
    assert 'process 1 of this run does not agree with process 0' in errors[0]
    assert 'config.seed: 0 in process 0, 1 in process 1' in errors[0]
  assert not (tmp_path / 'run').exists()


def test_output_of_several_processes_holds_the_command_only():
  """C++ prints to standard output, too: to standard error with it, but for Gloo's line for each connection."""
  program = """
import os
from cmtkd_jax.runtime import peers
peers.install()
os.write(1, b'[Gloo] Rank 0 is connected\\nfrom C++\\n')
print('{"step": 3}')
while os.read(0, 1):  # until what C++ printed has arrived
  pass
"""
  pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
  process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, text=True, **pipes)
  assert process.stderr.readline() == 'from C++\n'
  assert process.communicate() == ('{"step": 3}\n', '')


def test_processes_that_never_join_are_reported_in_one_line(tmp_path):
  status, errors, text = ended(*start_processes(tmp_path, [['--init_timeout=2']]))
  assert status == peers.EXIT_STATUS == 75
  assert errors == [peers._UNJOINED] and 'stack trace' not in text


@pytest.mark.parametrize('killed', [0, 1])
def test_a_process_that_loses_another_says_so_in_one_line(tmp_path, killed):
  """Whether a collective fails in Python, or the coordination service aborts the process."""
  started = start_processes(
    tmp_path,
    2
    * [
      [
        '--config.duration=100000 steps',
        '--config.optimizer.decay_at=',
        '--config.eval_every=',
        '--config.checkpoint_every=',
      ]
    ],
  )
  while 'compiled' not in started[0].stderr.readline():
    assert started[0].poll() is None
  started[killed].kill()
  ended(started[killed])
  status, errors, text = ended(started[1 - killed])
  assert status == peers.EXIT_STATUS and len(errors) == 1 and errors[0].startswith(peers.LOST)
  assert 'Traceback' not in text and 'stack trace' not in text
