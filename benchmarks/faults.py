"""Interrupts training in every way, again and again, and compares its end with that of a run that was left alone.

Run: python benchmarks/faults.py --out=benchmarks/results/faults.json [--kills=50 --terms=10 --corruptions=10]

CMT-KD with LSQ on small images, 60 steps, a checkpoint every third step; a quarter of an hour on 2 cores. Every process
is the command that users start. Half of the kills wait for a save to begin. Then each of `RECIPES`, which keep other
state from step to step, is killed once and resumed. A full disk is a tmpfs where this may be mounted (root), elsewhere
a process whose files may not grow (RLIMIT_FSIZE). The exit status is 1 if any case failed.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

from cmtkd_jax.runs import checkpoint, metric_log, run_files, run_summary
from cmtkd_jax.runtime.progress import format_duration

STEPS, CHECKPOINT_EVERY = 60, 3
COMMAND = (
  '--config=configs/digits_resnet8.py:smoke',
  '--config.quantizer.name=lsq',
  f'--config.duration={STEPS} steps',
  '--config.eval_every=20 steps',
  f'--config.checkpoint_every={CHECKPOINT_EVERY} steps',
)
# What must also survive a kill: fitted bases, a held-out slice, sampled bit-widths, half of a batch's gradients, the
# place in a stream of several worker processes.
RECIPES = {
  'LQ-Nets, bases fitted at each step': ('--config.quantizer.name=lq_nets',),
  'KDCL, general ensemble on held-out images': (
    '--config.method.name=kdcl',
    '--config.method.kdcl.ensemble=general',
    '--config.data.minival=0.2',
  ),
  'SPEQ, bit-widths sampled at each step': ('--config.method.name=speq', '--config.quantizer.name=hwgq'),
  'two micro-batches a step': ('--config.grad_accum_steps=2',),
  'streamed folder, 2 worker processes, a broken image': (
    '--config.data.name=folder:{images}',
    '--config.data.on_device=no',
    '--config.data.workers=processes',
    '--config.data.num_workers=2',
    '--config.data.max_corrupt_fraction=0.05',
  ),
}
TIMES = ('time', 'perf/images_per_second', 'perf/data_wait')  # what differs between equal runs
DAMAGES = ('truncated', 'flipped', 'deleted', 'emptied')
LIMIT_SECONDS = 600  # of one process


class Process:
  """One start of the command; `resumed` is the step that it says it goes on from, known when it has ended."""

  def __init__(self, workdir, cache, changes=()):
    self.workdir, self.before, self.begin, self.born = workdir, newest(workdir), time.monotonic(), time.time()
    environment = os.environ | {
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
      'XLA_FLAGS': '',
    }
    command = [sys.executable, '-m', 'cmtkd_jax.main', *COMMAND, *changes, f'--workdir={workdir}']
    self.popen = subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

  def wait_until(self, condition):
    """Returns whether `condition()` came true before the process ended."""
    while not condition():
      if self.popen.poll() is not None:
        return False
      if time.monotonic() - self.begin > LIMIT_SECONDS:
        raise TimeoutError(f'process {self.popen.pid} in {self.workdir} does not get on')
      time.sleep(0.001)
    return True

  def end(self, number=None):
    """Sends a signal, if any, and waits; returns the exit status."""
    if number is not None:
      self.popen.send_signal(number)
    _, self.stderr = self.popen.communicate(timeout=LIMIT_SECONDS)
    match = re.search(r'^resuming .* at step (\d+)$', self.stderr, re.MULTILINE)
    finished = self.before == STEPS and self.popen.returncode == 0  # there was nothing to resume
    self.resumed = int(match[1]) if match else STEPS if finished else None
    self.started = finished or 'compiled the train step' in self.stderr
    return self.popen.returncode

  def told(self):
    """Its last line, and whether there is a stack trace anywhere."""
    lines = self.stderr.strip().splitlines()
    return (lines[-1] if lines else ''), 'Traceback' in self.stderr


@dataclasses.dataclass
class Case:
  """One fault: what it was, what should come of it, what came."""

  kind: str
  moment: str
  expected: dict
  observed: dict

  @property
  def passed(self):
    """Whether all that is expected was observed."""
    return all(self.observed.get(key) == value for key, value in self.expected.items())


class Campaign:
  """Faults, one after the other, and the run that they are compared with."""

  def __init__(self, options, scratch):
    self.options, self.scratch, self.cases = options, scratch, []
    self.rng = random.Random(options.seed)
    self.begin, self.total = time.monotonic(), options.kills + options.terms + options.corruptions + 4 + len(RECIPES)
    self.pending = []  # cases whose run has not been resumed yet
    self.changes = ()

    print('a run that is left alone', flush=True)
    reference = scratch / 'reference'
    for _ in range(2):  # the first compiles
      shutil.rmtree(reference, ignore_errors=True)
      self.seconds = self.run_alone(reference)
    self.first, self.summary = self.reference, json.loads((reference / run_summary.FILE).read_text())

  def run_alone(self, workdir):
    """Trains without any fault, for later runs to be compared with; returns the seconds it took."""
    process = self.start(workdir)
    if process.end():
      sys.exit(process.stderr)
    self.reference = snapshot(workdir)
    return time.monotonic() - process.begin

  def start(self, workdir):
    """Starts the command in `workdir`."""
    self.last = Process(workdir, self.scratch / 'cache', self.changes)
    return self.last

  def add(self, case):
    """Takes a case, and shows how far the campaign is; what is pending is judged later."""
    self.cases.append(case)
    done = sum(case.kind != 'end of a run' for case in self.cases)
    elapsed = time.monotonic() - self.begin
    eta = format_duration(elapsed / max(done, 1) * (self.total - done))
    print(
      f'{done}/{self.total}  {case.kind}, {case.moment}: '
      f'{"passed" if case.passed or case in self.pending else f"FAILED {case.observed}"}  ETA {eta}',
      flush=True,
    )

  def see(self, process):
    """Fills in, for the faults before this start, the step it went on from."""
    if process.started:
      for case in self.pending:
        case.observed['resumed at'] = process.resumed
        if not case.passed:
          print(f'FAILED: {case}', flush=True)
      self.pending.clear()

  def finish(self, workdir):
    """Lets a run come to its end, and compares it."""
    process = self.start(workdir)
    status = process.end()
    self.see(process)
    self.compare(workdir, status)

  def compare(self, workdir, status):
    """Adds the case that a run which has ended is the one that was left alone."""
    same = snapshot(workdir) if status == 0 else {}
    self.add(
      Case(
        'end of a run',
        workdir.name,
        {'status': 0, **{name: 'equal' for name in self.reference}},
        {
          'status': status,
          **{name: 'equal' if same.get(name) == value else 'different' for name, value in self.reference.items()},
        },
      )
    )

  def interrupt(self, process, moments):
    """Waits for a moment at random; returns its name, None where the process ended before."""
    moment = self.rng.choice(moments)
    if moment == 'in a save':
      seen, wanted = set(), self.rng.randint(1, 4)

      def reached():
        now = saving(process.workdir, process.born)
        seen.update(now)
        return now and len(seen) >= wanted

      delay = self.rng.uniform(0, 0.1)
    elif moment == 'at a step':
      step = (process.before or 0) + self.rng.randint(1, 4 * CHECKPOINT_EVERY)
      reached = lambda: logged_step(process.workdir, process.born) >= min(step, STEPS)
      delay = self.rng.uniform(0, 0.03)
    else:
      until = process.begin + self.rng.uniform(0, 1.2 * self.seconds)
      reached, delay = lambda: time.monotonic() >= until, 0
    if not process.wait_until(reached):
      return None
    time.sleep(delay)
    return moment if process.popen.poll() is None else None

  def interrupted_runs(self, kind, wanted, fault, moments):
    """Runs, one after the other, each interrupted until it ends, until `wanted` faults have happened."""
    done = runs = 0
    while done < wanted:
      runs += 1
      workdir = self.scratch / f'{kind} {runs}'.replace(' ', '_')
      while done < wanted:
        process = self.start(workdir)
        moment = self.interrupt(process, moments)
        if moment is None:
          break
        case = fault(process, moment)
        self.see(process)
        if case is not None:
          done += 1
          self.pending.append(case)
          self.add(case)
      if moment is None:  # it came to its end, or broke down by itself
        status = process.end()
        self.see(process)
        self.compare(workdir, status)
      else:
        self.finish(workdir)

  def kill(self, process, moment):
    """Kills it; what it was writing shows whether that hit a save."""
    process.end(signal.SIGKILL)
    missed = 'right after a save' if moment == 'in a save' else moment
    hit = 'in a save' if saving(process.workdir, process.born) else missed
    return Case(
      'SIGKILL',
      hit,
      {'status': -9, 'resumed at': newest(process.workdir)},
      {'status': process.popen.returncode, 'at step': logged_step(process.workdir)},
    )

  def terminate(self, process, moment):
    """Asks it to stop."""
    status = process.end(signal.SIGTERM)
    if status in (0, -signal.SIGTERM) and newest(process.workdir) == STEPS:  # all was trained, evaluated and saved
      return None
    last, trace = process.told()
    match = re.fullmatch(rf'asked to stop: step (\d+) of {STEPS} is saved; the same command resumes from there', last)
    step = int(match[1]) if match else None
    return Case(
      'SIGTERM',
      moment,
      {'status': 143, 'stack trace': False, 'newest': step, 'resumed at': step},
      {'status': status, 'stack trace': trace, 'newest': newest(process.workdir), 'told': last},
    )

  def corrupt(self, process, moment):
    """Kills, then damages the newest checkpoint; the next start falls back."""
    process.end(signal.SIGKILL)
    complete = steps(process.workdir)
    if len(complete) < 2 or not process.started:
      return None
    kind = DAMAGES[sum(case.kind == 'damaged checkpoint' for case in self.cases) % len(DAMAGES)]
    what = damage(process.workdir / run_files.CHECKPOINTS / str(complete[-1]), kind, self.rng)
    return Case('damaged checkpoint', f'{kind}: {what}', {'resumed at': complete[-2]}, {'newest': complete[-1]})

  def full_disk(self):
    """A disk that fills up at three moments of one run, and one that is full before it starts."""
    with full_disks(self.scratch / 'disk') as (folder, fill, free):
      workdir = folder / 'full_disk'
      for moment in ('at the start', 'at a step', 'in a save', 'at a step'):
        if moment == 'at the start':
          fill(0)
          process = self.start(workdir)
        else:
          process = self.start(workdir)
          if self.interrupt(process, [moment]) is None:
            self.add(Case('full disk', moment, {'interrupted': True}, {'interrupted': False}))
            continue
          fill(self.rng.randrange(50_000), process.popen.pid)
        status = process.end()
        self.see(process)
        last, trace = process.told()
        case = Case(
          'full disk',
          moment,
          {'status': 2, 'one line': True, 'stack trace': False, 'readable': True, 'resumed at': newest(workdir)},
          {
            'status': status,
            'one line': process.stderr.count('error: ') == 1 and last.startswith('error: '),
            'stack trace': trace,
            'told': last.replace(str(folder), 'DISK'),
            'readable': readable(workdir),
          },
        )
        free()
        self.pending.append(case)
        self.add(case)
      self.finish(workdir)

  def recipes(self):
    """Each of `RECIPES` once alone, and once with a kill at a random step."""
    images = self.scratch / 'images'
    write_images(images)
    for number, (name, changes) in enumerate(RECIPES.items()):
      self.changes = [change.format(images=images) for change in changes]
      workdir = self.scratch / f'recipe_{number}'
      self.run_alone(self.scratch / f'recipe_{number}_alone')
      process = self.start(workdir)
      step = self.rng.randint(2 * CHECKPOINT_EVERY, STEPS // 2)
      if not process.wait_until(lambda run=workdir, least=step: logged_step(run) >= least):
        sys.exit(process.stderr)
      process.end(signal.SIGKILL)
      case = Case(
        'SIGKILL and resume',
        name,
        {'status': -9, 'resumed at': newest(workdir)},
        {'status': process.popen.returncode, 'at step': logged_step(workdir)},
      )
      self.pending.append(case)
      self.add(case)
      self.finish(workdir)
    self.changes = ()

  def run(self):
    """All faults; returns the report, a JSON-able dict."""
    options = self.options
    self.interrupted_runs('SIGKILL', options.kills, self.kill, ['in a save', 'in a save', 'at a step', 'at any time'])
    self.interrupted_runs('SIGTERM', options.terms, self.terminate, ['in a save', 'at a step'])
    self.interrupted_runs('damage', options.corruptions, self.corrupt, ['at a step', 'in a save'])
    self.full_disk()
    self.recipes()
    return self.report()

  def report(self):
    counts = collections.Counter(
      (case.kind, case.moment.split(':')[0] if case.kind != 'end of a run' else '') for case in self.cases
    )
    passed = collections.Counter(
      (case.kind, case.moment.split(':')[0] if case.kind != 'end of a run' else '')
      for case in self.cases
      if case.passed
    )
    return {
      'command': f'python {" ".join(sys.argv)}',
      'trains': ' '.join(COMMAND),
      'commit': self.summary['commit'],
      'date': datetime.date.today().isoformat(),
      'hardware': f'{os.cpu_count()} CPU cores, {cpu()}',
      'device': self.summary['device'],
      'python': platform.python_version(),
      'versions': self.summary['versions'],
      'seconds': round(time.monotonic() - self.begin),
      'seed': self.options.seed,
      'reference': self.first,
      'passed': all(case.passed for case in self.cases),
      'table': [
        {'fault': kind, 'moment': moment, 'cases': count, 'passed': passed[kind, moment]}
        for (kind, moment), count in counts.items()
      ],
      'cases': [dataclasses.asdict(case) | {'passed': case.passed} for case in self.cases],
    }


def snapshot(workdir):
  """`{what: digest}` of all that a run ends with: arrays of the last checkpoint, metrics, results."""
  items, _, step = checkpoint._read_newest(
    checkpoint._absolute(workdir / run_files.CHECKPOINTS), None, {'variables': None, 'state': None}
  )
  leaves = jax.tree_util.tree_flatten_with_path(items)[0]
  arrays = hashlib.sha256()
  for path, leaf in leaves:
    leaf = np.asarray(leaf)
    arrays.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode() + leaf.tobytes())
  rows = [{name: value for name, value in row.items() if name not in TIMES} for row in metric_log.read(workdir)]
  digest = lambda value: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
  return {
    'last step': step,
    f'{len(leaves)} arrays': arrays.hexdigest(),
    f'{len(rows)} rows of metrics': digest(rows),
    'results': digest(json.loads((workdir / run_summary.FILE).read_text())['results']),
  }


def write_images(folder):
  """Writes the images of the streamed recipe: the digits, and a training image that is cut short."""
  from PIL import Image
  from sklearn.datasets import load_digits

  digits = load_digits()
  for i, (pixels, label) in enumerate(zip(digits.images, digits.target)):
    path = folder / ('test' if i % 5 == 0 else 'train') / str(label) / f'{i:04}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9375).astype(np.uint8)).save(path)
  broken = folder / 'train' / '4' / 'broken.png'
  broken.write_bytes(next(broken.parent.glob('0*.png')).read_bytes()[:60])


def steps(workdir):
  """The steps whose checkpoint is complete, sorted."""
  folder = workdir / run_files.CHECKPOINTS
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def newest(workdir):
  """The newest of `steps`, or None."""
  return max(steps(workdir), default=None)


def saving(workdir, since):
  """The names of checkpoints that are being written, and not left there by a process that was killed before."""
  try:
    return [
      entry.name
      for entry in os.scandir(workdir / run_files.CHECKPOINTS)
      if 'orbax-checkpoint-tmp' in entry.name and entry.stat().st_ctime >= since
    ]
  except FileNotFoundError:  # the folder, or a save that has just ended
    return []


def logged_step(workdir, since=0.0):
  """The last step in the log, of rows since a time; 0 before the first."""
  rows = metric_log.read(workdir) if (workdir / metric_log.FILE).exists() else []
  return max((row['step'] for row in rows if row['time'] >= since), default=0)


def readable(workdir):
  """Whether there is no checkpoint, or the newest one can be read."""
  newest_step = newest(workdir)
  return newest_step is None or checkpoint.load_variables(workdir / run_files.CHECKPOINTS)[2] == newest_step


def damage(folder, kind, rng):
  """Damages a checkpoint; returns what was damaged."""
  if kind == 'emptied':
    shutil.rmtree(folder)
    folder.mkdir()
    return 'the whole checkpoint'
  path = rng.choice(
    sorted(path for item in folder.iterdir() if item.is_dir() for path in item.rglob('*') if path.is_file())
  )
  data = bytearray(path.read_bytes())
  if kind == 'deleted':
    path.unlink()
  elif kind == 'truncated':
    path.write_bytes(data[: rng.randrange(len(data))])
  else:
    for place in rng.sample(range(len(data)), 3):
      data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
  return re.sub('[0-9a-f]{32}', '*', str(path.relative_to(folder)))


@contextlib.contextmanager
def full_disks(folder):
  """Yields (folder, fill(bytes left, process), free()): a small file system, or the like where none may be mounted."""
  folder.mkdir()
  mounted = (
    subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=32m', 'tmpfs', str(folder)], capture_output=True, check=False
    ).returncode
    == 0
  )
  ballast = folder / 'ballast'

  def fill(left, process=0):  # 0 is this process, whose children inherit the limit
    if mounted:
      with contextlib.suppress(OSError), ballast.open('wb', buffering=0) as file:
        while file.write(bytes(2**16)):  # until it is full
          pass
      if ballast.exists():
        os.truncate(ballast, max(ballast.stat().st_size - left, 0))
    else:
      resource.prlimit(process, resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))

  def free():
    ballast.unlink(missing_ok=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

  try:
    print('full disk:', 'a tmpfs' if mounted else 'RLIMIT_FSIZE', flush=True)
    yield folder, fill, free
  finally:
    free()
    if mounted:
      subprocess.run(['umount', '--lazy', str(folder)], check=True)


def cpu():
  """The processor's name, where the system tells."""
  try:
    return re.search(r'model name\s*: (.*)', pathlib.Path('/proc/cpuinfo').read_text())[1]
  except (OSError, TypeError):
    return platform.machine()


