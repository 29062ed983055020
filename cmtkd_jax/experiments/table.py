"""Tables of runs: trains the rows of `config.table`, resumable, and compares them with the published figures.

`config.table.runs` is `{run: changes to the configuration}`; '{run}' in the `init_from` and `teacher_workdirs` of a
later run is the directory of an earlier one at the same seed. `config.table.lines` are what is printed, each
`(title, W/A bits, run, network, (top-1, top-5) as published)`; a run of '' is a figure that is cited only. A run of the
table lies in `WORKDIR/<run>/seed<k>`.
"""

import math
import statistics
from typing import Any, NamedTuple

import jax
from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax.config import unread
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain, table_text
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import compatibility, json_file, run_files, run_summary
from cmtkd_jax.runtime import local_file

_NEEDED = ('results', 'epochs', 'commit', 'device', 'config')  # entries of a run's summary


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
  workdir = local_file.expanded(workdir)
  lines = _lines(config)
  # Also where no line prints it: the baseline, and runs that are named.
  wanted = list(config.table.only) or list(filter(None, [config.table.baseline, *(line.run for line in lines)]))
  failures = {}
  for seed in config.table.seeds:
    directories, failed = {}, {}
    for run in chain.in_order(config.table.runs, wanted):
      directory = f'{workdir}/{run}/seed{seed}'
      report(f'\n== {run}, seed {seed} -> {directory}')
      try:
        run_config = config_lib.derive(config, {**config.table.runs[run].to_dict(), 'seed': seed})
        _check_needed(config, run, run_config, failed)
        chain.train_chain(run_config, directory, directories, report)
        directories[run] = directory
      except UserError as e:
        if jax.process_count() > 1:  # the others wait for this one in the same run
          raise
        failed[run] = str(e)
        failures.setdefault(run, {})[seed] = str(e)
        report(f'not run: {e}')
  if failures and not epath.Path(workdir).is_dir():
    run, reasons = next(iter(failures.items()))  # the first one: it needs no other
    raise UserError(f'config.table: no run could be trained; {run}: {next(iter(reasons.values()))}')
  whole = config.copy_and_resolve_references()
  whole.table.only = ()  # files have all rows, also where only some are trained
  rows = collect(whole, workdir, failures)
  with run_files.disk_errors_as_user_errors(workdir):
    for suffix, text in (('json', table_text.as_json), ('md', table_text.markdown)):
      json_file.write(epath.Path(workdir) / f'table.{suffix}', text(config.table.title, rows))
  return [row for row in rows if not config.table.only or row['run'] in config.table.only]


def _check_needed(config, run, run_config, failed):
  """Raises `UserError` if a run that `run` refers to was not trained; failed: `{run: why}`."""
  needed = [name for name in chain.in_order(config.table.runs, [run]) if name not in run_config.prerequisites]
  if lost := [name for name in needed if name in failed]:
    # What is wrong; the line of the lost run itself also says what to do.
    raise UserError(f'it needs the run {lost[0]}, which was not trained: {failed[lost[0]].partition("; ")[0]}')


def collect(config, workdir, failures=None):
  """Collects the finished runs in `workdir`; writes nothing.

  Args:
    config: a `ConfigDict` with a `table`.
    workdir: directory of the table.
    failures: `{run: {seed: why it could not be trained}}`.

  Returns:
    list of JSON-able dicts, one a line; a run that could not be trained and that no line prints has a last one.

  Raises:
    UserError: the configuration has no table, the directory does not exist, or a summary cannot be used.
  """
  lines, workdir = _lines(config), epath.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'workdir: there is no directory {workdir}; train the table first')
  table = config.table
  baseline = _results(_summaries(workdir, table.baseline), table.baseline, table.split, STUDENT)
  failures = failures or {}
  printed = {line.run for line in lines}
  lines += [Line(run, '-', run, STUDENT, (None, None)) for run in failures if run not in printed]
  return [_row(config, line, workdir, baseline, failures) for line in lines]


def _summaries(workdir, run):
  """Returns `{seed: summary}` of the finished runs, {} for a run of ''."""
  found = {}
  for folder in local_file.matching(workdir / run, 'seed*') if run else ():
    if (seed := folder.name.removeprefix('seed')).isdecimal() and (folder / run_summary.FILE).exists():
      found[int(seed)] = run_summary.read(folder, _NEEDED)
  return dict(sorted(found.items()))


def _results(summaries, run, split, network):
  """Returns `{seed: result}` of a network on the images of a split."""
  results = {seed: summary['results'].get(f'{split}/{network}') for seed, summary in summaries.items()}
  if None in results.values():
    has = ', '.join(next(iter(summaries.values()))['results'])
    raise UserError(
      f'config.table: run {run!r} has no results of network {network!r} on {split}; it has {has}; correct '
      'config.table.lines or config.table.split'
    )
  return results


