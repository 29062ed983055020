"""What a run comes to: last and best accuracies, importance factors, and what it was run with."""

import json
import math

import jax
from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.base import IMPORTANCE
from cmtkd_jax.runs import json_file, metric_log, provenance, run_files
from cmtkd_jax.runtime import distributed

FILE = run_files.SUMMARY


def write(workdir, config, dataset, stopped_early=''):
  """Writes and returns the run's summary: `results` of every network, importance factors, what it was run with.

  It has an entry 'test' where the test images are a part of train that was held out: which part, in words; and
  'stopped_early', the reason in words, of a run that was.
  """
  steps_per_epoch = dataset.train.steps_per_epoch
  distributed.wait_for_all('the metrics are written')
  rows = metric_log.read(workdir)
  trained = [row for row in rows if 'train/loss' in row]
  if not trained:
    raise UserError(
      f'{workdir}/{metric_log.FILE} has lost the rows of training; restore it, or train in another workdir'
    )
  factor = f'{IMPORTANCE}/'
  summary = {
    'config': config.to_dict(),
    'steps': rows[-1]['step'],
    'commit': provenance.commit(),
    'versions': provenance.versions(),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'epochs': round(rows[-1]['step'] / steps_per_epoch, 3),
    'results': results(rows, steps_per_epoch),
    **({'test': dataset.held_out} if dataset.held_out else {}),
    **({'stopped_early': stopped_early} if stopped_early else {}),
    'importance': {name[len(factor) :]: value for name, value in trained[-1].items() if name.startswith(factor)},
  }
  json_file.write(epath.Path(workdir) / FILE, json.dumps(summary, indent=1))
  distributed.wait_for_all('the summary is written')
  return summary


def has_evaluation(workdir, step):
  """Returns whether metrics.jsonl has the evaluation of `step`, the same in all processes."""
  distributed.wait_for_all('the metrics can be read')
  found = any(row['step'] == step and _is_evaluation(row) for row in metric_log.read(workdir))
  distributed.check_agreement({f'evaluation of step {step} in {metric_log.FILE}': found})
  return found


def _is_evaluation(row):
  return any(name.startswith('test/') for name in row)


def results(rows, steps_per_epoch):
  """Returns last and best evaluation of every network, from the rows of metrics.jsonl.

  'best' is the evaluation with the highest top-1 of that network on that split. On 'test' this is the maximum over
  epochs, as papers print it, picked by looking at the test images. 'chosen' is the one that minival chooses.

  Returns:
    `{'test/student': {'last': {'top1', 'top5'}, 'best': {'top1', 'top5', 'epoch'}}}`, {} before any evaluation.
  """
  found = {}
  evaluations = [row for row in rows if _is_evaluation(row)]
  epochs = {row['step']: row['train/epoch'] for row in rows if 'train/epoch' in row}  # also of another batch size
  for name in evaluations[-1] if evaluations else ():
    if not name.endswith('/top1'):
      continue
    network, held_out = name.removesuffix('/top1'), name.replace('test/', 'minival/')
    for row in evaluations:
      if missing := {name, f'{network}/top5'} - row.keys():
        raise UserError(
          f'{metric_log.FILE}: the evaluation of step {row["step"]} has no {sorted(missing)[0]!r}, which '
          f'that of step {evaluations[-1]["step"]} has; restore the file, or train in another workdir'
        )
    found[network] = {'last': _accuracies(evaluations[-1], network), 'best': _best(evaluations, network, name)}
    if held_out != name and all(held_out in row for row in evaluations):
      found[network]['chosen'] = _best(evaluations[::-1], network, held_out)  # of equal ones, checkpoints keep the last
    for which in found[network].keys() - {'last'}:
      step = found[network][which].pop('step')
      found[network][which]['epoch'] = round(epochs.get(step, step / steps_per_epoch), 3)
  return found


def _accuracies(row, network):
  return {kind: row[f'{network}/{kind}'] for kind in ('top1', 'top5')}


def _best(evaluations, network, by):
  """The first of the evaluations with the highest value of `by`."""
  row = max(evaluations, key=lambda row: row[by])
  return {**_accuracies(row, network), 'step': row['step']}


def closing_table(summary):
  """Returns the summary as text: accuracies, then the importance of each teacher at each tap."""
  lines = [
    f'{"":28}{"last epoch":>20}{"best epoch":>27}',
    f'{"network":28}{"top-1":>10}{"top-5":>10}{"top-1":>10}{"top-5":>10}{"at":>7}',
  ]
  for network, result in summary['results'].items():
    last, best = result['last'], result['best']
    lines.append(
      f'{network:28}{last["top1"]:>8.2f} %{last["top5"]:>8.2f} %{best["top1"]:>8.2f} %'
      f'{best["top5"]:>8.2f} %{best["epoch"]:>7.4g}'
    )
  if 'test' in summary:
    lines.append(f'test: {summary["test"]}')
  for network, result in summary['results'].items():
    if 'chosen' in result:
      chosen = result['chosen']
      lines.append(f'{network + ", as minival chooses":42}{chosen["top1"]:.2f} %  at epoch {chosen["epoch"]:.4g}')
  if 'stopped_early' in summary:
    lines.append(summary['stopped_early'])
  if summary['importance']:
    taps = list(dict.fromkeys(name.split('/')[0] for name in summary['importance']))
    teachers = list(dict.fromkeys(name.split('/')[1] for name in summary['importance']))
    lines += ['', f'{"importance factors":28}' + ''.join(f'{teacher:>16}' for teacher in teachers)]
    for tap in taps:
      factors = [summary['importance'].get(f'{tap}/{teacher}') for teacher in teachers]
      lines.append(f'{tap:28}' + ''.join(f'{"-" if x is None else f"{x:.3f}":>16}' for x in factors))
  return '\n'.join(lines)


def read(workdir, needed=('results',)):
  """Returns the summary of the run in `workdir`, with the `needed` entries, None where it is not finished.

  Raises:
    UserError: it is damaged.
  """
  path = epath.Path(workdir) / FILE
  fix = 'restore it, or delete it: the training command writes it again'
  return json_file.read(path, dict, needed, _is_summary, fix) if path.exists() else None


def _is_number(value):
  return type(value) in (int, float) and math.isfinite(value)


def _is_summary(summary):
  """Whether the entries of a summary have the types that `write` writes."""
  for result in summary['results'].values():
    for which, keys in (
      ('last', ('top1', 'top5')),
      ('best', ('top1', 'top5', 'epoch')),
      ('chosen', ('top1', 'top5', 'epoch')),
    ):
      is_needed = which in result or which != 'chosen'
      if is_needed and not all(_is_number(result[which][key]) for key in keys):
        return False
  factors = summary.get('importance', {})
  return (
    all(name.count('/') == 1 and _is_number(value) for name, value in factors.items())
    and all(_is_number(summary.get(name, 0)) for name in ('steps', 'epochs'))
    and all(isinstance(summary.get(name, ''), str) for name in ('commit', 'device', 'test', 'stopped_early'))
    and all(isinstance(version, str) for version in summary.get('versions', {}).values())
    and isinstance(summary.get('config', {}), dict)
  )
