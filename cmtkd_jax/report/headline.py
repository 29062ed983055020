"""What a reader should know first: the result in one sentence, and what keeps it from meaning anything."""

import math

from cmtkd_jax.config import durations
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import FULL_PRECISION
from cmtkd_jax.report import model_size
from cmtkd_jax.report.page import escape
from cmtkd_jax.runs import run_reader, run_summary

_SMOKE_STEPS = 3


def summary(run):
  """Returns the result in one sentence, HTML; '' before the first evaluation."""
  points = {point.network: point for point in model_size.points(run)}
  if STUDENT not in points:
    return ''
  student = points[STUDENT]
  when = 'last epoch' if run.summary else 'last evaluation so far'
  text = f'The {_student(run.config)} reaches <strong>{student.top1:.2f} %</strong> top-1 on test ({when})'
  if student.bits:
    text += f' in {student.kib:,.1f} KiB'
    if student.ratio >= 1.05:
      text += f', {student.ratio:.1f} times smaller than in full precision'
  teachers = [point for network, point in points.items() if 'teacher' in network]
  if teachers:
    best = max(teachers, key=lambda point: point.top1)
    name = escape(run_reader.display_name(best.network))
    if len(teachers) > 1:
      name = f'best teacher ({name})'
    text += f'; its {name} reaches {best.top1:.2f} %'
  return f'<p class="headline">{text}.</p>'


def _student(config):
  name = run_reader.display_name(STUDENT)
  weights, activations = config.student.weight_bits, config.student.activation_bits
  if weights == activations:
    return f'full-precision {name}' if weights == FULL_PRECISION else f'{weights}-bit {name}'
  return f'{name} ({weights}-bit weights, {activations}-bit activations)'


def notices(run):
  """Returns the warnings above everything else, HTML: not finished, or too little to mean anything."""
  return ''.join(
    f'<p class="unfinished"><strong>{title}</strong> {text}</p>'
    for title, text in (_unfinished(run), _meaningless(run))
    if title
  )


def _unfinished(run):
  if run.summary:
    return '', ''
  epoch = epochs(run)
  so_far = f'what is here was logged up to epoch {epoch:.4g}' if epoch else 'nothing was logged yet'
  return 'This run is not finished:', (
    f'there is no {run_summary.FILE}; of {escape(run.config.duration)}, {so_far}. The command that started it '
    'resumes it.'
  )


def _meaningless(run):
  reasons = []
  if run.config.data.name.startswith('generated:'):
    reasons.append(f'the images are random ({escape(run.config.data.name)})')
  if is_smoke_sized(run):
    reasons.append(f'the run is as short as a smoke test ({escape(run.config.duration)})')
  return ('Its accuracies mean nothing:', f'{" and ".join(reasons)}.') if reasons else ('', '')


def is_smoke_sized(run):
  """Whether the whole run is shorter than one epoch, or has at most 3 steps; False before it is known."""
  per_epoch = run.steps_per_epoch
  if not per_epoch or not 0.5 <= per_epoch < math.inf:
    return False
  try:
    steps = durations.parse_one(
      run.config.duration, 'config.duration', steps_per_epoch=round(per_epoch), batch_size=run.config.batch_size
    )
  except UserError:
    return False
  return steps <= _SMOKE_STEPS or steps < round(per_epoch)


def epochs(run):
  """Returns the epochs that were trained so far; 0 before the first row of training."""
  if 'epochs' in run.summary:
    return run.summary['epochs']
  return run.rows[-1]['step'] / run.steps_per_epoch if run.steps_per_epoch else 0
