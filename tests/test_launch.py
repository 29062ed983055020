"""The launch scripts: shellcheck, where it is installed; the Kubernetes file against its schema; Table 2, rehearsed."""

import hashlib
import importlib.util
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import yaml

from cmtkd_jax.data.sources import npy
from tests import compiling

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / 'launch'


@pytest.mark.e2e
@pytest.mark.parametrize('script', [*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'], ids=lambda path: path.name)
def test_scripts_parse_and_pass_shellcheck(script):
  subprocess.run(['bash', '-n', script], check=True)
  if shellcheck := shutil.which('shellcheck'):
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_pods_of_the_job_set_find_each_other():
  """The number of pods is the same wherever it stands, and the coordinator is the first of them."""
  job_set = yaml.safe_load((LAUNCH / 'k8s_jobset.yaml').read_text())
  assert (job_set['apiVersion'], job_set['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (job,) = job_set['spec']['replicatedJobs']
  spec = job['template']['spec']
  (container,) = spec['template']['spec']['containers']
  variables = {entry['name']: entry.get('value') for entry in container['env']}
  assert spec['completionMode'] == 'Indexed' and job['replicas'] == 1
  assert spec['parallelism'] == spec['completions'] == int(variables['JAX_NUM_PROCESSES'])
  name = job_set['metadata']['name']
  assert variables['JAX_COORDINATOR_ADDRESS'].startswith(f'{name}-{job["name"]}-0-0.{name}:')
  mounts = {mount['name'] for mount in container['volumeMounts']}
  assert mounts == {volume['name'] for volume in spec['template']['spec']['volumes']}
  assert container['command'][:3] == ['python', '-m', 'cmtkd_jax.main']


# Fields of a JobSet down to the Job in it: jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset, v1alpha2.
JOB_SET = {'apiVersion', 'kind', 'metadata', 'spec'}
SPEC = {
  'coordinator',
  'failurePolicy',
  'managedBy',
  'network',
  'replicatedJobs',
  'startupPolicy',
  'successPolicy',
  'suspend',
  'ttlSecondsAfterFinished',
}
REPLICATED_JOB = {'dependsOn', 'groupName', 'name', 'replicas', 'template'}
FAILURE_POLICY = {'maxRestarts', 'restartStrategy', 'rules'}


def test_job_set_follows_its_schema():
  models = pytest.importorskip('kubernetes.client', reason='its models are the schema')
  if not hasattr(models.V1JobTemplateSpec, 'model_validate'):
    pytest.skip('kubernetes is older than its pydantic models')
  job_set = yaml.safe_load((LAUNCH / 'k8s_jobset.yaml').read_text())
  spec = job_set['spec']
  assert job_set.keys() == JOB_SET and spec.keys() <= SPEC and spec['failurePolicy'].keys() <= FAILURE_POLICY
  assert type(spec['failurePolicy']['maxRestarts']) is int
  for job in spec['replicatedJobs']:
    assert {'name', 'template'} <= job.keys() <= REPLICATED_JOB and type(job['replicas']) is int
    models.V1JobTemplateSpec.model_validate(job['template'], strict=True, extra='forbid')


@pytest.mark.e2e
def test_several_gpus_where_there_are_none(tmp_path):
  """One line that says what to do instead, since a GPU each is what the script is for."""
  (tmp_path / 'dirname').symlink_to(shutil.which('dirname'))
  run = subprocess.run(
    [shutil.which('bash'), str(LAUNCH / 'multi_gpu.sh'), '--config=x'],
    env={'PATH': str(tmp_path), 'HOME': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 2
  assert run.stderr == ('error: there is no nvidia-smi to count the GPUs; set GPUS=N, or use launch/single_host.sh\n')


@pytest.fixture
def programs(tmp_path):
  """Function that puts programs, `{name: script}`, before those of the machine; returns an environment of them."""
  folder = tmp_path / 'programs'
  folder.mkdir()

  def put(**scripts):
    for name, script in scripts.items():
      (folder / name).write_text(f'#!/bin/bash\n{script}\n')
      (folder / name).chmod(0o755)
    return {'PATH': f'{folder}:{os.environ["PATH"]}', 'HOME': str(tmp_path)}

  return put


def lines_of(*command, **more):
  run = subprocess.run(command, capture_output=True, text=True, check=False, **more)
  assert run.returncode == 0, run.stderr
  return run.stdout.splitlines()


@pytest.mark.e2e
@pytest.mark.parametrize('script, before', [('single_host', '-m cmtkd_jax.main'), ('multi_gpu', '--gpus --')])
def test_paths_are_those_of_the_folder_that_the_user_is_in(programs, tmp_path, script, before):
  environment = programs(python='echo "$PWD"; echo "$PYTHONPATH"; echo "$@"') | {'PYTHONPATH': '/mine', 'GPUS': '2'}
  where, path, arguments = lines_of(
    LAUNCH / f'{script}.sh', '--config=mine.py', '--workdir=runs/a b', env=environment, cwd=tmp_path
  )
  assert where == str(tmp_path) and arguments.endswith(f'{before} --config=mine.py --workdir=runs/a b')
  if script == 'single_host':
    assert path == f'{LAUNCH.parent}:/mine'
  else:
    assert arguments.startswith(f'{LAUNCH}/local_processes.py --processes=2 ')


@pytest.mark.e2e
@pytest.mark.parametrize(
  'variables, processes',
  [
    ({}, 3),
    ({'GPUS': '2'}, 2),
    ({'CUDA_VISIBLE_DEVICES': '4,5'}, 2),
    ({'CUDA_VISIBLE_DEVICES': 'GPU-a1b2,GPU-c3d4', 'GPUS': '1'}, 1),
    ({'CUDA_VISIBLE_DEVICES': ''}, 0),  # a scheduler that gives none
  ],
)
def test_gpus_are_those_that_a_scheduler_gives(programs, variables, processes):
  listing = 'echo 0; echo 1; echo 2'
  environment = programs(python='echo "$2"', **{'nvidia-smi': listing}) | variables
  assert lines_of(LAUNCH / 'multi_gpu.sh', env=environment) == [f'--processes={processes}']


def load(name):
  spec = importlib.util.spec_from_file_location(name, LAUNCH / f'{name}.py')
  spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
  return module


def test_each_process_has_a_gpu_of_its_own(monkeypatch, capsys):
  module, started = load('local_processes'), []
  monkeypatch.setattr(module.subprocess, 'Popen', lambda command, **more: started.append(more))

  def gpus(processes, visible=None):
    started.clear()
    environment = {'PYTHONPATH': '/mine'} | ({} if visible is None else {'CUDA_VISIBLE_DEVICES': visible})
    for _, output in module.start((), processes, gpus=True, environment=environment):
      if output:
        output.close()
    assert all(more['env']['PYTHONPATH'] == f'{LAUNCH.parent}:/mine' and 'cwd' not in more for more in started)
    return [more['env']['CUDA_VISIBLE_DEVICES'] for more in started]

  assert gpus(2) == ['0', '1'] and gpus(2, '6,3,1') == ['6', '3'] and gpus(1, 'GPU-a1b2') == ['GPU-a1b2']
  for processes, visible, words in ((3, '6,3', '6,3 has 2'), (0, None, 'this machine has 0'), (1, '', ' has 0')):
    with pytest.raises(SystemExit, match='2'):
      gpus(processes, visible)
    error = capsys.readouterr().err
    assert error.startswith(f'error: {processes} processes need a GPU each') and error.count('\n') == 1
    assert words in error and not started


@pytest.mark.e2e
@pytest.mark.parametrize('script', ['multi_gpu.sh', 'tpu_pod.sh'])
def test_scripts_explain_themselves(script):
  run = subprocess.run([LAUNCH / script, '--help'], capture_output=True, text=True, check=True)
  assert run.stdout.startswith('Trains on ') and f'launch/{script} ' in run.stdout and 'set -' not in run.stdout


def test_a_run_has_a_process():
  command = [sys.executable, LAUNCH / 'local_processes.py', '--processes=0', '--', '--mode=config']
  run = subprocess.run(command, capture_output=True, text=True, check=False)
  assert run.returncode == 2 and '--processes must be at least 1' in run.stderr


def test_hosts_of_a_pod_get_the_files_as_they_are(programs, tmp_path):
  """Not those of the last commit, and none of an earlier copy."""
  checkout, hosts = tmp_path / 'checkout', tmp_path / 'hosts'
  (checkout / 'launch').mkdir(parents=True), (checkout / 'cmtkd_jax').mkdir(), (hosts / 'cmtkd_jax').mkdir(parents=True)
  shutil.copy(LAUNCH / 'tpu_pod.sh', checkout / 'launch')
  for name in ('changed', 'gone', 'same'):
    (checkout / 'cmtkd_jax' / f'{name}.py').write_text('before')
  git = lambda *words: subprocess.run(
    ['git', '-c', 'user.name=a', '-c', 'user.email=a', *words], cwd=checkout, check=True
  )
  git('init', '-q'), git('add', '.'), git('commit', '-q', '-m', 'a')
  # scp copies to the hosts; ssh runs there up to the installation.
  gcloud = f"""
if [ "$4" = scp ]; then cp "$5" '{hosts}/cmtkd_jax.tar.gz'; exit; fi
command="${{!#}}"; cd '{hosts}'; bash -c "${{command#--command=}}" """
  environment = programs(
    gcloud=gcloud, python3='mkdir -p .venv/bin; cp /bin/echo .venv/bin/pip; cp /bin/echo .venv/bin/python'
  )
  start = [checkout / 'launch' / 'tpu_pod.sh', 'name', 'zone', '--workdir=gs://a b']
  shown = lambda: {path.name: path.read_text() for path in (hosts / 'cmtkd_jax' / 'cmtkd_jax').iterdir()}
  lines_of(*start, env=environment)
  assert shown() == {'changed.py': 'before', 'gone.py': 'before', 'same.py': 'before'}
  (checkout / 'cmtkd_jax' / 'changed.py').write_text('after')
  (checkout / 'cmtkd_jax' / 'gone.py').unlink()
  (checkout / 'cmtkd_jax' / 'added.py').write_text('new')
  git('add', 'cmtkd_jax/added.py')
  assert lines_of(*start, env=environment)[-1] == '-m cmtkd_jax.main --workdir=gs://a b'
  assert shown() == {'changed.py': 'after', 'added.py': 'new', 'same.py': 'before'}
  assert (hosts / 'cmtkd_jax' / '.venv').is_dir()
  assert not subprocess.run(['git', 'stash', 'list'], cwd=checkout, capture_output=True, check=True).stdout


# --- Table 2. In place of the command most tests have a program that leaves the files of a run.

STAND_IN = """#!{python} -S
import json, os, pathlib, re, signal, sys, time
calls = pathlib.Path(os.environ['CALLS'])
if '-c' in sys.argv:
  print(50000)
  sys.exit()
line = ' '.join(sys.argv[1:])
with calls.open('a') as file:
  print(line, file=file)
value = lambda flag: re.findall(r'--' + flag + r'=(\\S+)', line)[-1]
if 'train_step.py' in line:
  for suffix in ('json', 'md'):
    pathlib.Path(value('out')).with_suffix('.' + suffix).write_text('speed')
  sys.exit()
work = pathlib.Path(value('workdir'))
if '--mode=summarize' in line:
  print('rows')
  sys.exit()
row, seed = value('config').split(':')[1], value('config.table.seeds').strip('(,)')
if row == 'single8':
  print('not run: config.data.name is broken' + chr(10) + 'the table')
  sys.exit()
run = work / row / ('seed' + seed)
run.mkdir(parents=True, exist_ok=True)
speed = 1000 if row == 'cmtkd' else 1e6
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
metrics = {{'step': 50, 'time': time.time() + 2, 'train/epoch': 1.0, 'perf/images_per_second': speed}}
(run / 'metrics.jsonl').write_text(json.dumps(metrics) + chr(10))
time.sleep(float(os.environ.get('SECONDS_OF_' + row, '0')))
(run / 'summary.json').write_text('{{}}')
"""


@pytest.fixture
def table2(tmp_path):
  """Function that starts `launch/table2.sh` with options: (status, stdout, stderr); `.calls()` what it called since."""
  data, programs = tmp_path / 'data', tmp_path / 'programs'
  data.mkdir(), programs.mkdir()
  for file in ('train_images', 'train_labels', 'test_images', 'test_labels'):
    (data / f'{file}.npy').touch()
  (programs / 'python').write_text(STAND_IN.format(python=sys.executable))
  (programs / 'python').chmod(0o755)
  log = tmp_path / 'calls'

  def start(*options, **variables):
    log.write_text('')
    paths = {'PATH': f'{programs}:{os.environ["PATH"]}', 'CALLS': str(log), 'HOME': str(tmp_path)}
    run = subprocess.run(
      [LAUNCH / 'table2.sh', f'--data=npy:{data}', f'--out={tmp_path / "out"}', *options],
      env=paths | variables,
      capture_output=True,
      text=True,
      check=False,
    )
    return run.returncode, run.stdout, run.stderr

  def calls():
    words = [line.split() for line in log.read_text().splitlines()]
    return [
      ' '.join(w.rpartition('=')[2].rpartition(':')[2] for w in line if w.startswith(('--config=', '--config.table')))
      for line in words
    ]

  start.calls = calls
  return start


@pytest.mark.e2e
def test_table2_goes_on_where_it_stopped(table2, tmp_path):
  some = ('--rows=full_precision,cmtkd', '--seeds=3', '--jobs=2', '--epochs=90')
  out = tmp_path / 'out'
  # 90 epochs of 50,000 images, but for the first, at 1,000 images a second, and a tenth.
  status, said, _ = table2(*some, '--minutes=60', SECONDS_OF_cmtkd='60')
  assert status == 0 and 'stopped at cmtkd: about 82 min more would be past --minutes=60' in said
  benchmark, *runs = table2.calls()
  table = [f'{LAUNCH.parent}/configs/table2_resnet18_cifar100.py (0,1,2,)'] * 3  # as Markdown, as JSON, and printed
  assert benchmark == '' and runs[-3:] == table
  runs = runs[:-3]
  assert sorted(runs[:2]) == ['full_precision (0,)', 'full_precision (1,)'] and runs[2] == 'full_precision (2,)'
  assert sorted(runs[3:]) == ['cmtkd (0,)', 'cmtkd (1,)']
  found = {str(path.relative_to(out)) for path in out.rglob('*') if path.is_file() and 'runs' not in path.parts}
  seeds = {f'full_precision/seed{seed}/{file}' for seed in range(3) for file in ('summary.json', 'metrics.jsonl')}
  assert found == seeds | {'arguments.txt', 'table.md', 'table.json', 'train_step.md', 'train_step.json'}

  status, said, _ = table2(*some)
  assert status == 0 and 'cmtkd, seeds 0 1: done' in said
  assert sorted(table2.calls()[:2]) == ['cmtkd (0,)', 'cmtkd (1,)'] and table2.calls()[2] == 'cmtkd (2,)'
  assert (out / 'cmtkd' / 'seed2' / 'summary.json').exists()
  assert table2(*some)[0] == 0 and table2.calls() == table
  flags = (out / 'arguments.txt').read_text()
  assert '--config.duration=90 epochs --config.optimizer.decay_at=37.5, 75 epochs' in flags


@pytest.mark.e2e
def test_table2_says_what_is_wrong(table2, tmp_path):
  def fails(words, *options):
    status, _, error = table2('--benchmark=', *options)
    assert status == 2 and error.startswith('error: ') and error.count('\n') == 1 and words in error, error

  fails('single8, seed 0 did not end: not run: config.data.name is broken', '--rows=single8', '--seeds=1')
  fails('holds a table of other arguments', '--epochs=3')
  fails('--jobs=0 is not from 1 to 999999', '--jobs=0')
  fails('--minutes=1.5 is not from 1 to 999999', '--minutes=1.5')
  fails('--row=kd is not an option', '--row=kd')
  fails('--rows: single3 is not one of full_precision,single2,', '--rows=kd,single3')
  (tmp_path / 'file').touch()
  fails(f'--out={tmp_path}/file cannot be made', f'--out={tmp_path}/file')
  fails(f'--workdir={tmp_path}/file cannot be made', f'--workdir={tmp_path}/file', f'--out={tmp_path}/other')
  fails('--data=digits is not npy:DIR', '--data=digits')
  fails(f'there is no {tmp_path}/train_images.npy', f'--data=npy:{tmp_path}')
  assert table2('--help')[1].startswith('Table 2 of the paper')


@pytest.mark.e2e
def test_table2_rehearsed(tmp_path):
  """One row with the command itself, on a CPU and on tiny images."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 64), ('test', 8)):
    np.save(tmp_path / f'{split}_images.npy', rng.integers(0, 256, (count, 8, 8, 3), np.uint8))
    np.save(tmp_path / f'{split}_labels.npy', np.arange(count) % 4)
  fields = ('model.name=resnet8', 'model.width=0.0625', 'batch_size=8', 'eval_batch_size=8', 'dtype=float32')
  fields += ('data.image_size=8', 'data.pad=1', 'tensorboard=False', 'eval_every=', 'checkpoint_every=')
  out, programs = tmp_path / 'out', tmp_path / 'programs'
  programs.mkdir()
  (programs / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  (programs / 'python').chmod(0o755)
  options = (f'--data=npy:{tmp_path}', f'--out={out}', '--rows=single2', '--seeds=1', '--epochs=12', '--benchmark=')
  run = subprocess.run(
    [LAUNCH / 'table2.sh', *options, '--', *(f'--config.{field}' for field in fields)],
    env=os.environ | compiling.QUICK | {'PATH': f'{programs}:{os.environ["PATH"]}'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  assert 'single2, seeds 0: about 1 min by its first steps' in run.stdout and 'single2, seeds 0: done' in run.stdout
  summary = json.loads((out / 'single2' / 'seed0' / 'summary.json').read_text())
  assert summary['epochs'] == 12 and summary['config']['optimizer']['decay_at'] == '5, 10 epochs'
  steps = [json.loads(line)['step'] for line in (out / 'single2' / 'seed0' / 'metrics.jsonl').read_text().splitlines()]
  assert 50 in steps and steps[-1] == 96
  # The whole table, with the rows that are not run.
  assert '| KD from full precision | 2/2 |' in (out / 'table.md').read_text()
  lines = {line['run']: line['seeds'] for line in json.loads((out / 'table.json').read_text())['lines']}
  assert lines['single2'] == [0] and lines['kd'] == []


# --- CIFAR's archives.


class Python2Pickler(pickle._Pickler):
  """Pickles as Python 2 and the NumPy of its time: all text is bytes, truth values are numbers."""

  def save_text(self, value):
    value = value.encode() if isinstance(value, str) else value
    self.write(b'T' + struct.pack('<i', len(value)) + value)

  dispatch = pickle._Pickler.dispatch | {
    bytes: save_text,
    str: save_text,
    bool: lambda self, value: self.save(int(value)),
  }


def archive_of(path, members):
  """Writes the archive with the dicts `{name: dict}`; returns its MD5."""
  with tarfile.open(path, 'w:gz') as archive:
    for name, member in members.items():
      Python2Pickler(file := io.BytesIO(), protocol=2).dump(member)
      content = file.getvalue().replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
      (entry := tarfile.TarInfo(name)).size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def prepare_cifar():
  return load('prepare_cifar')


def test_the_first_training_images_of_each_class(prepare_cifar):
  labels = np.array([2, 0, 0, 1, 2, 0, 1, 2], np.int32)
  found = dict(
    class_names=np.array(['a', 'b', 'c']), train_labels=labels, train_images=np.arange(8), test_labels=labels
  )
  kept = prepare_cifar.keep_images(found, 2)
  assert kept['train_images'].tolist() == [0, 1, 2, 3, 4, 6] and kept['train_labels'].tolist() == [2, 0, 0, 1, 2, 1]
  assert kept['test_labels'] is labels and kept['class_names'] is found['class_names']
  for wrong in (0, 3):
    with pytest.raises(SystemExit, match=f'^error: --images={wrong}: a class has only 2 training images; give'):
      prepare_cifar.keep_images(found, wrong)


@pytest.mark.parametrize('classes', [10, 100])
def test_cifar_becomes_npy_files(prepare_cifar, tmp_path, capsys, classes):
  rows = np.random.default_rng(0).integers(0, 256, (25, 3072), np.uint8)
  labels = [k * 7 % classes for k in range(25)]
  names = [f'class {k}' for k in range(classes)]
  if classes == 100:
    batch = lambda part: {
      'data': rows[part],
      'fine_labels': labels[part],
      'coarse_labels': [0] * 25,
      'filenames': ['a'],
    }
    members = {'train': batch(slice(20)), 'test': batch(slice(20, 25)), 'meta': {'fine_label_names': names}}
  else:
    batch = lambda part: {'data': rows[part], 'labels': labels[part], 'batch_label': 'training batch'}
    members = {f'data_batch_{k}': batch(slice(4 * k - 4, 4 * k)) for k in range(1, 6)}
    members |= {'test_batch': batch(slice(20, 25)), 'batches.meta': {'label_names': names, 'num_vis': 3072}}
  (known,) = (digest for digest, layout in prepare_cifar.ARCHIVES.items() if f'cifar-{classes}-' in layout[0])
  layout = prepare_cifar.ARCHIVES.pop(known)
  path, folder = tmp_path / 'cifar.tar.gz', tmp_path / 'new' / 'cifar'
  digest = archive_of(path, {f'{layout[0]}/{name}': member for name, member in members.items()})
  prepare_cifar.ARCHIVES[digest] = layout

  prepare_cifar.main([str(path), str(folder)])
  assert capsys.readouterr().out == f'train with --config.data.name=npy:{folder}\n'
  splits = npy.read(str(folder), 3)
  assert splits.class_names == tuple(names)
  train, test = (np.load(folder / f'{split}_images.npy') for split in ('train', 'test'))
  assert train.shape == (20, 32, 32, 3) and test.shape == (5, 32, 32, 3) and train.dtype == test.dtype == np.uint8
  assert train[7, 2, 5].tolist() == [rows[7, plane * 1024 + 2 * 32 + 5] for plane in range(3)]
  assert test[4, 31, 0].tolist() == [rows[24, plane * 1024 + 31 * 32] for plane in range(3)]
  assert np.load(folder / 'train_labels.npy').tolist() == labels[:20]
  assert np.load(folder / 'test_labels.npy').tolist() == labels[20:]

  # The first classes only, with their names.
  fewer = tmp_path / 'fewer classes'
  prepare_cifar.main([str(path), str(fewer), f'--classes={classes // 2}'])
  assert capsys.readouterr().out == f"train with --config.data.name='npy:{fewer}'\n"
  assert npy.read(str(fewer), 3).class_names == tuple(names[: classes // 2])
  for split, part in (('train', range(20)), ('test', range(20, 25))):
    kept = [k for k in part if labels[k] < classes // 2]
    assert kept and np.load(fewer / f'{split}_labels.npy').tolist() == [labels[k] for k in kept]
    assert np.load(fewer / f'{split}_images.npy')[:, 0, 0, 0].tolist() == [rows[k, 0] for k in kept]
  if classes == 10:  # of 100 classes, these images show too few
    prepare_cifar.main([str(path), str(tmp_path / 'one each'), '--classes=2', '--images=1'])
    assert np.load(tmp_path / 'one each' / 'train_labels.npy').tolist() == [0, 1]
    assert np.load(tmp_path / 'one each' / 'test_labels.npy').tolist() == [0, 1]
  for wrong in (1, classes + 1):
    with pytest.raises(SystemExit, match=f'^error: --classes={wrong}: the archive has {classes} classes; give a'):
      prepare_cifar.main([str(path), str(tmp_path / 'none'), f'--classes={wrong}'])
  assert not (tmp_path / 'none').exists()
  capsys.readouterr()

  # Once more it changes nothing; in a folder of other data it leaves all as it was.
  (folder / 'notes.txt').write_text('mine')
  prepare_cifar.main([str(path), str(folder)])
  np.save(folder / 'test_labels.npy', np.zeros(3, int))
  (folder / 'train_images.npy').unlink()
  with pytest.raises(SystemExit, match=r'^error: \S+/test_labels.npy: holds other data; name another folder'):
    prepare_cifar.main([str(path), str(folder)])
  left = {'class_names.npy', 'notes.txt', 'test_images.npy', 'test_labels.npy', 'train_labels.npy'}
  assert {file.name for file in folder.iterdir()} == left and len(np.load(folder / 'test_labels.npy')) == 3
  with pytest.raises(SystemExit, match=r'^error: .*notes.txt.*; name a folder that can be written'):
    prepare_cifar.main([str(path), str(folder / 'notes.txt')])


@pytest.mark.e2e
def test_only_the_archives_of_cifar_are_opened(tmp_path):
  digest = archive_of(tmp_path / 'cifar-100-python.tar.gz', {'cifar-100-python/train': {}})
  for name, words in (('cifar-100-python.tar.gz', f'(its MD5 is {digest})'), ('none', 'No such file or directory')):
    command = [sys.executable, LAUNCH / 'prepare_cifar.py', name, 'out']
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stderr.count('\n') == 1 and run.stderr.startswith(f'error: {name}: ')
    assert words in run.stderr and 'https://www.cs.toronto.edu/~kriz/cifar.html' in run.stderr
  assert not (tmp_path / 'out').exists()
