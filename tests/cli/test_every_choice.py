"""Every value of every choice of every method, quantizer and loss trains and is evaluated through the command.

The runs are generated from the registries, so that a new choice is run without being named here. The choices of one
method are combined: all of them where that takes few runs, else every pair but those of two losses, which meet in a sum
only. Choices of quantizers, losses and shared fields are spread over these runs. The network is as small as can be.
"""

import collections
import functools
import itertools
import json
import math
import sys

import flax.linen as nn
import grain  # noqa: F401  defines flags, which must not vanish with those of a test
import pytest
from absl.testing import flagsaver

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses, main, methods, models, options, quantizers
from cmtkd_jax.models import resnet
from cmtkd_jax.models.bit_policy import QUANTIZER_ROLES
from cmtkd_jax.models.layers import LayerFactory
from cmtkd_jax.models.network import Network
from cmtkd_jax.quantizers import Quantizer

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')

MOST = 8  # runs for all combinations of a method's choices
BASE = {
  'data.name': 'generated:8x8x1:4:16',
  'batch_size': 8,
  'eval_batch_size': 8,
  'duration': '1 epochs',
  'log_every': '1 steps',
  'eval_every': '',
  'checkpoint_every': '',
  'data.augment': 'none',
  'method.ctkd.teacher_model': 'resnet8',
  'method.ctkd.shared_stem': False,
}
# What a choice needs next to it; {run} is a finished run, {teachers} one that also has a network 'teacher'.
NEEDS = {
  ('method.name', 'kd'): {'teacher_workdirs': ('{run}',)},
  ('method.name', 'average_teacher'): {'teacher_workdirs': ('{run}', '{run}')},
  ('method.name', 'ctkd'): {'teacher_workdirs': ('{run}',)},
  ('method.name', 'guided'): {'init_from': '{run}'},
  ('method.kdcl.ensemble', 'general'): {'data.minival': 0.4},
  ('method.apprentice.scheme', 'B'): {'teacher_workdirs': ('{run}',)},
  ('method.apprentice.scheme', 'C'): {'teacher_workdirs': ('{run}',), 'init_from': '{run}'},
  ('method.qkd.phase', 'tutoring'): {'init_from': '{teachers}'},
  ('data.augment', 'resize_crop_flip'): {'data.resize': 8},
  ('optimizer.schedule', 'cosine'): {'optimizer.decay_at': ''},
}
LOSSES = {'feature_loss': losses.FEATURE_LOSSES, 'logit_loss': losses.LOGIT_LOSSES}
USES = {'cmtkd': ('feature_loss', 'logit_loss'), 'kd': ('logit_loss',), 'average_teacher': ('logit_loss',)}
# Fields whose choices other tests run with real files or larger networks.
ELSEWHERE = (
  'method.name',
  'model.name',
  'data.workers',
  'data.decoder',
  'quantizer.name',
  'quantizer.weights',
  'quantizer.activations',
  'student.weight_bits',
  'student.activation_bits',
)


def products(choices):
  """All combinations of `{field: values}` where they are few, else some in which every pair of values meets."""
  combinations = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
  if len(combinations) <= MOST:
    return combinations
  pairs_of = lambda row: {
    (a, b)
    for a, b in itertools.combinations(sorted(row.items(), key=str), 2)
    if not a[0].endswith('_loss.name') or not b[0].endswith('_loss.name')
  }
  missing, chosen = set().union(*map(pairs_of, combinations)), []
  while missing:
    best = max(combinations, key=lambda row: len(pairs_of(row) & missing))
    chosen.append(best)
    missing -= pairs_of(best)
  return chosen


def choices_of(cls, prefix):
  """`{field: values}` of a section, without those of which other tests run every value: bit-widths, backbones."""
  fields = [field for field in options.fields(cls) if not field.name.endswith(('_bits', '_model'))]
  choices = {f'{prefix}.{field.name}': field.choices for field in fields if field.choices}
  if issubclass(cls, Quantizer):
    choices |= {f'{prefix}.{field.name}': (False, True) for field in fields if isinstance(field.default, bool)}
  return choices


