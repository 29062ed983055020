"""Progress of long work on the terminal: one line that is rewritten, or a log line now and then."""

import math
import os
import shutil
import sys
import time

_LOG_SECONDS = 10.0  # Between lines of a log.
_TERMINAL_SECONDS = 0.1  # Between rewrites of the terminal line.
_CLEAR = '\r\x1b[K'
_ETA = '  ETA'  # begins the last part of a line


class Progress:
  """Shows how far training is, or what else takes long.

  Args:
    total_steps: steps of the whole run.
    start_step: step the run starts or resumes from.
    stream: where to write; None for standard error.
    steps_per_epoch: to show epochs; None hides them.
    enabled: False writes nothing (processes other than the first).
    clock: function that returns seconds.
    unit: what is counted.
    images_per_step: to show the time of a step; None hides it.
  """

  def __init__(
    self,
    total_steps,
    start_step=0,
    stream=None,
    steps_per_epoch=None,
    enabled=True,
    clock=time.monotonic,
    unit='step',
    images_per_step=None,
  ):
    self._stream = sys.stderr if stream is None else stream
    self._terminal = self._stream.isatty() and os.environ.get('TERM') != 'dumb'
    self._seconds = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
    self._total = total_steps
    self._steps_per_epoch, self._images_per_step = steps_per_epoch, images_per_step
    self._enabled = enabled
    self._clock, self._unit = clock, unit
    self._step = start_step
    self._origin = None  # (seconds, step) of the first update, after what only the first step does
    self._line = ''
    self._shown = ''
    self._shown_at = -math.inf

  def update(self, step, images_per_second, **scalars):
    """Shows a step.

    Args:
      step: steps done.
      images_per_second: throughput to show; 0 where it is not known.
      **scalars: numbers to show to four digits, or texts to show as they are.
    """
    now = self._clock()
    self._step = step
    if self._origin is None:
      self._origin = now, step
    self._line = self._describe(images_per_second, scalars)
    if step >= self._total or now - self._shown_at >= self._seconds:
      self._show(now)

  def meanwhile(self, text):
    """Shows other work than steps, such as an evaluation, as often as a step: in place of the line, or in the log."""
    now = self._clock()
    if not self._enabled or now - self._shown_at < self._seconds:
      return
    self._stream.write(_CLEAR + _cut(text) if self._terminal else f'{text}\n')
    self._stream.flush()
    self._shown_at = now
    if self._terminal:
      self._shown = text

  def eta(self):
    """Seconds to the end at the mean pace since the first update, evaluations included; None at the start."""
    if self._origin is None or self._step <= self._origin[1]:
      return None
    seconds, step = self._origin
    return (self._clock() - seconds) / (self._step - step) * max(self._total - self._step, 0)

  def note(self, text):
    """Prints a line of its own above the progress line."""
    if self._enabled:
      self._stream.write(f'{_CLEAR}{text}\n{_cut(self._shown)}' if self._terminal else f'{text}\n')
      self._stream.flush()

  def close(self):
    """Shows the last step, if it was not yet, and ends the line."""
    if self._line:
      if self._terminal or self._line != self._shown:
        self._line = self._line.partition(_ETA)[0]  # no more steps come
        self._show(self._clock())
      if self._terminal and self._enabled:
        self._stream.write('\n')
        self._stream.flush()
    elif self._shown and self._enabled:  # what was shown meanwhile, on a terminal
      self._stream.write(_CLEAR)
      self._stream.flush()
    self._line = self._shown = ''

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def _describe(self, images_per_second, scalars):
    parts = [f'{self._unit} {self._step}/{self._total}', f'{100 * self._step // max(self._total, 1)} %']
    if self._steps_per_epoch:
      now, end = (steps / self._steps_per_epoch for steps in (self._step, self._total))
      rounded = f'{now:.1f}' if round(now, 1) < end else f'{end:.4g}'  # 0.75 epochs do not end at 0.8
      parts.append(f'epoch {rounded}/{end:.4g}')
    if images_per_second:
      parts.append(f'{images_per_second:.0f} img/s' if images_per_second >= 10 else f'{images_per_second:.2g} img/s')
    if images_per_second and self._images_per_step:
      seconds = self._images_per_step / images_per_second
      parts.append(f'{1e3 * seconds:.0f} ms/{self._unit}' if seconds < 1 else f'{seconds:.1f} s/{self._unit}')
    parts += [
      f'{name} {value}' if isinstance(value, str) else f'{name} {float(value):.4g}' for name, value in scalars.items()
    ]
    eta = self.eta()
    if eta is not None and self._step < self._total:
      parts.append(f'ETA {format_duration(eta)}')
    return '  '.join(parts)

  def _show(self, now):
    if not self._enabled or self._line == self._shown:
      return
    self._stream.write(_CLEAR + _cut(self._line) if self._terminal else self._line + '\n')
    self._stream.flush()
    self._shown = self._line
    self._shown_at = now


def _cut(line):
  """As many parts as the terminal holds, the ETA before the others: a line that wraps cannot be rewritten."""
  room = shutil.get_terminal_size().columns - 1
  if len(line) <= room:
    return line
  head, mark, eta = line.partition(_ETA)
  return (head[: max(room - len(mark + eta), 0) + 2].rpartition('  ')[0] + mark + eta)[:room]


def format_duration(seconds):
  """A duration for people: '12.3 s', '1 min 20 s', '3 h 5 min' or '2 d 4 h'; '?' when it is no such thing."""
  if not 0 <= seconds < math.inf:
    return '?'
  if round(seconds, 1) < 60:
    return f'{seconds:.1f} s'
  seconds = round(seconds)
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60} s'
  minutes = round(seconds / 60)
  if minutes < 1440:
    return f'{minutes // 60} h {minutes % 60} min'
  hours = round(minutes / 60)
  return f'{hours // 24} d {hours % 24} h'
