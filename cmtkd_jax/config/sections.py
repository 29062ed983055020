"""Every section of the configuration and the class of its options; the whole is a tree of them."""

import dataclasses
import functools

from cmtkd_jax import data, losses, methods, models, options, quantizers
from cmtkd_jax.config import recipes
from cmtkd_jax.models import layers
from cmtkd_jax.models.bit_policy import BIT_WIDTHS, FULL_PRECISION, QUANTIZER_ROLES
from cmtkd_jax.options import Options, option

_DURATION = "as '120 epochs', '3000 steps' or '1000000 examples'"


@dataclasses.dataclass(frozen=True)
class Run(Options):
  """The run."""

  seed: int = option(0, 'seed of parameters, order of the images, augmentation', least=0, below=2**32)
  # Parameters, statistics, the classifier and losses are float32. bfloat16 has 8 significant bits: enough for the
  # levels of any width, see `models.products`, but not for mixtures of teachers.
  dtype: str = option('float32', 'compute type of convolutions', choices=('float32', 'bfloat16'))
  init_from: str = option('', "start from trained networks: a work directory, or 'student=DIR,teacher1_4bit=DIR'")
  init_from_ignore: str = option('', 'parameters that may be missing or mismatched there', regex=True)
  teacher_workdirs: tuple = option((), 'work directories of finished runs to learn from', items='runs/teacher')
  prerequisites: dict = option(
    {}, "runs that are trained first, {name: changes}; '{name}' in init_from and teacher_workdirs is a directory"
  )
  batch_size: int = option(64, 'images of a training step, on all devices', least=1)
  eval_batch_size: int = option(256, 'images of an evaluation step, on all devices', least=1)
  grad_accum_steps: int = option(1, 'parts of a batch that are computed one after the other, to save memory', least=1)
  remat: str = option('', "networks whose activations are computed again backward, such as 'teacher.*'", regex=True)
  duration: str = option('60 epochs', f'length of the training, {_DURATION}', durations='one')
  log_every: str = option('50 steps', 'how often training metrics are logged', durations='one')
  label_smoothing: float = option(
    0.0, 'share of the label that cross entropies spread over all classes', least=0, below=1
  )
  bn_reestimation: int = option(
    0, 'training batches on which normalizations measure their statistics again before an evaluation', most=10**6
  )
  early_stopping: str = option(
    '', 'training ends when the student has not improved on minival for this long', durations='one'
  )
  eval_every: str = option('10 epochs', 'how often all networks are evaluated', durations='one')
  checkpoint_every: str = option('10 epochs', 'how often a checkpoint is saved', durations='one')
  max_checkpoints: int = option(2, 'how many of the newest checkpoints are kept, in addition to the best', least=1)
  profile: str = option('', "'10 steps' records ten with JAX's profiler into WORKDIR/profile", durations='one')
  allow_config_changes: bool = option(False, 'resume in a work directory of another configuration')
  tensorboard: bool = option(True, 'also write TensorBoard files, if clu and TensorFlow are installed')

  def __post_init__(self):
    super().__post_init__()
    if self.batch_size % self.grad_accum_steps:
      raise ValueError(
        f'grad_accum_steps={self.grad_accum_steps} does not divide config.batch_size={self.batch_size}; take a divisor'
      )


@dataclasses.dataclass(frozen=True)
class Model(Options):
  """The backbone, which all networks share."""

  name: str = option('resnet8', 'architecture', choices=models.MODELS)
  width: float = option(1.0, 'factor on the channels of every layer', least=0.01, most=64)
  stem: str = option(
    'cifar',
    "first layers: at full resolution, or 'imagenet' with strides (ResNet: 7x7 and pooling)",
    choices=('cifar', 'imagenet'),
  )
  block_order: str = option('pre', 'order of normalization and quantizer in a block', choices=models.ORDERS)
  init: str = option('he_fan_out', 'initial weights', choices=layers.INITIALIZERS)
  bn_affine: bool = option(True, 'whether batch normalization has scale and bias')
  bn_momentum: float = option(0.9, 'momentum of the running statistics', least=0, below=1)
  bn_groups: int = option(1, 'parts of a batch that are normalized separately; 1 = the whole batch', least=1)


