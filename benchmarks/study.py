"""Accuracy studies: what quantization costs and what CMT-KD gives back, several seeds a row.

Run:   python benchmarks/study.py digits_resnet8
       python benchmarks/study.py cifar10c_resnet8 --data=DIR
Table: python benchmarks/study.py cifar10c_resnet8 --table

`--seeds=0,1,2 --rows=single,... --jobs=2` choose and spread the runs. DIR holds train_images.npy, train_labels.npy,
test_images.npy, test_labels.npy of classes 0-9 of CIFAR-100. Each run is one call of the command line, `--jobs` of them
side by side, each on its share of the cores; a run that was cut goes on from its last checkpoint, and one whose result
lies in `benchmarks/results/` is not run again.
"""

import argparse
import json
import math
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import time
from concurrent import futures

ROOT = pathlib.Path(__file__).resolve().parents[1]

_SINGLE = ('--config.method=single',)
_OPTIMAL = ('--config.quantizer.hwgq.activation.step=optimal',)
_NO_ATTENTION = ('--config.cmtkd.feature_loss=none',)
STUDIES = {  # config, {row: (title, flags)}
    'digits_resnet8': ('configs/digits_resnet8.py', {
        'single': ('single, 2 bit', _SINGLE),
        'cmtkd': ('CMT-KD', ()),
    }),
    'cifar10c_resnet8': ('benchmarks/cifar10c_resnet8.py', {
        'fp': ('single, full precision',
               (*_SINGLE, '--config.student.weight_bits=32', '--config.student.activation_bits=32')),
        'single': ('single, 2 bit', _SINGLE),
        'single_optimal': ('single, 2 bit, optimal step', (*_SINGLE, *_OPTIMAL)),
        'cmtkd_no_attention': ('CMT-KD without attention', _NO_ATTENTION),
        'cmtkd': ('CMT-KD, gamma 100', ()),
        'cmtkd_no_attention_optimal': ('CMT-KD without attention, optimal step', (*_NO_ATTENTION, *_OPTIMAL)),
        'cmtkd_optimal': ('CMT-KD, gamma 100, optimal step', _OPTIMAL),
    }),
}


def results_of(study):
  """Returns the folder that holds one JSON file a run."""
  return ROOT / 'benchmarks' / 'results' / study


def run(study, row, seed, data, workdir, cores):
  """Trains one row with one seed on the given cores, unless its result is there."""
  result = results_of(study) / f'{row}_seed{seed}.json'
  if result.exists():
    return
  config, rows = STUDIES[study]
  flags = (f'--config={config}', *rows[row][1], f'--config.seed={seed}')
  where = [f'--workdir={workdir}/{study}/{row}_seed{seed}', *([f'--config.data.name=npy:{data}'] if data else [])]
  begin = time.monotonic()
  subprocess.run([sys.executable, '-m', 'cmtkd_jax.main', *flags, *where], cwd=ROOT, check=True,
                 preexec_fn=lambda: os.sched_setaffinity(0, cores))
  summary = json.loads((workdir / study / f'{row}_seed{seed}' / 'summary.json').read_text())
  del summary['config']
  summary = {'row': row, 'seed': seed, 'command': ' '.join(('python -m cmtkd_jax.main', *flags)),
             'cores': len(cores), 'minutes': round((time.monotonic() - begin) / 60, 1), **summary}
  result.parent.mkdir(parents=True, exist_ok=True)
  result.write_text(json.dumps(summary, indent=1))


def table(study):
  """Returns the results so far as Markdown: mean +- standard error of test top-1 over seeds, last and best epoch."""
  lines = ['| row | seeds | student, last | student, best | combined teacher, last | combined teacher, best |',
           '|---|---|---|---|---|---|']
  for row, (title, _) in STUDIES[study][1].items():
    files = sorted(results_of(study).glob(f'{row}_seed*.json'))
    results = [json.loads(path.read_text())['results'] for path in files]
    if results:
      cells = [_cell([r[f'test/{network}'][which]['top1'] for r in results if f'test/{network}' in r])
               for network in ('student', 'combined_teacher') for which in ('last', 'best')]
      lines.append(f'| {title} | {len(results)} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _cell(values):
  if not values:
    return '-'
  error = f' ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}' if len(values) > 1 else ''
  return f'{statistics.mean(values):.2f}{error}'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('study', choices=STUDIES)
  parser.add_argument('--data', type=pathlib.Path)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--rows')
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'study')
  parser.add_argument('--jobs', type=int, default=1)
  parser.add_argument('--table', action='store_true')
  args = parser.parse_args()
  rows = args.rows.split(',') if args.rows else list(STUDIES[args.study][1])
  if unknown := set(rows) - set(STUDIES[args.study][1]):
    parser.error(f'--rows: {", ".join(unknown)}; rows are {", ".join(STUDIES[args.study][1])}')
  if args.study == 'cifar10c_resnet8' and not args.data and not args.table:
    parser.error('--data=DIR is missing')
  if not args.table:
    cores = sorted(os.sched_getaffinity(0))
    free = queue.SimpleQueue()
    for job in range(args.jobs):
      free.put(cores[job::args.jobs])

    def one(row, seed):
      share = free.get()
      try:
        run(args.study, row, seed, args.data and args.data.resolve(), args.workdir, share)
      finally:
        free.put(share)

    with futures.ThreadPoolExecutor(args.jobs) as pool:
      runs = [pool.submit(one, row, seed) for seed in map(int, args.seeds.split(',')) for row in rows]
      for done in futures.as_completed(runs):
        done.result()
  print(table(args.study))


if __name__ == '__main__':
  main()
