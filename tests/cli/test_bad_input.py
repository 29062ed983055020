"""Whatever is wrong with the input: status 2 and one line that names it and what to do; nothing of it is executed."""

import ast
import collections
import errno
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import grain  # noqa: F401  defines flags, which must not vanish with those of a test
import numpy as np
import pytest
from absl.testing import flagsaver
from etils import epath
from PIL import Image

from cmtkd_jax import config as config_lib
from cmtkd_jax import export, main
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import table_text
from cmtkd_jax.runs import checkpoint, metric_log, run_files
from cmtkd_jax.runtime import local_file, text_table, topology

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = '--config=configs/digits_resnet8.py:smoke'
SINGLE = (SMOKE, '--config.method.name=single')
RESNET18 = (*SINGLE, '--config.model.name=resnet18', '--config.model.stem=imagenet', '--config.model.block_order=post')
# The first lines of a run, before what fails later.
BEGINNING = re.compile(r'(?!error: ).*: train \d+ images, |preparing \w+, \d+ layers')
# ml_collections loads config files so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')


def run(*arguments):
  """What the command does with these arguments; returns its exit status."""
  with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
    patch.setattr(sys, 'argv', ['main', *map(str, arguments)])  # where config flags look
    patch.delitem(sys.modules, 'config_config', raising=False)  # or a file without get_config takes that of the last
    patch.chdir(ROOT)
    return main.main(sys.argv)


