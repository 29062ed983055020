"""Gives the program thousands of damaged or forged inputs, and counts how each ends.

Run: python benchmarks/fuzz.py --out=benchmarks/results/fuzz.json [--seed=0 --scale=1 --only=npy,onnx --jobs=2]

`fuzz_targets` says what is mutated and what the program makes of it. Each target runs in a process of its own, which
reports every case before it starts and after it ends: a process that dies is a crash, one that is silent for too long
hangs, and both are replaced. How a case ends:

  right            as with the file that was not touched
  refused          `UserError`, in one line of printable characters
  other valid      another answer, and an independent reading of the changed file agrees with it
  traceback        any other exception
  crash            the process died
  hang             no answer within 60 s of CPU time, or within five minutes
  memory           more than 1 GiB on top of what the process had
  other answer     another answer without a word

The exit status is 1 if any case ended in one of the last five. `--case=TARGET:N` runs a single case and shows it.
"""

import argparse
import collections
import concurrent.futures
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOOD, BAD = ('right', 'refused', 'other valid'), ('traceback', 'crash', 'hang', 'memory', 'other answer')
LIMIT_SECONDS, LIMIT_BYTES = 60, 2**30  # CPU time, which other work on the machine does not lengthen
SILENT_SECONDS = 300  # of a process that waits for something
START_SECONDS = 300  # of a process, until its first case
EXAMPLES = 3  # of refusals, that the report keeps for each target


class Worker:
  """A process that runs the cases of one target from a number on."""

  def __init__(self, options, target, first, log):
    self.popen = subprocess.Popen(
      [
        sys.executable,
        __file__,
        f'--worker={target}:{first}',
        f'--seed={options.seed}',
        f'--scale={options.scale}',
        f'--scratch={options.scratch}',
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=log,
      env=os.environ
      | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'TF_CPP_MIN_LOG_LEVEL': '3', 'MPLBACKEND': 'agg'},
    )
    self._buffer = b''

  def line(self, seconds):
    """Returns the next line as a JSON object, None at the end of the process; raises `TimeoutError`."""
    until = time.monotonic() + seconds
    while b'\n' not in self._buffer:
      if not select.select([self.popen.stdout], [], [], max(until - time.monotonic(), 0))[0]:
        raise TimeoutError
      data = os.read(self.popen.stdout.fileno(), 2**16)
      if not data:
        return None
      self._buffer += data
    line, self._buffer = self._buffer.split(b'\n', 1)
    return json.loads(line)


def run_target(options, target):
  """Returns the results of all cases of a target, [{'case', 'outcome', 'change', 'text', 'seconds'}]."""
  results, begin = [], time.monotonic()
  with (options.scratch / f'{target}.log').open('wb') as log:
    while True:
      worker, change = Worker(options, target, len(results), log), ''
      try:
        limit = START_SECONDS
        while (message := worker.line(limit)) is not None:
          if 'end' in message:
            print(
              f'{target}: {len(results)} cases, {time.monotonic() - begin:.0f} s, '
              f'{dict(collections.Counter(result["outcome"] for result in results))}',
              flush=True,
            )
            return results
          if 'outcome' in message:
            results.append(message)
            report_case(target, message)
          limit = SILENT_SECONDS if 'change' in message and 'outcome' not in message else START_SECONDS
          change = message['change']
        outcome = 'crash'
      except TimeoutError:
        outcome = 'hang'
      worker.popen.kill()
      status = worker.popen.wait()
      if not change:
        raise RuntimeError(f'{target} does not start (status {status}); see {options.scratch}/{target}.log')
      results.append({'case': len(results), 'outcome': outcome, 'change': change, 'text': f'status {status}'})
      report_case(target, results[-1])


def report_case(target, result):
  """Prints what should not be, and now and then how far it is."""
  if result['outcome'] in BAD:
    print(f'{target}:{result["case"]} {result["outcome"]}: {result["change"]}: {result["text"][-300:]}', flush=True)
  elif result['case'] % 200 == 199:
    print(f'{target}: {result["case"] + 1} cases', flush=True)


def work(options):
  """The worker: runs cases and prints their ends."""
  sys.path.insert(0, str(ROOT / 'benchmarks'))
  import fuzz_targets

  out, sys.stdout = sys.stdout, sys.stderr
  say = lambda **message: print(json.dumps(message), file=out, flush=True)
  name, first = options.worker.split(':')
  target = fuzz_targets.TARGETS[name](
    options.scratch / 'originals', pathlib.Path(tempfile.mkdtemp(dir=options.scratch))
  )
  for number in range(int(first), number_of_cases(target, options)):
    change = target.change(f'{options.seed}/{name}/{number}')
    say(case=number, change=change)
    say(case=number, change=change, **run_case(target))
  say(end=True)


def number_of_cases(target, options):
  """Returns how many cases a target has."""
  return max(round(target.cases * options.scale), 1)


def run_case(target):
  """Returns {'outcome', 'text', 'seconds'} of the case that is set up."""
  from cmtkd_jax.errors import UserError

  before, begin, text = reset_peak(), time.process_time(), ''
  try:
    answer = target.answer()
    outcome = 'right' if target.is_right(answer) else 'other valid' if target.explains(answer) else 'other answer'
    if outcome == 'other answer':
      text = repr(answer)[:300]
  except UserError as e:
    text = str(e)
    outcome = 'refused' if text.isprintable() and len(text) <= 1000 else 'traceback'
  except BaseException:
    outcome, text = 'traceback', traceback.format_exc()[-2000:]
  seconds = time.process_time() - begin
  if outcome in GOOD and reset_peak(read_only=True) - before > LIMIT_BYTES:
    outcome = 'memory'
  if outcome in GOOD and seconds > LIMIT_SECONDS:
    outcome = 'hang'
  return {'outcome': outcome, 'text': text, 'seconds': round(seconds, 3)}


