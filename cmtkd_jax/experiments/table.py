"""Tables of runs: trains the rows of `config.table`, resumable, and compares them with the published figures.

`config.table.runs` is `{run: changes to the configuration}`; '{run}' in the `init_from` and `teachers` of a later run
is the directory of an earlier one at the same seed. `config.table.lines` are what is printed, each
`(title, W/A bits, run, network, (top-1, top-5) as published)`; a run of '' is a figure that is cited only. A run of the
table lies in `WORKDIR/<run>/seed<k>`.
"""

import json
import math
import re
import statistics
from typing import Any, NamedTuple

from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax import quantizers
from cmtkd_jax.errors import UserError, printable
from cmtkd_jax.experiments import chain
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import run_files, run_summary
from cmtkd_jax.runtime import text_table

FILE = 'table'
_NEEDED = ('epochs', 'commit', 'device', 'config')  # entries of a run's summary, next to its results


class Line(NamedTuple):
  """One line of the table. published: (top-1, top-5) in percent, None where it is not known."""

  title: str
  bits: str
  run: str
  network: str
  published: tuple


def train_table(config, workdir, report=lambda text: None):
  """Trains what is missing, run by run and seed by seed, then collects.

  A run that cannot be trained (its quantizer does not exist yet, its data are not prepared) does not keep the others
  from theirs, but for those that learn from it; the table says why.

  Args:
    config: a `ConfigDict` with a `table`.
    workdir: directory of the table.
    report: function that shows a text to the user: which run begins, and how each ended.

  Returns:
    as `collect`; it is also written as table.md and table.json.

  Raises:
    UserError: the table itself is wrong, or there is no directory because no run could begin.
  """
  lines = _lines(config)
  failures = {}
  for seed in config.table.seeds:
    directories, failed = {}, {}
    for run in chain.in_order(config.table.runs, [line.run for line in lines if line.run]):
      directory = f'{workdir}/{run}/seed{seed}'
      report(f'\n== {run}, seed {seed} -> {directory}')
      try:
        if missing := _missing_quantizer(config.table.runs[run]):
          raise UserError(missing)
        run_config = config_lib.derive(config, {**config.table.runs[run].to_dict(), 'seed': seed})
        needed = [name for name in chain.in_order(config.table.runs, [run]) if name not in run_config.first]
        if lost := [name for name in needed if name in failed]:
          # What is wrong; the line of the lost run itself also says what to do.
          raise UserError(f'it needs the run {lost[0]}, which was not trained: {failed[lost[0]].partition("; ")[0]}')
        chain.train_chain(run_config, directory, directories, report)
        directories[run] = directory
      except UserError as e:
        failed[run] = str(e)
        failures.setdefault(run, str(e))
        report(f'not run: {e}')
  if failures and not epath.Path(workdir).is_dir():
    run, reason = next(iter(failures.items()))  # the first one: it needs no other
    raise UserError(f'--mode=table: no run could be trained; {run}: {reason}')
  rows = collect(config, workdir, failures)
  write(config.table.title, rows, workdir)
  return rows


def collect(config, workdir, failures=None):
  """Collects the finished runs in `workdir`; writes nothing.

  Args:
    config: a `ConfigDict` with a `table`.
    workdir: directory of the table.
    failures: `{run: why it could not be trained}`.

  Returns:
    list of JSON-able dicts, one a line.

  Raises:
    UserError: the configuration has no table, the directory does not exist, or a summary cannot be used.
  """
  lines, workdir = _lines(config), epath.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'--workdir: there is no directory {workdir}; train the table first with --mode=table')
  return [_row(config, line, workdir, failures or {}) for line in lines]


def write(title, rows, workdir):
  """Writes table.md and table.json into `workdir`."""
  found = {'title': title, 'printed_title': printed_title(title, rows), 'lines': rows}
  run_files.write(epath.Path(workdir) / f'{FILE}.json', json.dumps(found, indent=1))
  run_files.write(epath.Path(workdir) / f'{FILE}.md', markdown(title, rows))


def render(title, rows):
  """Returns the table as text."""
  header, body = _cells(rows)
  lines = text_table.lines(header, body, left=(0, len(header) - 1))
  above = [printed_title(title, rows), *_what_was_run(rows)]
  return '\n'.join(['', *map(printable, above), *lines, '', *map(printable, _below(rows))])


def markdown(title, rows):
  """Returns the table as Markdown."""
  header, body = _cells(rows)
  paragraphs = [
    f'**{text_table.markdown_cell(printed_title(title, rows))}**',
    *map(text_table.markdown_cell, _what_was_run(rows)),
    '\n'.join(text_table.markdown(header, body)),
    *map(text_table.markdown_cell, _below(rows)),
  ]
  return '\n\n'.join(paragraphs) + '\n'


def printed_title(title, rows):
  """Returns the recipe's title; where it tells a number of epochs, with the one that was run."""
  epochs = _joined(rows, 'epochs')
  return re.sub(r'\b\d+(\.\d+)? epochs?\b', f'{epochs} epochs', title) if epochs else title


def _joined(rows, key):
  """The distinct values of a list field of the rows, '' without any."""
  values = sorted({value for row in rows for value in row.get(key, ())})
  return ', '.join(f'{value:g}' if isinstance(value, (int, float)) else value for value in values)