@pytest.fixture
def refused(capsys):
  """Asserts that a command is refused as it should be; `after` may be lines before the error."""

  def check(arguments, words, alone=True):
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not BEGINNING.match(line)]
    assert lines[-1].startswith('error: ') and err.count('error: ') == 1 and 'Traceback' not in out + err
    assert not alone or len(lines) == 1
    for word in words:
      assert word in lines[-1]

  return check


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run, to be copied and damaged."""
  directory = tmp_path_factory.mktemp('finished') / 'run'
  assert run(*SINGLE, f'--workdir={directory}', '--config.checkpoint_every=1 steps') == 0
  return directory


# --- Flags.


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], ['--config is missing', 'e.g. --config=configs/digits_resnet8.py']),
    (['--mode=report'], ['--workdir is missing; name the directory of a run, e.g. --workdir=runs/digits_resnet8']),
    (['--mode=export', '--config.dtype=bfloat16'], ['--config.dtype does not belong to --mode=export', 'leave it out']),
    ([SMOKE, '--config.bits.rules=student 4'], ['config.bits.rules', 'not a tuple; write it as in Python']),
    ([SMOKE, '--config.quantizer.name=lqs'], ["config.quantizer.name='lqs' is not one of", "perhaps 'lsq'"]),
    ([SMOKE, '--config.feature_loss.weight=5'], ['no such field, perhaps config.feature_loss.attention.weight']),
    (['configs/x.py:smoke'], ["'configs/x.py:smoke' is not a flag; did you mean --config=configs/x.py:smoke?"]),
    (['--mode=nope', SMOKE], ['--mode=nope', 'should be one of', 'train|evaluate']),
    ([SMOKE, 'stray'], ["'stray' is not a flag", '--workdir']),
    (['--confg=x'], ["'confg'", 'Did you mean: config']),
    ([SMOKE, '--epochs=3'], ['--epochs is not a flag', "--config.duration='3 epochs'"]),
    ([SMOKE, '--epochs=10'], ["--config.duration='10 epochs'"]),
    ([SMOKE, '--num_steps', '250'], ["--config.duration='250 steps'"]),
    ([SMOKE, '--resume'], ['--resume is not a flag; the same command with the same --workdir resumes']),
    ([SMOKE, '--gpus=2'], ["flag 'gpus'; --help lists the flags"]),
    ([SMOKE, '--optimizr=adamw'], ['--optimizr is not a flag', '--config.optimizer.name=']),
    (['--mode=config', 'optimizr'], ['did you mean optimizer?']),
    ([SMOKE, '--lr=0.1'], ['--lr is not a flag', '--config.optimizer.learning_rate=']),
    ([SMOKE, '--batchsize=3'], ['--batchsize is not a flag', '--config.batch_size=']),
    (['--config'], ['Missing value for flag --config']),
    ([SMOKE, '--step=abc'], ['--step=abc', 'give a whole number']),
    ([SMOKE, '--step=3'], ['--step=3', 'belongs to --mode=evaluate']),
    ([SMOKE, '--mode=report', '--config.seed=3'], ['--config.seed', 'not belong to --mode=report', 'leave it out']),
    *[
      (
        [SMOKE, f'--mode={mode}', '--workdir=x', '--config.data.minival=0.1', '--config.student.weight_bits=4'],
        [f'--config.student.weight_bits does not belong to --mode={mode}, which takes config.data', 'leave it out'],
      )
      for mode in ('evaluate', 'export')
    ],
    (
      ['--mode=export', '--workdir=x', '--num_processes=2'],
      ['--mode=export runs in one process', 'without --num_processes=2'],
    ),
    (['--mode=evaluate'], ['--workdir', 'the directory of a run']),
    (['--mode=bits', '--workdir=x'], ['--config is missing', 'configs/digits_resnet8.py']),
    (['--mode=summarize', SMOKE], ['config.table.runs is empty: this configuration has no table']),
    (['--mode=table', SMOKE], ['has no table', 'configs/table2_resnet18_cifar100.py']),
    (['--config=configs/table2_resnet18_cifar100.py'], ['is a table of 10 runs', 'use --mode=table']),
    ([SMOKE, '--mode=bits', '--config.table.only=("x",)'], ["config.table.only=('x',)", "no run 'x'", 'runs are none']),
    ([SMOKE, '--num_processes=2'], ['--coordinator_address, --num_processes and --process_id', 'all three or none']),
    (
      [SMOKE, '--coordinator_address=h:1', '--num_processes=2', '--process_id=2'],
      ['--process_id=2', 'below --num_processes=2'],
    ),
    (
      [SMOKE, '--coordinator_address=h:1', '--num_processes=0', '--process_id=0'],
      ['--process_id=0', 'below --num_processes=0'],
    ),
    ([SMOKE, '--coordinator_address=nonsense', '--num_processes=2', '--process_id=0'], ["'nonsense' is not HOST:PORT"]),
    ([SMOKE, '--num_processes=abc'], ['--num_processes=abc', 'give a whole number']),
    ([SMOKE, '--init_timeout=-1'], ['--init_timeout=-1', 'positive integer']),
    *[
      (
        ['--mode=evaluate', '--workdir=x', f'--{prefix}config.{field}'],
        [f'--config.{field.partition("=")[0]} changes a field of a config file, and --config is missing'],
      )
      for prefix, field in (('', 'eval_batch_size=32'), ('', 'data.dir=x'), ('no', 'data.cache'))
    ],
    ([SMOKE, '--workdir=/a/b\udcff'], [r'--workdir=/a/b\udcff is not UTF-8; choose another name']),
    # A variable of the shell that is not set.
    ([SMOKE, '--workdir='], ['--workdir= lacks a directory', 'name it, or leave the flag out']),
    (['--mode=report', '--workdir=a,'], ['--workdir=a, lacks a directory']),
    (['--config=', '--mode=bits'], ['--config= lacks a config file', 'name one, e.g.']),
    (['--mode=bits', '--config', ''], ['--config= lacks a config file']),
    (['--config=:smoke', '--mode=bits'], ['--config= lacks a config file']),
    (['--mode=export', '--workdir=a', '--format='], ['--format= lacks a format']),
    (['--mode=export', '--workdir=a', '--format=packed,'], ['--format=packed, lacks a format']),
  ],
)
def test_flags(refused, arguments, words):
  refused(arguments, words)


def test_slices_of_tpus_that_are_not_there(monkeypatch):
  def unknown(**unused):
    raise RuntimeError('INVALID_ARGUMENT: no such topology')

  for name in ('TPU_SKIP_MDS_QUERY', 'TPU_WORKER_HOSTNAMES', 'ALLOW_MULTIPLE_LIBTPU_LOAD'):
    monkeypatch.setenv(name, '')  # restored at the end
  monkeypatch.setattr('jax.experimental.topologies.get_topology_desc', unknown)
  with pytest.raises(UserError, match='v5e:3x3 is not a slice .*no such topology.; name another one, such as v5e:2x2'):
    topology.tpu_slice('v5e:3x3')


def test_environment_of_processes(refused, monkeypatch):
  for variables, message in (
    (dict(ADDRESS='localhost:1', PROCESSES='two', ID='0'), "JAX_NUM_PROCESSES='two' in the environment is not a whole"),
    (dict(ADDRESS='localhost:1', PROCESSES='2', ID=''), 'JAX_NUM_PROCESSES are set, JAX_PROCESS_ID is not; set it'),
    (dict(ADDRESS='localhost:1', PROCESSES='2', ID='2'), 'JAX_PROCESS_ID=2 must lie below JAX_NUM_PROCESSES=2, from 0'),
    (dict(ADDRESS='localhost', PROCESSES='2', ID='1'), "JAX_COORDINATOR_ADDRESS='localhost' is not HOST:PORT; give"),
  ):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', variables['ADDRESS'])
    monkeypatch.setenv('JAX_NUM_PROCESSES', variables['PROCESSES'])
    monkeypatch.setenv('JAX_PROCESS_ID', variables['ID'])
    refused([SMOKE], [message])


# --- Fields.


@pytest.mark.parametrize(
  'field, words',
  [
    ('nope.x=1', ['config.nope.x', 'no such field', 'optimizer']),
    ('method.cmtkd.gama=1', ['config.method.cmtkd.gama', 'alpha, beta']),
    ('data=3', ['config.data is a section; set a field of it: config.data.name, config.data.augment']),
    ('data.name=npy:http://a/b', ['config.data.name=npy:http://a/b: nothing is read from http://; give a local path']),
    ('init_from=student=https://a', ['config.init_from=student=https://a: nothing is read from https://']),
    ("teacher_workdirs=('ftp://a',)", ["config.teacher_workdirs=('ftp://a',): nothing is read from ftp://"]),
    ('optimizer.learnin_rate=1', ['no such field, perhaps config.optimizer.learning_rate']),
    ('epochs=3', ['no such field, perhaps config.duration']),
    ('seed', ['Missing value for flag --config.seed']),
    ('seed=1.5', ['config.seed=1.5', 'give a whole number']),
    ('seed=-1', ['config.seed=-1', 'must lie in [0, 4294967296)']),
    (f'seed={2**70}', [f'config.seed={2**70}', 'must lie in']),
    ('tensorboard=maybe', ['config.tensorboard=maybe', 'give True or False']),
    ('method.name=nope', ["config.method.name='nope'", 'is not one of', "'cmtkd'"]),
    ('dtype=float16', ["config.dtype='float16'", "'bfloat16'"]),
    ('model.name=vgg', ["config.model.name='vgg'", "'resnet18'"]),
    ('model.width=0', ['config.model.width=0', 'must lie in [0.01, 64]']),
    ('model.width=1e308', ['config.model.width=1e+308', 'must lie in']),
    ('model.width=1e-9', ['config.model.width=1e-09', 'must lie in [0.01, 64]']),
    ('model.width=1000', ['config.model.width=1000', 'must lie in [0.01, 64]']),
    ('method.cmtkd.alpha=1e308', ['config.method.cmtkd.alpha=1e+308', 'must be at most']),
    (
      'method.cmtkd.importance_init=("a","b","c")',
      ["config.method.cmtkd.importance_init=('a', 'b', 'c')", 'values like 0.5'],
    ),
    ('method.cmtkd.importance_init=(1.0,float("nan"),1.0)', ['config.method.cmtkd.importance_init']),
    ('method.cmtkd.importance_init=(0.0,1e308,0.0)', ['config.method.cmtkd.importance_init', 'must be at most']),
    ('method.cmtkd.taps=("a",)', ["config.method.cmtkd.taps=('a',)", 'values like 5']),
    ('method.cmtkd.taps=(5.5,)', ['config.method.cmtkd.taps=(5.5,)', 'values like 5']),
    ('eval_batch_size=1000000000000', ['config.eval_batch_size=1000000000000']),
    ('model.bn_momentum=1', ['config.model.bn_momentum=1.0', '[0, 1)']),
    ('model.bn_groups=5', ['config.model.bn_groups=5', 'take a divisor']),
    ('quantizer.name=nope', ["config.quantizer.name='nope'", "'lsq'"]),
    ('quantizer.activations=twn', ['config.quantizer.activations', "such as 'hwgq'"]),
    ('quantizer.hwgq.activation.step=x', ["step='x'", "'published'"]),
    ('student.weight_bits=9', ['config.student.weight_bits=9', '1, 2, 3']),
    ('student.activation_bits=0', ['config.student.activation_bits=0', 'is not one of 1, 2,']),
    ('bits.first_last=16', ['config.bits.first_last=16', '32, 8']),
    ("bits.rules=(('(',2,2),)", ['config.bits.rules', '(regex, weight bits, activation bits)', 'fix the regex']),
    *[
      (
        f'bits.rules={rules}',
        [f'{rule} is not (regex, weight bits, activation bits); write rules such as ((', '4, 4),)'],
      )
      for rules, rule in (
        ("(('.*',2),)", "('.*', 2)"),
        ('abc', "('abc',): 'abc'"),  # three letters
        ("('.*',2,2)", "('.*', 2, 2): '.*'"),
        ('((1,2,3),)', '(1, 2, 3)'),
        ('3', '(3,): 3'),
      )
    ],
    ("bits.rules=(('.*',2,99),)", ["config.bits.rules=(('.*', 2, 99),)", 'width=99 is not a bit-width; allowed']),
    ("bits.rules=(('nothing',2,2),)", ["'nothing' matches no layer", 'named like']),
    ('optimizer.learning_rate=0', ['config.optimizer.learning_rate=0', 'positive']),
    ('optimizer.learning_rate=nan', ['config.optimizer.learning_rate=nan', 'finite']),
    ('optimizer.learning_rate=inf', ['config.optimizer.learning_rate=inf', 'finite']),
    ('optimizer.momentum=1.5', ['config.optimizer.momentum=1.5', '[0, 1)']),
    ('optimizer.weight_decay=-1', ['config.optimizer.weight_decay=-1', 'not be negative']),
    ('optimizer.grad_clip_norm=abc', ['config.optimizer.grad_clip_norm=abc', 'give a number']),
    ('optimizer.learning_rate=None', ['config.optimizer.learning_rate=None', 'must be float']),
    ('optimizer.decay_at=2 steps', ['config.optimizer.decay_at', "contradicts config.optimizer.schedule='cosine'"]),
    ('optimizer.warmup=5 steps', ['config.optimizer.warmup', 'shorten it']),
    ('duration=', ["config.duration=''", "'120 epochs'"]),
    ('duration=10', ["config.duration='10' is not a duration; give a number and a unit", "or '3000 steps' (steps"]),
    ('duration=5 weeks', ["config.duration='5 weeks'", '(steps, epochs or examples)']),
    ('duration=1, 2 epochs', ['config.duration', 'leave one']),
    ('duration=-3 steps', ['config.duration', 'is not a duration; give']),
    (f'duration={"9" * 400} steps', ['config.duration', 'is not a duration; give']),
    ('checkpoint_every=0.1 steps', ["config.checkpoint_every='0.1 steps'", 'is less than one step', "'1 steps'"]),
    ('duration=999999999999 epochs', ["config.duration='999999999999 epochs'", 'is more than', 'shorten it']),
    ('log_every=x', ["config.log_every='x'", 'give a number and a unit']),
    ('beta_schedule.change_at=3', ["config.beta_schedule.change_at='3'", 'numbers and one unit', "'50, 100 epochs'"]),
    ('averaging.start=1, 2 epochs', ['config.averaging.start', 'gives 2 durations where one is wanted']),
    ('batch_size=0', ['config.batch_size=0', 'must be at least 1']),
    ('batch_size=15', ['config.batch_size=15', 'use 8 or 16']),
    ('batch_size=80000', ['config.batch_size=80000', '48 training examples', 'lower it']),
    ('grad_accum_steps=3', ['config.grad_accum_steps=3', 'take a divisor']),
    ('remat=(', ["config.remat='('", 'fix or empty it']),
    ('remat=nothing', ["config.remat='nothing' matches none of", "name one of them, or '.*'"]),
    ('max_checkpoints=0', ['config.max_checkpoints=0', 'must be at least 1']),
    ('method.cmtkd.teacher_bits=()', ['config.method.cmtkd.teacher_bits=()', "config.method.name='single'"]),
    ('method.cmtkd.teacher_bits=(4.5,)', ['config.method.cmtkd.teacher_bits=4.5', 'allowed']),
    ('method.cmtkd.taps=(99,)', ['config.method.cmtkd.taps=(99,)', '(3, 5, 7)']),
    ('method.cmtkd.temperature=0', ['config.method.cmtkd.temperature=0', 'must be positive']),
    ('method.cmtkd.alpha=-1', ['config.method.cmtkd.alpha=-1', 'must not be negative']),
    ('feature_loss.attention.norm=x', ["config.feature_loss.attention.norm='x'", "'l1'"]),
    ('method.name=kd', ['config.teacher_workdirs=()', 'give the work directories']),
    ('data.mean=("a",)', ["config.data.mean=('a',)", 'like 0.5']),
    ('data.std=(0.0,)', ['config.data.std=(0.0,)', 'must be positive']),
    ('data.pad=100', ['config.data.pad=100', 'below config.data.image_size=8']),
    ('data.minival=1.7', ['config.data.minival=1.7', 'must lie in [0, 1)']),
    ('data.image_size=9', ['config.data.image_size=9', 'set config.data.image_size=8']),
    ('init_from_ignore=(', ["config.init_from_ignore='('", 'fix or empty it']),
    ('init_from={nope}', ['config.init_from', "no run 'nope'"]),
    ('teacher_workdirs=(3,)', ['config.teacher_workdirs=(3,)', "'runs/teacher'"]),
  ],
)
@pytest.mark.usefixtures('eight_devices')
def test_fields(refused, tmp_path, field, words):
  refused([SMOKE, f'--workdir={tmp_path}/run', f'--config.{field}'], words)
  assert not (tmp_path / 'run' / run_files.CHECKPOINTS).exists()


@pytest.mark.parametrize(
  'decay_at, words',
  [
    ('1, 1 steps', ['must ascend', 'list each step once']),
    ('2, 1 steps', ['must ascend', 'list each step once']),
    ('1, 3 steps', ['must lie within the training of 3 steps', 'scale it with the duration']),
    ('0, 1 steps', ['must lie within', 'scale it with the duration']),
  ],
)
def test_steps_of_the_learning_rate(refused, tmp_path, decay_at, words):
  refused(
    [SMOKE, f'--workdir={tmp_path}/run', '--config.optimizer.schedule=step', f'--config.optimizer.decay_at={decay_at}'],
    [f"config.optimizer.decay_at='{decay_at}'", *words],
  )


CHAIN = '--config=configs/digits_kd.py:smoke'


@pytest.mark.parametrize('mode', ['config', 'bits'])
def test_durations_are_checked_wherever_a_configuration_is(refused, mode):
  refused([SMOKE, f'--mode={mode}', '--config.checkpoint_every=5 weeks'], ["config.checkpoint_every='5 weeks'"])


@pytest.mark.parametrize(
  'field, words',
  [
    (
      'prerequisites.techer.seed=3',
      ['--config.prerequisites.techer.seed', "no run 'techer'", 'runs of config.prerequisites are teacher'],
    ),
    ('table.runs.a.seed=3', ["no run 'a'", 'runs of config.table.runs are none']),
    ('prerequisites.teacher.sed=3', ['config.prerequisites.teacher.sed: there is no such field, perhaps config.seed']),
    ('prerequisites.teacher.quantizer.nme=3', ['no such field, perhaps config.quantizer.name;']),
    (
      'prerequisites=dict(a=1)',
      ['--config.prerequisites: a whole dict cannot be set on the command line', 'change the config file'],
    ),
    ('prerequisites={}', ['--config.prerequisites: a whole dict cannot be set']),
    ('prerequisites.teacher=3', ['--config.prerequisites.teacher: a whole dict cannot be set']),
    ('table.runs.a={}', ['--config.table.runs.a: a whole dict cannot be set']),
    ('prerequisites.teacher.duration=9', ["config.duration='9' is not a duration"]),
    ('prerequisites.teacher.seed=x', ['--config.prerequisites.teacher.seed=x', 'give a whole number']),
  ],
)
def test_fields_of_the_runs_of_a_chain(refused, tmp_path, field, words):
  refused([CHAIN, f'--workdir={tmp_path}/run', f'--config.{field}'], words)


# --- Config files.

BASE = 'from cmtkd_jax import config as base\ndef get_config(argument=""):\n  config = base.default()\n'


@pytest.mark.parametrize(
  'text, words',
  [
    ('def get_config(:\n', ['--config', 'file.py, line 1', 'fix the config file']),
    ('x = 1\n', ['--config', 'file.py has no function get_config()']),
    ('import sys\nsys.exit(0)\n', ['file.py, line 2: SystemExit: 0', 'fix the config file']),
    ('\ndef get_config(argument=""): raise KeyError("boom")\n', ["file.py, line 2: KeyError: 'boom'"]),
    ('raise ValueError\n', ['file.py, line 1: ValueError; fix']),
    (BASE + '  config.data = None\n  return config\n', ['config.data']),
    ('import ml_collections\ndef get_config(argument=""): return ml_collections.ConfigDict({"a": 1})\n', ['config.']),
    ('def get_config(argument=""): return {}\n', ['get_config() returns dict', 'cmtkd_jax.config.default()']),
    (
      'def get_config(argument=""): return 1 / 0\n',
      ['file.py, line 1: ZeroDivisionError: division by zero; fix'],
    ),
    (
      'import no_such_module\n',
      ["line 1: ModuleNotFoundError: No module named 'no_such_module'; install"],
    ),
    (BASE + '  config.neew = 3\n  return config\n', ['config.neew', 'no such field', 'seed']),
    (BASE + '  config.seed = "a"\n  return config\n', ['file.py, line 4: TypeError: ', "'seed'", 'fix the config']),
    (BASE + '  del config.seed\n  return config\n', ['config.seed is missing', 'cmtkd_jax.config.default()']),
    (BASE + '  config.prerequisites.a = 3\n  return config\n', ['a=3', "dict(method=dict(name='single'))"]),
    (BASE + '  config.prerequisites.a = dict(nope=3)\n  return config\n', ['config.nope', 'no such field']),
    (
      BASE + '  config.prerequisites = dict(a=dict(init_from="{b}"), b=dict(init_from="{a}"))\n  return config\n',
      ['config.prerequisites: a -> b -> a', 'circle; take one reference out of init_from or teacher_workdirs'],
    ),
  ],
)
def test_config_files(refused, tmp_path, text, words):
  (tmp_path / 'file.py').write_text(text)
  refused([f'--config={tmp_path}/file.py', f'--workdir={tmp_path}/run'], words)


@pytest.mark.parametrize(
  'name, words',
  [
    ('configs/nope.py', ['there is no file configs/nope.py', 'e.g. --config=configs/digits_resnet8.py']),
    ('configs', ['configs is a folder, not a file', 'e.g. --config=configs/digits_resnet8.py']),
    ('configs/digits_resnet8.py:nope', ["'nope' is not one of smoke"]),
    ('configs/table2_resnet18_cifar100.py:nope', ["'nope' is not one of smoke, average_teacher"]),
  ],
)
def test_config_names(refused, tmp_path, name, words):
  refused([f'--config={name}', f'--workdir={tmp_path}/run'], words)


@pytest.mark.parametrize(
  'line, words',
  [
    ('("title", "2/2")', ["('title', '2/2') must be (title, bits, run"]),
    ('("title", "2/2", "b", "student", (None, None))', ["there is no run 'b'; runs are a"]),
  ],
)
def test_lines_of_a_table(refused, tmp_path, line, words):
  (tmp_path / 'file.py').write_text(
    f'{BASE}  config.table.runs = dict(a=dict())\n  config.table.lines = ({line},)\n  return config\n'
  )
  refused(['--mode=table', f'--config={tmp_path}/file.py', f'--workdir={tmp_path}'], words)


# --- Data.


def images(root, splits=('train', 'test'), classes=('ant', 'bee'), count=8):
  for split in splits:
    for name in classes:
      folder = root / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        Image.new('L', (8, 8)).save(folder / f'{i}.png')


def claim(path, width, height):
  """Writes a PNG whose header says that it is so large."""
  Image.new('L', (8, 8)).save(path)
  data = bytearray(path.read_bytes())
  data[16:24] = struct.pack('>II', width, height)
  data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  path.write_bytes(data)


def cut_jpeg(path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:-150])


def without(path):
  shutil.rmtree(path)


def emptied(path):
  for file in path.iterdir():
    file.unlink()


FOLDERS = {
  'no folder': (lambda root: shutil.rmtree(root), ['there is no folder', 'a folder of images for each class']),
  'no training images': (lambda root: without(root / 'train'), ['no folder', 'put images to train on into']),
  'one class': (
    lambda root: [without(root / split / 'bee') for split in ('train', 'test')],
    ['one class', "'ant'", 'give two or more'],
  ),
  'class without test images': (lambda root: without(root / 'test' / 'ant'), ["'ant'", 'same classes']),
  'class without training images': (lambda root: images(root, ['test'], ['cat']), ["'cat'", 'same classes']),
  'empty class': (lambda root: emptied(root / 'train' / 'ant'), ['train/ant holds no', 'fill or remove it']),
  'splits of another name': (
    lambda root: [(root / split).rename(root / split.capitalize()) for split in ('train', 'test')],
    ['Test holds no image file', 'images lie in <class>/, in train/<class>/ and test/<class>/'],
  ),
  'no image': (
    lambda root: (root / 'train' / 'ant' / '3.png').write_text('hello'),
    ['ant/3.png', 'cannot be decoded', 'repair'],
  ),
  'cut image': (lambda root: cut_jpeg(root / 'train' / 'ant' / '3.jpg'), ['ant/3.jpg', 'cannot be decoded', 'repair']),
  'decompression bomb': (
    lambda root: claim(root / 'train' / 'ant' / '3.png', 10**5, 10**5),
    ['ant/3.png', 'cannot be decoded', 'repair'],
  ),
  'bomb first': (
    lambda root: claim(root / 'train' / 'ant' / '0.png', 10**5, 10**5),
    ['ant/0.png', 'cannot be decoded', 'repair'],
  ),
}


@pytest.mark.parametrize('on_device', ['auto', 'no'])
@pytest.mark.parametrize('damage, words', FOLDERS.values(), ids=FOLDERS)
def test_folders_of_images(refused, tmp_path, damage, words, on_device):
  images(tmp_path / 'data')
  damage(tmp_path / 'data')
  refused(
    [
      *SINGLE,
      f'--workdir={tmp_path}/run',
      f'--config.data.name=folder:{tmp_path}/data',
      '--config.batch_size=8',
      f'--config.data.on_device={on_device}',
    ],
    words,
    alone=False,
  )


def npy_header(shape, dtype):
  """The beginning of a .npy file, without its data."""
  text = repr({'descr': dtype, 'fortran_order': False, 'shape': shape}).ljust(117).encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text


class Harmful:
  """What a pickle of it does when it is loaded: it makes a folder."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


