"""Options of training recipes that no method needs: averages of the weights, schedules of loss weights."""

import dataclasses

from cmtkd_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Averaging(Options):
  """The average of all networks over training, which is evaluated, kept as best, exported and handed on."""

  name: str = option(
    'none',
    "'ema', an exponential moving average; 'swa', the mean of the networks at regular steps",
    choices=('none', 'ema', 'swa'),
  )
  start: str = option(
    '',
    "when it begins, such as '90 epochs'; '' = at once, swa after `every`",
    durations='one',
    unread_with={'name': ('none',)},
  )
  decay: float = option(
    0.999,
    'share of the old average that one step of ema keeps',
    least=0,
    below=1,
    unread_with={'name': ('none', 'swa')},
  )
  every: str = option(
    '1 epochs', 'how often swa takes the networks', durations='one', unread_with={'name': ('none', 'ema')}
  )


@dataclasses.dataclass(frozen=True)
class LossSchedule(Options):
  """How a weight or temperature of the loss changes during training, as factors on its value."""

  warmup: str = option('', 'linear change from `first_factor` to the value itself', durations='one')
  first_factor: float = option(0.0, 'factor at the first step of the warm-up')
  change_at: str = option('', "when it changes, such as '50, 100 epochs'; '' = never", durations='several')
  change_factor: float = option(0.5, 'factor at each of these changes', above=0)


@dataclasses.dataclass(frozen=True)
class Freezing(Options):
  """Freezing of quantized weights that oscillate between two levels."""

  threshold: float = option(
    0.0, 'frequency of oscillation above which a weight is frozen, such as 0.02; 0 = none is', least=0, below=1
  )
  momentum: float = option(
    0.01, 'weight of the newest step in the frequency', above=0, most=1, unread_with={'threshold': (0,)}
  )
  max_bits: int = option(4, 'most bits of weights that are frozen', least=1, most=8, unread_with={'threshold': (0,)})