def _row(config, line, workdir, baseline, failures) -> dict[str, Any]:
  found = _summaries(workdir, line.run)
  results = _results(found, line.run, config.table.split, line.network)
  of = lambda which: (
    {kind: _statistics([result[which][kind] for result in results.values()]) for kind in ('top1', 'top5')}
    if results
    else None
  )
  about = lambda key: sorted({summary[key] for summary in found.values()})
  configured = lambda *fields: sorted(
    {'/'.join(_setting(summary['config'], field) for field in fields) for summary in found.values()}
  )
  return {
    **line._asdict(),
    'split': config.table.split,
    'seeds': list(found),
    'last': of('last'),
    'best': of('best'),
    'difference': None if line.run == config.table.baseline else _difference(results, baseline, config.table.baseline),
    'epochs': about('epochs'),
    'commits': about('commit'),
    'devices': about('device'),
    'networks': configured('model.name'),
    'data': configured('data.name'),
    'run_bits': configured('student.weight_bits', 'student.activation_bits') if line.network == STUDENT else [],
    'tests': sorted({test for summary in found.values() if (test := summary.get('test', ''))}),
    'stopped_early': [seed for seed, summary in found.items() if 'stopped_early' in summary],
    'is_complete': line.run not in failures and set(config.table.seeds) <= found.keys(),
    'note': _note(config, line, workdir, found, baseline, failures),
  }


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


def _difference(results, baseline, name):
  """Top-1 of the last epoch minus that of the baseline, over the seeds that both have; None where there are none."""
  seeds = [seed for seed in results if seed in baseline]
  top1 = lambda result: result['last']['top1']
  if not seeds:
    return None
  return {'baseline': name, **_statistics([top1(results[seed]) - top1(baseline[seed]) for seed in seeds])}


def _note(config, line, workdir, found, baseline, failures):
  if not line.run:
    return 'cited, not run here'
  if reasons := failures.get(line.run):
    seed, reason = next(iter(reasons.items()))
    return reason if len(reasons) == len(config.table.seeds) else f'seed {seed}: {reason}'
  if missing := [seed for seed in config.table.seeds if seed not in found]:
    of_seed = ('', *config.table.runs[line.run].get('prerequisites', {}))  # its own come first
    runs = [workdir / line.run / f'seed{seed}' / name for seed in missing for name in of_seed]
    started = any((run / run_files.CONFIG).exists() for run in runs)
    return 'not finished' if started else f'{len(missing)} seed{"s" * (len(missing) > 1)} not run'
  if differing := _differing(found):
    return f'seeds differ in {", ".join(differing)}'
  if config.table.baseline and not found.keys() & baseline:
    return f'no seed in common with {config.table.baseline}'
  return ''


def _differing(summaries):
  """The fields that the seeds of a run read with other values, among those that exist in all of them."""
  configs = [config_lib.flat(summary['config']) for summary in summaries.values()]
  fields = set(config_lib.fields()).intersection(*configs) - {
    'seed',
    'init_from',
    'teacher_workdirs',
    *compatibility.MUTABLE_FIELDS,
  }
  differing = {field for field in fields if any(config[field] != configs[0][field] for config in configs)}
  # Such as options of a quantizer that is not chosen, whose defaults another version may have changed.
  now = config_lib.flat(config_lib.default())  # an earlier version may lack a selector
  ignored = differing.intersection(*(unread.find(now | config, differing) for config in configs))
  return sorted(differing - ignored)


def _is_pair(published):
  """Whether it is two numbers, each of which may be None."""
  known = (int, float, type(None))
  return isinstance(published, (tuple, list)) and [type(value) in known for value in published] == [True, True]


def _lines(config):
  """The lines to print: those of the chosen runs, or all."""
  table = config.table
  if not table.runs:
    raise UserError(
      'config.table.runs is empty: this configuration has no table; use a config file such as '
      'configs/table2_resnet18_cifar100.py'
    )
  config_lib.check(config)  # a run is checked as it begins, and knows nothing of the table
  config_lib.check_runs(table.runs)
  if table.split == 'minival' and not config.data.minival:
    raise UserError(
      "config.table.split='minival' shows held-out training images, and config.data.minival=0.0 holds out none; set it "
      'to e.g. 0.1'
    )
  if not table.lines:
    raise UserError(f'config.table.lines is empty; give a line for each run, ({", ".join(Line._fields)})')
  for line in table.lines:
    if len(line) != len(Line._fields):
      raise UserError(f'config.table.lines: {line!r} must be ({", ".join(Line._fields)})')
    if not _is_pair(line[-1]):
      raise UserError(
        f'config.table.lines: {line!r} ends with {line[-1]!r}; give the published (top-1, top-5), None where unknown'
      )
  lines = [Line(*line) for line in table.lines]
  for line in lines:
    if line.run and line.run not in table.runs:
      raise UserError(f'config.table.lines: there is no run {line.run!r}; runs are {", ".join(table.runs)}')
  return [line for line in lines if not table.only or line.run in table.only]