ARRAYS = {
  'no images': ({'train_images': None}, ['train_images.npy does not exist', 'the folder must hold']),
  'floats': ({'train_images': np.zeros((16, 8, 8, 1), np.float32)}, ['float32[16, 8, 8, 1]', 'save uint8']),
  'three axes': ({'train_images': np.zeros((16, 8, 8), np.uint8)}, ['uint8[16, 8, 8]', 'save uint8[N, H, W, C]']),
  'other number': ({'train_labels': np.arange(5)}, ['int64[5]', 'one for each image']),
  'negative': ({'train_labels': np.arange(16) - 3}, ['label -3', 'number the classes from 0']),
  'far apart': ({'train_labels': np.arange(16) * 10**15}, ['label 15000000000000000', 'number the classes from 0']),
  'unknown class': ({'test_labels': np.full(4, 7)}, ['label 7', 'must lie in 0..1']),
  'objects': (
    {'train_labels': np.array([{}] * 16, object)},
    ['train_labels.npy holds Python objects', "save labels.astype('int32')"],
  ),
  'no array': ({'train_images': b'hello'}, ['train_images.npy is not a .npy file', 'numpy.save']),
  'empty file': ({'train_images': b''}, ['train_images.npy is not a .npy file', 'numpy.save']),
  'huge images': (
    {'train_images': npy_header((10**6, 10**3, 10**3, 3), '|u1')},
    ['train_images.npy is cut short', 'takes 3000000000000 bytes, and it has 0'],
  ),
  'huge labels': (
    {'train_labels': npy_header((10**12,), '<i8')},
    ['train_labels.npy is cut short: int64[1000000000000]'],
  ),
  'huge names': (
    {'class_names': npy_header((10**12,), '<U9')},
    ['class_names.npy is cut short', 'copy or write it again'],
  ),
  'numbers for names': ({'class_names': np.arange(2)}, ['class_names.npy is int64[2]', 'a vector of strings']),
}