def shared_choices():
  """`{field: values}` of the sections of which nothing is selected."""
  return {
    name: field.choices
    for name, field in config_lib.fields().items()
    if field.choices and name not in ELSEWHERE and name.count('.') < 2 and '_loss.' not in name
  }


def quantizer_changes():
  """`{role: [changes to the configuration]}`: every quantizer with every combination of its choices."""
  found = {}
  for role in QUANTIZER_ROLES:
    for name, module in quantizers.QUANTIZERS.items():
      if cls := getattr(module, role.capitalize(), None):
        options = products(choices_of(cls, f'quantizer.{name}.{role}'))
        found.setdefault(role, []).extend({f'quantizer.{role}s': name, **option} for option in options)
  return found


def widths(changes):
  """Bit-widths that the quantizers of a run have, and which of them other networks and outer layers can take."""
  w, a = (cls.bit_widths for cls in _classes(changes))
  pair = (2 if 2 in w else w[0], 2 if 2 in a else a[0])
  higher = (4, 4) if 4 in w and 4 in a else pair
  found = {
    'student.weight_bits': pair[0],
    'student.activation_bits': pair[1],
    'method.cmtkd.teacher_bits': (higher,),
    'method.speq.high_bits': a[-1],
  }
  peers = next((bits for bits in (4, *range(1, 9)) if bits in w and bits in a), 2)
  return (
    found
    | {'method.dml.peer_bits': (peers,), 'method.kdcl.peer_bits': (peers,)}
    | ({} if 8 in w else {'bits.first_last': 32})
  )


def shared_changes():
  """[[changes]]: of each shared field its choices; of each loss the combinations of its own."""
  return [[{field: value} for value in values] for field, values in shared_choices().items()]


def method_choices(method, settings):
  """`{field: values}` of a method and of which losses it uses."""
  return choices_of(settings, f'method.{method}') | {
    f'{kind}.name': config_lib.fields()[f'{kind}.name'].choices for kind in USES.get(method, ())
  }


def loss_changes(combination):
  """[changes] in which every choice of the losses that a run uses comes once."""
  found = {}
  for kind, table in LOSSES.items():
    if cls := table.get(combination.get(f'{kind}.name')):
      found |= choices_of(cls, f'{kind}.{combination[f"{kind}.name"]}')
  count = max(map(len, found.values()), default=1)
  return [{field: values[i % len(values)] for field, values in found.items()} for i in range(count)]


def fits(changes):
  """Returns whether the quantizers of a run have what its method asks of them."""
  weight, activation = _classes(changes)
  if changes['method.name'] == 'speq':  # switches widths, which values of one width's own would not
    return not (activation.learned or activation.fitted)
  return changes['method.name'] not in ('dml', 'kdcl') or not set(weight.bit_widths).isdisjoint(activation.bit_widths)


def _classes(changes):
  return [getattr(quantizers.QUANTIZERS[changes[f'quantizer.{role}s']], role.capitalize()) for role in QUANTIZER_ROLES]


def all_runs():
  """[changes to the base configuration] of every run."""
  used = collections.Counter()

  def least_used(values):
    value = min(values, key=lambda value: used[str(value)])
    used[str(value)] += 1
    return value

  runs, by_role = [], quantizer_changes()
  for method, module in methods.METHODS.items():
    combinations = products(method_choices(method, module.Settings))
    starts = [combination | least_used(loss_changes(combination)) for combination in combinations]
    starts += [
      combination | changes
      for combination in combinations
      for changes in loss_changes(combination)
      if not used[str(changes)] and least_used([changes])
    ]
    for start in starts:
      run = {'method.name': method, **start} | least_used(by_role['weight'])
      run |= least_used([changes for changes in by_role['activation'] if fits(run | changes)])
      for changes in shared_changes():
        run |= least_used(changes)
      for chosen in list(run.items()):
        run |= NEEDS.get(chosen, {})
      runs.append(run | widths(run))
  return runs