def markdown(report):
  """Returns the report's table."""
  lines = [
    f'`{report["command"]}`, commit {report["commit"]}, {report["date"]}, {report["hardware"]}, '
    f'{", ".join(f"{name} {version}" for name, version in report["versions"].items())}: '
    f'{"all passed" if report["passed"] else "FAILED"} in {format_duration(report["seconds"])}.',
    '',
    '| fault | moment | cases | passed |',
    '|---|---|---|---|',
  ]
  return (
    '\n'.join(
      lines + [f'| {row["fault"]} | {row["moment"]} | {row["cases"]} | {row["passed"]} |' for row in report['table']]
    )
    + '\n'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON file to write; a table goes beside it')
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--terms', type=int, default=10)
  parser.add_argument('--corruptions', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--scratch', type=pathlib.Path, help='folder for the runs; by default one that is deleted again')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    campaign = Campaign(options, pathlib.Path(scratch))
    try:
      report = campaign.run()
    finally:
      campaign.last.popen.kill()  # an orderly end leaves none
  options.out.parent.mkdir(parents=True, exist_ok=True)
  options.out.write_text(json.dumps(report, indent=1) + '\n')
  options.out.with_suffix('.md').write_text(markdown(report))
  print(markdown(report))
  return 0 if report['passed'] else 1


if __name__ == '__main__':
  sys.exit(main())