def npy(folder, **changes):
  folder.mkdir()
  arrays = {
    'train_images': np.zeros((16, 8, 8, 1), np.uint8),
    'train_labels': np.arange(16) % 2,
    'test_images': np.zeros((4, 8, 8, 1), np.uint8),
    'test_labels': np.arange(4) % 2,
  } | changes
  for name, array in arrays.items():
    if isinstance(array, bytes):
      (folder / f'{name}.npy').write_bytes(array)
    elif array is not None:
      np.save(folder / f'{name}.npy', array, allow_pickle=True)
  return f'--config.data.name=npy:{folder}'


@pytest.mark.parametrize('arrays, words', ARRAYS.values(), ids=ARRAYS)
def test_arrays(refused, tmp_path, arrays, words):
  refused(
    [*SINGLE, f'--workdir={tmp_path}/run', npy(tmp_path / 'data', **arrays), '--config.batch_size=8'],
    ['config.data.name', *words],
  )


def test_pickles_are_not_loaded(refused, tmp_path):
  """Neither of data nor of weights."""
  harmful = np.array([Harmful(tmp_path / 'harm')], object)
  refused(
    [*SINGLE, f'--workdir={tmp_path}/run', npy(tmp_path / 'data', train_labels=harmful)],
    ['train_labels.npy holds Python objects'],
  )
  np.savez(tmp_path / 'weights.npz', **{'conv1.weight': harmful})
  refused(
    [*RESNET18, f'--workdir={tmp_path}/run', f'--config.init_from={tmp_path}/weights.npz'],
    ['weights.npz cannot be read', 'save the state_dict again'],
  )
  assert not (tmp_path / 'harm').exists()
  np.load(tmp_path / 'weights.npz', allow_pickle=True)['conv1.weight']
  assert (tmp_path / 'harm').exists()  # it would have been