def _what_was_run(rows):
  """The line below the title, from the finished runs themselves: a recipe may have been run otherwise."""
  if not (epochs := _joined(rows, 'epochs')):
    return []
  about = [f'{epochs} epochs', f'network {_joined(rows, "networks")}', _joined(rows, 'data')]
  return [f'run: {", ".join(about)}']


def _below(rows):
  tests = dict.fromkeys(test for row in rows for test in row.get('tests', ()))
  random = any(name.startswith('generated:') for row in rows for name in row.get('data', ()))
  return [
    'Top-1 / top-5 in percent on the test split: mean over seeds ± standard error (sd: standard deviation of one '
    'seed). The best epoch is chosen on the test split, as papers print it.',
    *(f'test: {test}' for test in tests),
    *(['The images are random (generated data): these accuracies mean nothing.'] if random else []),
  ]


def _cells(rows):
  header = ['row', 'W/A', 'published', 'last epoch', 'sd', 'best epoch', 'seeds', 'note']
  body = []
  for row in rows:
    published = ' / '.join('-' if value is None else f'{value:.1f}' for value in row['published']) or '-'
    last, best = row['last'], row['best']
    sd = f'{last["top1"]["sd"]:.2f}' if _several(last) else '-'
    bits = ', '.join(row.get('run_bits', ())) or row['bits']
    body.append([row['title'], bits, published, _pair(last), sd, _pair(best), str(len(row['seeds'])), row['note']])
  return header, body


def _pair(result):
  if not result:
    return '-'
  cell = lambda value: f'{value["mean"]:.2f}' + (f' ± {value["standard_error"]:.2f}' if value['sd'] is not None else '')
  return f'{cell(result["top1"])} / {cell(result["top5"])}'


def _several(result):
  return result and result['top1']['sd'] is not None


def _row(config, line, workdir, failures) -> dict[str, Any]:
  found = {}
  if line.run:
    for path in (workdir / line.run).glob('seed*/summary.json'):
      if (seed := path.parent.name.removeprefix('seed')).isdecimal():
        found[int(seed)] = _read_summary(path.parent)
  found = dict(sorted(found.items()))
  results = [summary['results'].get(f'test/{line.network}') for summary in found.values()]
  if found and None in results:
    raise UserError(
      f'config.table.lines: run {line.run!r} has no network {line.network!r}; it has '
      f'{", ".join(next(iter(found.values()))["results"])}'
    )
  of = lambda which: (
    {kind: _statistics([result[which][kind] for result in results]) for kind in ('top1', 'top5')} if results else None
  )
  about = lambda key: sorted({summary[key] for summary in found.values()})
  configured = lambda *fields: sorted(
    {'/'.join(_setting(summary['config'], field) for field in fields) for summary in found.values()}
  )
  return {
    **line._asdict(),
    'seeds': list(found),
    'last': of('last'),
    'best': of('best'),
    'epochs': about('epochs'),
    'commits': about('commit'),
    'devices': about('device'),
    'networks': configured('model.name'),
    'data': configured('data.name'),
    'run_bits': configured('student.weight_bits', 'student.activation_bits') if line.network == STUDENT else [],
    'tests': sorted({test for summary in found.values() if (test := summary.get('test', ''))}),
    'note': _note(config, line, workdir, found, failures),
  }


def _read_summary(directory):
  summary = run_summary.read(directory)
  if missing := [name for name in _NEEDED if name not in summary]:
    raise UserError(
      f'{directory / run_summary.FILE} was written by an earlier version of cmtkd_jax and lacks {", ".join(missing)}; '
      'delete it, and train the row again with --mode=table'
    )
  return summary


def _setting(config, field):
  section, name = field.split('.')
  return str(config.get(section, {}).get(name, '?'))


def _statistics(values):
  several = len(values) > 1
  sd = statistics.stdev(values) if several else None
  return {
    'mean': statistics.mean(values),
    'sd': sd,
    'standard_error': sd / math.sqrt(len(values)) if several else None,
    'values': values,
  }


def _note(config, line, workdir, found, failures):
  if not line.run:
    return 'cited, not run here'
  if missing := _missing_quantizer(config.table.runs[line.run]):
    return missing
  if line.run in failures:
    return failures[line.run]
  if len(found) < len(config.table.seeds):
    started = len(list((workdir / line.run).glob('seed*/config.json')))
    return 'not finished' if started > len(found) else f'{len(config.table.seeds) - len(found)} seeds not run'
  return ''


def _missing_quantizer(changes):
  names = [changes.get('quantizer', {}).get(field) for field in ('name', 'weights', 'activations')]
  missing = [name for name in names if name and name not in quantizers.QUANTIZERS]
  return f'quantizer {", ".join(missing)} does not exist here yet' if missing else ''


def _lines(config):
  """The lines to print: those of the chosen runs, or all."""
  table = config.table
  if not table.runs:
    raise UserError(
      '--mode=table: this configuration has no table; use a config file such as configs/table2_resnet18_cifar100.py'
    )
  config_lib.check_runs(table.runs)
  for line in table.lines:
    if len(line) != len(Line._fields):
      raise UserError(f'config.table.lines: {line!r} must be ({", ".join(Line._fields)})')
  lines = [Line(*line) for line in table.lines]
  for name in [*table.only, *(line.run for line in lines if line.run)]:
    if name not in table.runs:
      raise UserError(f'config.table: there is no run {name!r}; runs are {", ".join(table.runs)}')
  return [line for line in lines if not table.only or line.run in table.only]