@dataclasses.dataclass(frozen=True)
class Student(Options):
  """Bits of the network that is deployed."""

  weight_bits: int = option(2, 'bits of the weights; 32 = full precision', choices=BIT_WIDTHS)
  activation_bits: int = option(2, 'bits of the activations; 32 = full precision', choices=BIT_WIDTHS)


@dataclasses.dataclass(frozen=True)
class Bits(Options):
  """Layers that have other bits than their network."""

  first_last: int = option(FULL_PRECISION, 'weight bits of the first and last layer', choices=(FULL_PRECISION, 8))
  shortcut: str = option(
    'quantized', 'bits of the 1x1 convolutions of shortcuts', choices=('quantized', 'full_precision')
  )
  rules: tuple = option((), "(regex on 'student/stage1/..', weight bits, activation bits); the first match wins")


@dataclasses.dataclass(frozen=True)
class Quantizer(Options):
  """The quantizer of all networks."""

  name: str = option('hwgq', 'quantizer of weights and activations', choices=quantizers.QUANTIZERS)
  weights: str = option('', 'another quantizer for weights', choices=('', *quantizers.QUANTIZERS))
  activations: str = option('', 'another quantizer for activations', choices=('', *quantizers.QUANTIZERS))


def readers(section):
  """Returns the names of the methods that read a section in addition to their own, as text."""
  return ', '.join(name for name, method in methods.METHODS.items() if section in getattr(method, 'READS', ()))


@dataclasses.dataclass(frozen=True)
class FeatureLoss(Options):
  """The distance between feature maps."""

  name: str = option(
    'attention',
    f'distance between feature maps, of {readers("feature_loss")}',
    choices=('none', *losses.FEATURE_LOSSES),
  )


@dataclasses.dataclass(frozen=True)
class LogitLoss(Options):
  """The distance between logits."""

  name: str = option(
    'kl_divergence', f'distance between logits, of {readers("logit_loss")}', choices=losses.LOGIT_LOSSES
  )


@dataclasses.dataclass(frozen=True)
class Method(Options):
  """The method: which networks train together, and on which loss."""

  name: str = option('cmtkd', 'which networks train together', choices=methods.METHODS)


@dataclasses.dataclass(frozen=True)
class Optimizer(Options):
  """How gradients become updates."""

  name: str = option('sgd', 'SGD with momentum, AdamW or LAMB', choices=('sgd', 'adamw', 'lamb'))
  learning_rate: float = option(0.1, 'initial learning rate; of adamw and lamb about 0.001', above=0)
  momentum: float = option(0.9, 'momentum; decay of the first moment, beta1', least=0, below=1)
  beta2: float = option(
    0.999, 'decay of the second moment, of adamw and lamb', least=0, below=1, unread_with={'name': ('sgd',)}
  )
  nesterov: bool = option(False, 'Nesterov momentum')
  schedule: str = option('step', "learning rate: steps at decay_at, or a 'cosine' to 0", choices=('step', 'cosine'))
  decay_at: str = option('', "when the rate falls, such as '50, 100 epochs'; '' = never", durations='several')
  decay_factor: float = option(
    0.1, 'factor on the rate at each step of the schedule', above=0, unread_with={'decay_at': ('',)}
  )
  warmup: str = option('', 'linear warm-up from 0', durations='one')
  importance_lr_factor: float = option(0.1, 'learning rate of importance factors, relative to the rest')
  quantizer_lr_factor: float = option(
    1.0, "learning rate of learned values of quantizers but PACT's clip, relative to the rest"
  )
  weight_decay: float = option(1e-4, 'L2 regularization of the weights; of adamw and lamb decoupled, times the rate')
  weight_decay_low_bits: float = option(25e-6, 'the same for networks whose weights have 1 or 2 bits')
  quantizer_weight_decay: float = option(
    0.0, "the same for learned values of quantizers; PACT's clip takes that of its network"
  )
  grad_clip_norm: float = option(None, 'largest norm of all gradients together; None = no limit', above=0)

  def __post_init__(self):
    super().__post_init__()
    if self.name == 'lamb' and self.nesterov:
      raise ValueError("nesterov=True is not defined for config.optimizer.name='lamb'; set it to False")
    if self.schedule == 'cosine' and self.decay_at:
      raise ValueError(
        f"decay_at={self.decay_at!r} contradicts config.optimizer.schedule='cosine'; set it to '', or the schedule "
        "to 'step'"
      )