@pytest.mark.parametrize(
  'name, words',
  [
    ('', ["config.data.name=''", "such as 'digits'"]),
    ('npy:', ["config.data.name='npy:' lacks the path of a folder; write npy:DIR"]),
    ('folder:', ["config.data.name='folder:' lacks the path of a folder; write folder:DIR"]),
    ('generated:8x8:10:100', ['does not parse', "'generated:HxWxC:CLASSES:N'"]),
    ('generated:0x8x1:10:100', ['does not parse', 'positive whole numbers']),
    ('generated:100000x100000x3:10:1000000', ['more than 4 GiB', 'lower its numbers']),
    ('generated:8x8x1:10:99999999999999', ['more than 4 GiB', 'lower its numbers']),
    ('no_such_set', ["config.data.name='no_such_set' is unknown", "'cifar100'"]),
    ('cifar100', ['not prepared in /nonexistent', 'download_and_prepare']),
    ('imagenet2012', ['not prepared in /nonexistent', 'downloads/manual', 'download_and_prepare']),
    ('cifar100:9.9.9', ["config.data.name='cifar100:9.9.9'", 'download_and_prepare']),
  ],
)
def test_names_of_data(refused, tmp_path, name, words):
  refused([*SINGLE, f'--workdir={tmp_path}/run', f'--config.data.name={name}', '--config.data.dir=/nonexistent'], words)


# --- Work directories.


def text(name, content):
  return lambda run: (run / name).write_text(content)


def changed(name, **changes):
  return lambda run: (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | changes))


def into_directory(name):
  def damage(run):
    (run / name).unlink()
    (run / name).mkdir()

  return damage


def emptied_checkpoints(run):
  for path in (run / 'checkpoints').iterdir():
    shutil.rmtree(path)
    path.mkdir()


def file_for_checkpoints(run):
  shutil.rmtree(run / 'checkpoints')
  (run / 'checkpoints').write_text('')


def renamed_metric(run):
  """In the last row, of a run that is not finished, whose results come from its rows."""
  (run / 'summary.json').unlink()
  path = run / 'metrics.jsonl'
  path.write_text(path.read_text().replace('test/student/top5', 'test/student/best5'))


def wider(run):
  config = json.loads((run / 'config.json').read_text())
  config['model']['width'] = 0.25
  (run / 'config.json').write_text(json.dumps(config))


DAMAGED_RUNS = {
  'config.json, cut': ('evaluate', text('config.json', '{"seed":'), ['config.json is damaged', 'restore it']),
  'config.json, a list': ('train', text('config.json', '[]'), ['config.json is damaged', 'restore it']),
  'config.json, no text': (
    'train',
    lambda run: (run / 'config.json').write_bytes(b'\xff\xfe\0'),
    ['config.json is damaged', 'restore it'],
  ),
  'config.json, other types': ('train', changed('config.json', seed='x'), ['configuration is damaged', 'restore it']),
  'config.json, fields where there is a value': (
    'report',
    changed('config.json', seed={}),
    ['configuration is damaged', 'seed is a dict', 'restore it'],
  ),
  'config.json, 10 to the power of 400': (
    'report',
    changed('config.json', optimizer={'momentum': 10**400}),
    ['configuration is damaged', 'too large'],
  ),
  'config.json, a control character': (
    'report',
    changed('config.json', seed='\x1b[2J'),
    ['configuration is damaged', r'\x1b[2J'],
  ),
  'config.json, no fields': ('report', changed('config.json', data=3), ['configuration is damaged', 'restore it']),
  'config.json, unknown field': ('evaluate', changed('config.json', a=3), ['config.a', 'no such field']),
  'config.json, nested': ('evaluate', text('config.json', '[' * 10**5), ['config.json is damaged', 'restore it']),
  'config.json, a huge number': (
    'evaluate',
    text('config.json', '{"seed": ' + '9' * 5000 + '}'),
    ['config.json is damaged', 'restore it'],
  ),
  'config.json, a directory': ('evaluate', into_directory('config.json'), ['config.json is damaged']),
  'config.json, another model': ('evaluate', wider, ['does not fit', 'here; ', 'use the configuration']),
  'summary.json, cut': ('train', text('summary.json', '{'), ['summary.json is damaged', 'delete it']),
  'summary.json, a list': ('train', text('summary.json', '[]'), ['summary.json is damaged', 'delete it']),
  'summary.json, no results': ('report', text('summary.json', '{"config": {}}'), ['summary.json is damaged']),
  'summary.json, nested': ('report', text('summary.json', '{"results": ' * 10**5), ['summary.json is damaged']),
  'summary.json, other results': (
    'report',
    changed('summary.json', results={'test/student': {'last': {}}}),
    ['summary.json is damaged', 'it is not what was written'],
  ),
  'summary.json, other importance': ('report', changed('summary.json', importance=[1]), ['summary.json is damaged']),
  'summary.json, 10 to the power of 400': (
    'report',
    changed('summary.json', steps=10**400),
    ['summary.json is damaged', 'it is not what was written'],
  ),
  'summary.json, a directory': ('train', into_directory('summary.json'), ['summary.json is damaged', 'delete it']),
  'metrics.jsonl, garbage': (
    'report',
    text('metrics.jsonl', 'x\n{"step": 1}\n'),
    ['line 1 of', 'metrics.jsonl', 'delete that line'],
  ),
  'metrics.jsonl, no numbers': (
    'report',
    text('metrics.jsonl', '{"step": 1, "x": [2]}\n{"step": 2}\n'),
    ['line 1 of', 'metrics.jsonl', 'delete that line'],
  ),
  'metrics.jsonl, nested': (
    'report',
    text('metrics.jsonl', '[' * 10**5 + '\n{"step": 2}\n'),
    ['line 1 of', 'metrics.jsonl', 'delete that line'],
  ),
  'metrics.jsonl, a renamed metric': ('report', renamed_metric, ["has no 'test/student/top5'", 'restore the file']),
  'metrics.jsonl, a directory': ('report', into_directory('metrics.jsonl'), ['metrics.jsonl cannot be read']),
  'bits.json, cut': ('report', text('bits.json', '['), ['bits.json is damaged', 'delete it']),
  'bits.json, other types': (
    'report',
    text('bits.json', '[{"layer": 1, "weight_bits": "2", "activation_bits": 2, "parameters": 3, "macs": 4}]'),
    ['bits.json is damaged'],
  ),
  'bits.json, other fields': ('report', text('bits.json', '[{"a": 1}]'), ['bits.json is damaged', 'delete it']),
  'classes.json, a number': ('report', text('classes.json', '3'), ['classes.json is damaged', 'restore it']),
  'classes.json, numbers': ('report', text('classes.json', '[1, 2]'), ['classes.json is damaged', 'restore it']),
  'teachers.json, cut': ('evaluate', text('teachers.json', '['), ['teachers.json is damaged', 'restore it']),
  'teachers.json, other fields': ('evaluate', text('teachers.json', '[{}]'), ['teachers.json is damaged']),
  'config.json, of another program': (
    'train',
    lambda run: (shutil.rmtree(run / 'checkpoints'), (run / 'config.json').write_text('{"model_type": "bert"}')),
    ['config.json is not of a run; choose another workdir'],
  ),
  'metrics.jsonl, of another program': (
    'train',
    lambda run: (shutil.rmtree(run), run.mkdir(), (run / 'metrics.jsonl').write_text('mine')),
    ['metrics.jsonl is not of a run, which would have a config.json, too; choose another workdir'],
  ),
  'event files, of another program': (
    'train',
    lambda run: (shutil.rmtree(run), run.mkdir(), (run / 'events.out.tfevents.1.other').write_text('mine')),
    ['events.out.tfevents.1.other is not of a run, which would have a config.json, too; choose another workdir'],
  ),
  'lock, of another program': (
    'train',
    lambda run: (shutil.rmtree(run), run.mkdir(), (run / 'lock').write_text('mine')),
    ['lock is not of a run; choose another workdir, or remove the file'],
  ),
  'config.json, none beside checkpoints': (
    'train',
    lambda run: (run / 'config.json').unlink(),
    ['config.json is missing, although other files of a run are there; restore it'],
  ),
  'no checkpoints': ('evaluate', lambda run: shutil.rmtree(run / 'checkpoints'), ['no checkpoint in', 'train first']),
  'empty checkpoints': ('evaluate', emptied_checkpoints, ['no readable checkpoint', 'use another one']),
  'a file for checkpoints': ('train', file_for_checkpoints, ['checkpoints is not a directory', 'remove it']),
  'a directory for the lock': ('train', into_directory('lock'), ['cannot be written (Is a directory)']),
}