def reset_peak(read_only=False):
  """Returns the resident memory in bytes and begins to watch its peak; `read_only` returns the peak."""
  if not read_only:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  name = 'VmHWM' if read_only else 'VmRSS'
  return 1024 * int(re.search(rf'{name}:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1])


def cpu():
  """Returns the processor's name, where the system names it."""
  try:
    return re.search(r'model name\s*: (.*)', pathlib.Path('/proc/cpuinfo').read_text())[1]
  except (OSError, TypeError):
    return platform.machine()


def report(results, options, seconds):
  """Returns the report, a JSON-able dict."""
  sys.path.insert(0, str(ROOT / 'benchmarks'))
  import fuzz_targets

  from cmtkd_jax.runs import provenance

  table = {}
  for name, cases in results.items():
    counts = collections.Counter(case['outcome'] for case in cases)
    refused = [case for case in cases if case['outcome'] == 'refused']
    cls = fuzz_targets.TARGETS[name]
    table[name] = {
      'mutates': cls.mutates,
      'cannot be told': cls.untold,
      'cases': len(cases),
      **{outcome: counts[outcome] for outcome in GOOD + BAD},
      'slowest, s': max(case.get('seconds', LIMIT_SECONDS) for case in cases),
      'refusals': [
        f'{case["change"]}: {case["text"]}'.replace(str(options.scratch), 'SCRATCH')
        for case in refused[:: max(len(refused) // EXAMPLES, 1)][:EXAMPLES]
      ],
      'failures': [case for case in cases if case['outcome'] in BAD],
    }
  return {
    'command': f'python {" ".join(sys.argv)}',
    'commit': provenance.commit(),
    'seed': options.seed,
    'date': datetime.date.today().isoformat(),
    'hardware': f'{os.cpu_count()} CPU cores, {cpu()}',
    'python': platform.python_version(),
    'versions': provenance.versions(),
    'seconds': round(seconds),
    'cases': sum(row['cases'] for row in table.values()),
    'passed': not any(row[outcome] for row in table.values() for outcome in BAD),
    'targets': table,
  }


def markdown(found):
  """Returns the report's tables."""
  versions = ', '.join(f'{name} {version}' for name, version in found['versions'].items())
  lines = [
    f'`{found["command"]}`, commit {found["commit"]}, {found["date"]}, {found["hardware"]}, '
    f'Python {found["python"]}, {versions}: {found["cases"]} cases in {found["seconds"] // 60} min '
    f'{found["seconds"] % 60} s, {"none" if found["passed"] else "SOME"} in the last five columns.',
    '',
    f'| target | cases | {" | ".join(GOOD + BAD)} |',
    f'|---|{"---|" * (1 + len(GOOD + BAD))}',
  ]
  total = collections.Counter()
  for name, row in found['targets'].items():
    lines.append(f'| {name} | {row["cases"]} | {" | ".join(str(row[outcome]) for outcome in GOOD + BAD)} |')
    total.update({outcome: row[outcome] for outcome in GOOD + BAD})
  lines += [
    f'| all | {found["cases"]} | {" | ".join(str(total[outcome]) for outcome in GOOD + BAD)} |',
    '',
    '| target | what is mutated | what cannot be told from a valid file |',
    '|---|---|---|',
  ]
  lines += [f'| {name} | {row["mutates"]} | {row["cannot be told"]} |' for name, row in found['targets'].items()]
  return '\n'.join(lines) + '\n'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, help='JSON file to write; the tables go next to it')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--scale', type=float, default=1, help='factor on the number of cases of each target')
  parser.add_argument('--only', help='targets, by default all')
  parser.add_argument('--jobs', type=int, default=2)
  parser.add_argument('--case', help='TARGET:N, one case to look at')
  parser.add_argument('--scratch', type=pathlib.Path, help='folder for files; by default one that is deleted again')
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return work(options)
  sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]
  import fuzz_targets

  names = options.only.split(',') if options.only else list(fuzz_targets.TARGETS)
  if unknown := [name for name in names if name not in fuzz_targets.TARGETS]:
    parser.error(f'--only: there is no target {unknown[0]!r}; targets are {", ".join(fuzz_targets.TARGETS)}')
  begin = time.monotonic()
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    options.scratch = pathlib.Path(scratch)
    fuzz_targets.prepare(options.scratch / 'originals')
    if options.case:
      return show_case(fuzz_targets, options)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
      futures = {name: pool.submit(run_target, options, name) for name in names}
      results = {name: future.result() for name, future in futures.items()}
    found = report(results, options, time.monotonic() - begin)
  print(markdown(found))
  if options.out:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + '\n')
    options.out.with_suffix('.md').write_text(markdown(found))
  return 0 if found['passed'] else 1


def show_case(fuzz_targets, options):
  """Runs one case in this process and prints it."""
  name, number = options.case.split(':')
  target = fuzz_targets.TARGETS[name](options.scratch / 'originals', options.scratch)
  print(target.change(f'{options.seed}/{name}/{number}'))
  print(run_case(target))


if __name__ == '__main__':
  sys.exit(main())