@dataclasses.dataclass(frozen=True)
class Table(Options):
  """A table of runs, `--mode=table`; see experiments/table.py."""

  title: str = option('', 'title')
  seeds: tuple = option((0, 1, 2), 'seeds of each run', items=0)
  only: tuple = option((), 'names of the runs to train; () = all', items='single')
  runs: dict = option({}, '{name: changes to this configuration}')
  baseline: str = option('', 'run that the others are compared with, seed by seed')
  split: str = option(
    'test', "images of the results; 'minival', held out of train, to choose a setting on", choices=('test', 'minival')
  )
  lines: tuple = option((), 'rows: (title, W/A bits, run, network, published (top-1, top-5) or (None, None)) each')

  def __post_init__(self):
    super().__post_init__()
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f'seeds={self.seeds!r}; give one or more different numbers')
    for field, names in (('only', self.only), ('baseline', (self.baseline,) if self.baseline else ())):
      for name in names:
        if name not in self.runs:
          raise ValueError(
            f'{field}={getattr(self, field)!r}: there is no run {name!r}; runs are {", ".join(self.runs) or "none"}'
          )


SELECTING = {'method': Method, 'feature_loss': FeatureLoss, 'logit_loss': LogitLoss, 'quantizer': Quantizer}


def selections():
  """Returns the sections of which a `name` chooses one: `{'method.kd': class}`.

  Raises:
    ValueError: a file, such as quantizers/weights.py, has the name of a field, or is named none.py.
  """
  chosen = {
    'method': {name: module.Settings for name, module in methods.METHODS.items()},
    'feature_loss': losses.FEATURE_LOSSES,
    'logit_loss': losses.LOGIT_LOSSES,
    'quantizer': {
      f'{name}.{role}': cls
      for name, module in quantizers.QUANTIZERS.items()
      for role in QUANTIZER_ROLES
      if (cls := getattr(module, role.capitalize(), None))
    },
  }
  for section, table in chosen.items():
    for name in {'none', *(field.name for field in options.fields(SELECTING[section]))}:
      if name in {entry.partition('.')[0] for entry in table}:
        raise ValueError(f'{section} {name!r}: config.{section} itself uses this name; give the file another one')
  return {f'{section}.{name}': cls for section, table in chosen.items() for name, cls in table.items()}


def selector(section, values):
  """Returns the field that selects between `section`, such as 'quantizer.lsq.weight', and its alternatives.

  values: flat fields of one run. Of a quantizer the field of its role comes first, where it is set.
  """
  kind, _, *role = section.split('.')
  own = f'{kind}.{role[0]}s' if role else ''
  return own if own and values[own] else f'{kind}.name'


SECTIONS = {
  '': Run,
  'data': data.Settings,
  'model': Model,
  'student': Student,
  'bits': Bits,
  **SELECTING,
  'optimizer': Optimizer,
  'averaging': recipes.Averaging,
  'freezing': recipes.Freezing,
  'beta_schedule': recipes.LossSchedule,
  'gamma_schedule': recipes.LossSchedule,
  'temperature_schedule': recipes.LossSchedule,
  'table': Table,
  **selections(),
}  # {section: its class}; a section inside another one is named 'method.kd'
SCHEDULES = tuple(name for name, section in SECTIONS.items() if section is recipes.LossSchedule)


@functools.cache
def fields():
  """Returns `{'optimizer.momentum': options.Field}` of the whole configuration."""
  return {
    f'{section}.{field.name}'.lstrip('.'): field for section, cls in SECTIONS.items() for field in options.fields(cls)
  }