@pytest.mark.parametrize('mode, damage, words', DAMAGED_RUNS.values(), ids=DAMAGED_RUNS)
def test_damaged_runs(refused, finished, tmp_path, mode, damage, words):
  copy = shutil.copytree(finished, tmp_path / 'run')
  if mode == 'train' and 'summary.json' not in words[0]:
    (copy / 'summary.json').unlink()  # or it would be finished
  damage(copy)
  refused([*(SINGLE if mode == 'train' else ()), f'--mode={mode}', f'--workdir={copy}'], words)


def test_what_a_damaged_file_asks_for_brings_it_back(refused, finished, tmp_path):
  copy = shutil.copytree(finished, tmp_path / 'run')
  (copy / 'classes.json').write_text('3')
  refused(['--mode=report', f'--workdir={copy}'], ['delete it and summary.json: then the training command writes both'])
  (copy / 'classes.json').unlink()
  assert run('--mode=report', f'--workdir={copy}') == 0  # with numbers in place of names
  (copy / 'summary.json').unlink()
  assert run(*SINGLE, f'--workdir={copy}', '--config.checkpoint_every=1 steps') == 0
  for name in ('classes.json', 'summary.json'):
    assert (copy / name).read_text() == (finished / name).read_text()


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--mode=predict', '--workdir={run}', ''], ['images: a name is empty; name image files or folders']),
    (
      ['--mode=predict', '--workdir={run}', 'http://a/b.png'],
      ['--images=http://a/b.png: nothing is read from http://'],
    ),
    (
      ['--mode=evaluate', '--workdir=file://{run}'],
      ['--workdir=file://', 'nothing is read from file://; give a'],
    ),
    (['--mode=report', '--workdir={run},http://a/b'], ['--workdir=http://a/b: nothing is read from http://']),
    (['--config=configs/folder.py:http://a/b'], ['http://a/b: nothing is read from http://; give a local path']),
    ([*SINGLE, '--workdir={run}/config.json'], ['config.json cannot be written (it is a file, not a directory)']),
  ],
)
def test_places_that_cannot_be_read_or_written(refused, finished, arguments, words):
  refused([argument.replace('{run}', str(finished)) for argument in arguments], words)


def test_runs_with_class_names_from_macos_resume(tmp_path):
  (tmp_path / 'classes.json').write_text(json.dumps(['e\u0301', 'b']))  # as earlier versions wrote them
  assert run_files.read_classes(tmp_path) == ['\xe9', 'b']


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--mode=evaluate', '--workdir=/nonexistent'], ['no config.json in /nonexistent', 'name the directory of a run']),
    (
      ['--mode=evaluate', '--workdir={run}', '--step=99'],
      ['no checkpoint of step 99', 'which has 2, 3; set step to one'],
    ),
    (
      ['--mode=evaluate', '--workdir={run}', '--step=-1'],
      ['no checkpoint of step -1', 'which has 2, 3; set step to one'],
    ),
    (
      ['--mode=evaluate', '--workdir={run}', SMOKE, '--config.data.name=generated:8x8x1:7:48'],
      ['the classes are not those of the run', "'5', ... 7 in all] now", '... 10 in all] in its classes.json'],
    ),
    *[
      ([f'--mode={mode}', '--workdir={run}', SMOKE, '--config.data.std=["a"]'], ["config.data.std=('a',)", 'like 0.5'])
      for mode in ('train', 'evaluate', 'bits', 'export')
    ],
    (['--mode=report', '--workdir={run},/nonexistent'], ['no config.json in /nonexistent', 'name the directory']),
    (
      [*SINGLE, '--workdir={run}', '--config.seed=5'],
      ['holds a run of another configuration (seed: 0 -> 5); choose another workdir or the same configuration'],
    ),
    (
      [*SINGLE, '--workdir={run}', '--config.duration=9 steps'],
      ["configuration (duration: '3 steps' -> '9 steps')", 'config.allow_config_changes=True'],
    ),
    (['--mode=evaluate', '--workdir=~/no such run'], [f'no config.json in {pathlib.Path.home()}/no such run']),
    ([*SINGLE, '--workdir={run}/config.json'], ['config.json cannot be written', 'choose another one']),
    ([*SINGLE, '--workdir={run}/config.json/deeper'], ['cannot be written (Not a directory)', 'choose another one']),
    ([*SINGLE, '--workdir=/proc/nope'], ['/proc/nope cannot be written', 'choose another one']),
    (
      ['--mode=summarize', '--config=configs/table2_resnet18_cifar100.py', '--workdir={run}/config.json'],
      ['there is no directory', 'train the table first'],
    ),
  ],
)
def test_work_directories(refused, finished, arguments, words):
  refused([argument.replace('{run}', str(finished)) for argument in arguments], words)


# --- Networks to start or to learn from.


@pytest.mark.parametrize(
  'start, words',
  [
    ('/nonexistent', ['config.init_from', 'no checkpoint in /nonexistent', 'name another directory']),
    ('student=', ["config.init_from: 'student='", "'network=DIR,network=DIR'"]),
    ('nope={run}', ["no network 'nope'", 'there are student']),
    ('{run} --config.model.width=0.25', ['config.init_from', 'of another shape', 'config.init_from_ignore']),
    ('/nonexistent.npz', ['there is no file /nonexistent.npz']),
    ('/x/resnet18.pth', ["config.init_from='/x/resnet18.pth' is a pickle of PyTorch", 'convert it: python -c']),
  ],
)
def test_networks_to_start_from(refused, finished, tmp_path, start, words):
  refused(
    [
      *SINGLE,
      f'--workdir={tmp_path}/run',
      *f'--config.init_from={start.replace("{run}", str(finished))}'.split(),
      *(RESNET18[2:] * ('npz' in start)),
    ],
    words,
  )