RUNS = all_runs()


def command(workdir, changes):
  """What the command returns."""
  arguments = [
    f'--config.{field}={value!r}' if isinstance(value, tuple) else f'--config.{field}={value}'
    for field, value in {**BASE, **changes}.items()
  ]
  with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
    patch.setattr(sys, 'argv', ['main', '--config=configs/digits_resnet8.py:smoke', f'--workdir={workdir}', *arguments])
    return main.main(sys.argv)


class Stage(nn.Module):
  """A convolution, which a quantizer of activations follows: the least in which both roles have their place."""

  layers: LayerFactory

  @nn.compact
  def __call__(self, x, train):
    x = self.layers.conv(8, 3, stride=2, name='conv')(x, train)
    return self.layers.norm(name='norm')(x, train)


def tiny(num_classes, layers, width, stem, block_order):
  """A network of one stage."""
  return Network(
    (1,),
    (functools.partial(Stage, layers),),
    layers.activation,
    functools.partial(resnet.PooledHead, num_classes, layers),
  )


@pytest.fixture(scope='module', autouse=True)
def small_network():
  """The tiny network in place of ResNet8."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'resnet8', tiny)
    yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """`{name: directory}` of the runs that others start from."""
  directory = tmp_path_factory.mktemp('trained')
  full = {'student.weight_bits': 32, 'student.activation_bits': 32}
  assert command(directory / 'run', {'method.name': 'single', **full}) == 0
  assert command(directory / 'teachers', {'method.name': 'qkd', **full}) == 0
  return {name: str(directory / name) for name in ('run', 'teachers')}


@pytest.mark.parametrize('number', range(len(RUNS)), ids=lambda i: f'{i}-{RUNS[i]["method.name"]}')
def test_run(number, trained, tmp_path, capsys):
  changes = {field: _named(value, trained) for field, value in RUNS[number].items()}
  assert command(tmp_path / 'run', changes) == 0, capsys.readouterr().err.splitlines()[-1]
  rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  trained, evaluated = ([row for row in rows if name in row] for name in ('train/loss', 'test/student/top1'))
  assert trained and all(math.isfinite(row['train/loss']) for row in trained) and len(evaluated) == 1


def _named(value, directories):
  if isinstance(value, tuple):
    return tuple(_named(item, directories) for item in value)
  return value.format(**directories) if isinstance(value, str) else value


def test_every_choice_is_run(capsys):
  """Of methods, quantizers, losses and shared fields; prints how many combinations there are."""
  wanted = {('method.name', name) for name in methods.METHODS}
  sections = {f'method.{name}': module.Settings for name, module in methods.METHODS.items()}
  wanted |= {(f'{kind}.name', name) for kind, table in LOSSES.items() for name in table}
  sections |= {f'feature_loss.{name}': cls for name, cls in losses.FEATURE_LOSSES.items()}
  sections |= {f'logit_loss.{name}': cls for name, cls in losses.LOGIT_LOSSES.items()}
  for name, module in quantizers.QUANTIZERS.items():
    for role in QUANTIZER_ROLES:
      if cls := getattr(module, role.capitalize(), None):
        sections[f'quantizer.{name}.{role}'] = cls
        wanted.add((f'quantizer.{role}s', name))
  for section, cls in sections.items():
    wanted |= {(field, value) for field, values in choices_of(cls, section).items() for value in values}
  wanted |= {(field, value) for field, values in shared_choices().items() for value in values}
  seen = {pair for run in RUNS for pair in run.items()}
  assert sorted(wanted - seen, key=str) == []
  with capsys.disabled():
    print(f' {len(RUNS)} runs for {len(wanted)} choices ', end='')
