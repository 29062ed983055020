"""What quantization costs and what CMT-KD gives back: ten classes of CIFAR-100, ResNet8, several seeds a row.

Run:   python benchmarks/study.py --data=DIR [--seeds=0,1,2] [--rows=fp,single,...] [--jobs=2]
Table: python benchmarks/study.py --table

DIR holds train_images.npy, train_labels.npy, test_images.npy, test_labels.npy of classes 0-9 at 32x32. Each run is one
call of the command line, `--jobs` of them side by side, each on its share of the cores; a run that was cut goes on
from its last checkpoint, and one whose result lies in `benchmarks/results/cifar10c_resnet8/` is not run again.
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

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = HERE / 'cifar10c_resnet8.py'
RESULTS = HERE / 'results' / 'cifar10c_resnet8'

_SINGLE = ('--config.method=single',)
_OPTIMAL = ('--config.quantizer.hwgq.activation.step=optimal',)
_NO_ATTENTION = ('--config.cmtkd.feature_loss=none',)
ROWS = {
    'fp': ('single, full precision',
           (*_SINGLE, '--config.student.weight_bits=32', '--config.student.activation_bits=32')),
    'single': ('single, 2 bit', _SINGLE),
    'single_optimal': ('single, 2 bit, optimal step', (*_SINGLE, *_OPTIMAL)),
    'cmtkd_no_attention': ('CMT-KD without attention', _NO_ATTENTION),
    'cmtkd': ('CMT-KD, gamma 100', ()),
    'cmtkd_no_attention_optimal': ('CMT-KD without attention, optimal step', (*_NO_ATTENTION, *_OPTIMAL)),
    'cmtkd_optimal': ('CMT-KD, gamma 100, optimal step', _OPTIMAL),
}


def run(row, seed, data, workdir, cores):
  """Trains one row with one seed on the given cores, unless its result is there."""
  result = RESULTS / f'{row}_seed{seed}.json'
  if result.exists():
    return
  flags = (f'--config={CONFIG.relative_to(HERE.parent)}', *ROWS[row][1], f'--config.seed={seed}')
  begin = time.monotonic()
  subprocess.run([sys.executable, '-m', 'cmtkd_jax.main', *flags, f'--config.data.name=npy:{data}',
                  f'--workdir={workdir}/{row}_seed{seed}'], cwd=HERE.parent, check=True,
                 preexec_fn=lambda: os.sched_setaffinity(0, cores))
  summary = json.loads((workdir / f'{row}_seed{seed}' / 'summary.json').read_text())
  del summary['config']
  summary = {'row': row, 'seed': seed, 'command': ' '.join(('python -m cmtkd_jax.main', *flags)),
             'cores': len(cores), 'minutes': round((time.monotonic() - begin) / 60, 1), **summary}
  RESULTS.mkdir(parents=True, exist_ok=True)
  result.write_text(json.dumps(summary, indent=1))


def table():
  """Returns the results so far as Markdown: mean +- standard error of test top-1 over seeds, last and best epoch."""
  lines = ['| row | seeds | student, last | student, best | combined teacher, last | combined teacher, best |',
           '|---|---|---|---|---|---|']
  for row, (title, _) in ROWS.items():
    results = [json.loads(path.read_text())['results'] for path in sorted(RESULTS.glob(f'{row}_seed*.json'))]
    if results:
      cells = [_cell([r[f'test/{network}'][which]['top1'] for r in results if f'test/{network}' in r])
               for network in ('student', 'combined_teacher') for which in ('last', 'best')]
      lines.append(f'| {title} | {len(results)} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _cell(values):
  if not values:
    return '-'
  error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
  return f'{statistics.mean(values):.1f} +- {error:.1f}'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', type=pathlib.Path)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--rows', default=','.join(ROWS))
  parser.add_argument('--workdir', type=pathlib.Path, default=HERE.parent / 'runs' / 'study')
  parser.add_argument('--jobs', type=int, default=1)
  parser.add_argument('--table', action='store_true')
  args = parser.parse_args()
  if not args.table:
    if args.data is None:
      parser.error('--data=DIR is missing')
    cores = sorted(os.sched_getaffinity(0))
    free = queue.SimpleQueue()
    for job in range(args.jobs):
      free.put(cores[job::args.jobs])

    def one(row, seed):
      share = free.get()
      run(row, seed, args.data.resolve(), args.workdir, share)
      free.put(share)

    with futures.ThreadPoolExecutor(args.jobs) as pool:
      runs = [pool.submit(one, row, seed) for seed in map(int, args.seeds.split(',')) for row in args.rows.split(',')]
      for done in futures.as_completed(runs):
        done.result()
  print(table())


if __name__ == '__main__':
  main()