TEACHERS = {
  'none': (lambda run: shutil.rmtree(run), [], ['config.teacher_workdirs: there is no config.json', 'train one first']),
  'damaged': (text('config.json', '{'), [], ['config.teacher_workdirs', 'config.json is damaged', 'restore it']),
  'unfinished': (
    lambda run: shutil.rmtree(run / 'checkpoints'),
    [],
    ['config.teacher_workdirs: no checkpoint', 'train first'],
  ),
  'other classes': (text('classes.json', '["a"]'), [], ['config.teacher_workdirs', 'other classes', 'the same data']),
  'other images': (lambda run: None, ['--config.data.mean=(0.1,)'], ['config.data.mean=(0.305,)', 'make them equal']),
  'misfit': (wider, [], ['config.teacher_workdirs', 'does not fit', 'use the configuration']),
  'damaged summary': (text('summary.json', '{'), [], ['summary.json is damaged', 'delete it']),
}


@pytest.mark.parametrize('damage, more, words', TEACHERS.values(), ids=TEACHERS)
def test_teachers(refused, finished, tmp_path, damage, more, words):
  copy = shutil.copytree(finished, tmp_path / 'teacher')
  damage(copy)
  refused(
    [SMOKE, '--config.method.name=kd', f'--config.teacher_workdirs=("{copy}",)', f'--workdir={tmp_path}/run', *more],
    words,
  )


def safetensors(header, data=b''):
  header = json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + data


def npz(path, content, name='conv1.weight.npy'):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(name, content)


WEIGHTS = {
  'no archive.npz': b'hello',
  'huge.npz': lambda path: npz(path, npy_header((10**12,), '<f4')),
  'cut.npz': lambda path: npz(path, npy_header((64, 3, 7, 7), '<f4') + bytes(100)),
  'text.npz': lambda path: np.savez(path, **{'conv1.weight': np.array(['a'])}),
  'unknown.npz': lambda path: np.savez(path, nope=np.zeros(3)),
  'no header.safetensors': b'hello',
  'huge header.safetensors': struct.pack('<Q', 2**60) + b'{}',
  'huge.safetensors': safetensors(
    {'conv1.weight': {'dtype': 'F32', 'shape': [10**6, 10**6], 'data_offsets': [0, 4 * 10**12]}}
  ),
  'misfit.safetensors': safetensors({'conv1.weight': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]}}, b'1234'),
}


@pytest.mark.parametrize('name', WEIGHTS)
def test_files_of_weights(refused, tmp_path, name):
  path = tmp_path / name
  path.write_bytes(WEIGHTS[name]) if isinstance(WEIGHTS[name], bytes) else WEIGHTS[name](path)
  refused([*RESNET18, f'--workdir={tmp_path}/run', f'--config.init_from={path}'], [str(path), 'save '])


def test_archive_that_unpacks_to_too_much(refused, tmp_path, monkeypatch):
  monkeypatch.setattr('cmtkd_jax.models.pytorch_weights._LIMIT', 10**6)
  npz(tmp_path / 'bomb.npz', npy_header((10**6,), '<f4') + bytes(4 * 10**6))
  assert (tmp_path / 'bomb.npz').stat().st_size < 10**4
  refused(
    [*RESNET18, f'--workdir={tmp_path}/run', f'--config.init_from={tmp_path}/bomb.npz'],
    ['of arrays', 'save the state_dict again'],
  )


# --- Pipes in place of files: whatever opens one waits for ever.


def into_pipe(path):
  path.unlink(missing_ok=True)
  os.mkfifo(path)


def test_pipes_in_place_of_what_is_written(tmp_path, in_time):
  into_pipe(tmp_path / 'a')
  local_file.write_whole(tmp_path / 'a', 'é')
  assert (tmp_path / 'a').read_text(encoding='utf-8') == 'é'
  into_pipe(tmp_path / f'a.{os.getpid()}.tmp')
  with pytest.raises(UserError, match='a.*.tmp is a pipe, socket or device, not a file; remove it'):
    local_file.write_whole(tmp_path / 'a', b'')


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def half(path, data):
    pathlib.Path(path).write_bytes(data[:1])
    raise OSError(errno.ENOSPC, 'No space left on device')

  (tmp_path / 'a').write_text('before')
  monkeypatch.setattr(type(epath.Path(tmp_path)), 'write_bytes', half)
  with pytest.raises(OSError, match='No space left'):
    local_file.write_whole(tmp_path / 'a', b'after')
  assert [path.name for path in tmp_path.iterdir()] == ['a'] and (tmp_path / 'a').read_text() == 'before'


# Every file of a run but its checkpoints, and the modes that read it.
READ_BY = {
  'config.json': ('train', 'evaluate', 'report', 'predict'),
  'bits.json': ('report',),
  'classes.json': ('train', 'evaluate', 'predict'),
  'records.json': ('train',),
  'metrics.jsonl': ('train', 'report'),
  'summary.json': ('train', 'report'),
  'lock': ('train',),
  'teachers.json': ('train', 'evaluate'),
}


def test_every_file_of_a_run_has_its_place_in_these_tests(finished):
  assert {path.name for path in finished.iterdir()} == {*READ_BY, 'checkpoints'}


@pytest.mark.parametrize('name, mode', [(name, mode) for name, modes in READ_BY.items() for mode in modes])
def test_pipes_in_runs(refused, finished, tmp_path, in_time, name, mode):
  copy = shutil.copytree(finished, tmp_path / 'run')
  if mode == 'train' and name != 'summary.json':
    (copy / 'summary.json').unlink()  # or it would be finished
  if mode == 'train' and name == 'metrics.jsonl':
    shutil.rmtree(copy / 'checkpoints' / '3')  # or there would be nothing to log
  into_pipe(copy / name)
  refused(
    [
      *(SINGLE if mode == 'train' else ()),
      f'--mode={mode}',
      f'--workdir={copy}',
      *(['--images=a.png'] * (mode == 'predict')),
    ],
    [f'{copy / name}'],
    alone=mode != 'train',
  )


def test_pipes_in_checkpoints(finished, tmp_path, in_time):
  folder = finished / 'checkpoints' / '3'
  names = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]
  assert len(names) > 5
  for digests in (True, False):  # without them as in a run of an earlier version
    for number, name in enumerate(names):
      copy = shutil.copytree(finished / 'checkpoints', tmp_path / f'{digests}{number}')
      if not digests:
        (copy / '3' / 'digests.json').unlink()
      into_pipe(copy / '3' / name)
      with pytest.raises(UserError, match=f'{name} is a pipe'):
        checkpoint.load_variables(copy, 3)
      assert checkpoint.load_variables(copy)[2] == 2


def test_pipes_in_place_of_event_files(finished, tmp_path, in_time):
  copy = shutil.copytree(finished, tmp_path / 'run')
  into_pipe(copy / 'events.out.tfevents.1')
  with pytest.raises(UserError, match='tfevents.1 cannot be read .it is a pipe.*; remove it'):
    metric_log.MetricLog(copy, 2)


def test_pipes_in_place_of_exported_files(refused, finished, tmp_path, in_time):
  exported = export.from_run(finished)
  formats = [name for name, found in export.FORMATS.items() if not found.missing() and name != 'onnx_qlinear']
  files = [export.FORMATS[name].file for name in formats if export.FORMATS[name].read]
  export.write(exported, tmp_path / 'whole', formats)
  for file in files:
    for pipe in (file, 'manifest.json'):
      copy = shutil.copytree(tmp_path / 'whole', tmp_path / f'{file} {pipe}')
      into_pipe(copy / pipe)
      refused(['--mode=predict', f'--workdir={copy / file}', '--images=a.png'], [f'{copy / pipe}', 'it is a pipe'])
  for name in formats:
    folder = tmp_path / f'new {name}'
    folder.mkdir()
    into_pipe(folder / export.FORMATS[name].file)
    with pytest.raises(UserError, match=f'{export.FORMATS[name].file} is a pipe.*; remove it'):
      export.write(exported, folder, [name])


def pipe_of_array(name):
  def arguments(folder):
    option = npy(folder / 'data')
    into_pipe(folder / 'data' / f'{name}.npy')
    return option, f'{name}.npy'

  return arguments


def pipe_of_start(name):
  def arguments(folder):
    into_pipe(folder / name)
    return f'--config.init_from={folder / name}', name

  return arguments


def pipe_of_teacher(name):
  def arguments(folder):
    (folder / 'teacher').mkdir()
    into_pipe(folder / 'teacher' / name)
    return f'--config.teacher_workdirs=("{folder / "teacher"}",)', name

  return arguments


def pipe_of_image(folder):
  images(folder / 'data')
  into_pipe(folder / 'data' / 'train' / 'ant' / '0.png')
  return f'--config.data.name=folder:{folder}/data', '0.png'


def pipe_of_annotations(folder):
  images(folder / 'data')
  (folder / 'data' / 'val').mkdir()
  into_pipe(folder / 'data' / 'val' / 'val_annotations.txt')
  return f'--config.data.name=folder:{folder}/data', 'val_annotations.txt'


def pipe_of_config(folder):
  into_pipe(folder / 'my_config.py')
  return f'--config={folder}/my_config.py', 'my_config.py'


def pipe_of_another_config(folder):
  into_pipe(folder / 'other.py')
  (folder / 'my_config.py').write_text(
    "from cmtkd_jax import config\n\n\ndef get_config():\n  return config.load_config(__file__, 'other')\n"
  )
  return f'--config={folder}/my_config.py', 'other.py is a pipe'


GIVEN = {
  **{
    f'{name}.npy': pipe_of_array(name)
    for name in ('train_images', 'train_labels', 'test_images', 'test_labels', 'class_names')
  },
  'weights.npz': pipe_of_start('weights.npz'),
  'weights.safetensors': pipe_of_start('weights.safetensors'),
  'weights.pth': pipe_of_start('weights.pth'),
  'a run to start from': pipe_of_start('run'),
  'config.json of a teacher': pipe_of_teacher('config.json'),
  'image': pipe_of_image,
  'val_annotations.txt': pipe_of_annotations,
  'config file': pipe_of_config,
  'load_config of a config file': pipe_of_another_config,
}


@pytest.mark.parametrize('name', GIVEN)
def test_pipes_that_users_give(refused, tmp_path, in_time, name):
  option, word = GIVEN[name](tmp_path)
  refused(
    [
      *(RESNET18 if name.startswith('weights') else [SMOKE] if 'teacher' in name else SINGLE),
      *(['--config.method.name=kd'] * ('teacher' in name)),
      f'--workdir={tmp_path}/new',
      option,
    ],
    [word],
  )


def test_files_are_opened_only_after_a_look_at_what_they_are():
  """By functions of `local_file`; the exceptions check by themselves, or open what this process has made."""
  allowed = {
    'local_file.py': 1,
    'silencers.py': 1,
    'output.py': 1,
    'standard_error.py': 1,  # the stream of this process
    'distributed.py': 1,  # the null device
    'lock.py': 1,  # the lock, without waiting
    'metric_log.py': 1,
    'checksums.py': 2,
    'pytorch_weights.py': 3,
    'manifest.py': 1,
    'tfrecord.py': 3,
    'image_file.py': 1,
    'base.py': 1,
    'npy.py': 4,
    'folder.py': 1,
    'variants.py': 1,
  }
  found = collections.Counter()
  for path in (ROOT / 'cmtkd_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if (
          called.split('.')[-1] in ('open', 'read_text', 'load_file', 'run_path')
          or called == 'np.load'
          or (called.endswith('.read_bytes') and not called.startswith('local_file.'))
        ):
          found[path.name] += 1
  assert found == allowed


# --- The command itself, and its code.


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/nope.py'], ['there is no file configs/nope.py']),
    ([SMOKE, '--config.method.cmtkd.gama=1'], ['config.method.cmtkd.gama', 'alpha, beta']),
    ([SMOKE, '--config.duration=5 weeks'], ['config.duration', 'epochs']),
    (
      [SMOKE, '--config.data.name=folder:/nonexistent'],
      ['there is no folder /nonexistent;', 'a folder of images for each class'],
    ),
    (['--mode=evaluate', '--workdir=/nonexistent'], ['/nonexistent', 'name the directory of a run']),
  ],
)
def test_the_command(arguments, words, tmp_path):
  result = subprocess.run(
    [sys.executable, '-m', 'cmtkd_jax.main', f'--workdir={tmp_path}/run', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2 and not result.stdout
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1
  for word in words:
    assert word in result.stderr


@pytest.mark.parametrize(
  'error, words',
  [
    (ImportError('Please install gcsfs to access Google Storage'), ['Please install gcsfs', 'local path']),
    (OSError('403: no access\nto bkt'), ['cannot be reached (OSError: 403: no access to bkt)', 'credentials']),
  ],
)
def test_object_storage_that_cannot_be_reached(refused, tmp_path, monkeypatch, error, words):
  def unreachable(path):
    raise error

  monkeypatch.setattr(epath.Path('gs://bkt').__class__, 'exists', unreachable)
  refused([SMOKE, '--workdir=gs://bkt/a'], ['--workdir=gs://bkt/a', *words])
  refused([SMOKE, f'--workdir={tmp_path}', '--config.data.dir=gs://bkt/b'], ['config.data.dir=gs://bkt/b', *words])


def test_names_of_users_cannot_rewrite_a_terminal_or_a_table():
  assert text_table.printable('a\x1b[2Jb\nc\u202ed é') == 'a\\x1b[2Jb\\nc\\u202ed é'
  assert text_table.lines(['x'], [['\x07y']]) == ['x', '\\x07y']
  row = {'title': '<b>x</b>|*y*\n', 'bits': '2/2', 'published': (), 'last': None, 'best': None, 'difference': None}
  line = table_text.markdown('a|b', [row | {'split': 'test', 'seeds': [], 'note': ''}]).splitlines()
  assert line[0] == r'**a\|b**' and line[4].startswith(r'| \<b\>x\</b\>\|\*y\*\\n | 2/2 |')


def test_an_error_is_one_short_line_whatever_it_quotes():
  assert str(UserError('a\x1b[2J\nb \ud800')) == r'a\x1b[2J\nb \ud800'
  line = str(UserError(f'config.seed={"x" * 10**5!r} is not a number; give one'))
  assert len(line) <= 1000 and line.startswith("config.seed='x") and line.endswith('is not a number; give one')


def test_checking_a_configuration_is_quick():
  config = config_lib.default()
  config_lib.check(config)
  begin = time.process_time()
  for _ in range(10):
    config_lib.check(config)
  assert (time.process_time() - begin) / 10 < 0.01


def test_no_code_runs_data():
  """Nothing unpickles or evaluates; config files, which are Python that the user names, are the one exception."""
  for path in (ROOT / 'cmtkd_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name.split('.')[0] for alias in node.names} | {str(getattr(node, 'module', '')).split('.')[0]}
        allowed = {'variants.py': {'runpy'}, 'worker_pool.py': {'pickle'}}.get(path.name, ())  # its own
        assert not names - set(allowed) & {
          'pickle',
          'marshal',
          'shelve',
          'dill',
          'cloudpickle',
          'joblib',
          'yaml',
          'runpy',
        }
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        assert called not in ('eval', 'exec', 'compile', '__import__', 'torch.load'), (path, node.lineno)
        if called == 'np.load':
          assert 'allow_pickle=False' in ast.unparse(node), (path, node.lineno)
