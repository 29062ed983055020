"""`--mode=plan`: what a step needs, without data, on devices that may not be there."""

import importlib.util
import re

import jax
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax.cli import commands
from cmtkd_jax.cli.flags import Command
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import requirements
from cmtkd_jax.runtime import chips
from cmtkd_jax.training import loop, memory, teachers
from tests import networks
from tests.experiments.test_chain import load, smoke_config

pytestmark = pytest.mark.usefixtures('eight_devices')

MIB = 2**20

small_network = networks.named(networks.two_convolutions, 'resnet8')


def one_network():
  config = smoke_config()
  config.method.name = 'single'
  return config


def plan(changes, topology=None):
  config = one_network()
  config.update_from_flattened_dict(changes)
  commands.run_plan(Command('plan', config, '/nowhere', topology=topology))


def test_planned_memory_is_what_the_run_prints(tmp_path, capsys):
  config = one_network()
  config.duration = '1 steps'
  found = requirements.find(config, tmp_path)
  assert not list(tmp_path.iterdir())  # a plan leaves nothing behind
  loop.train_and_evaluate(config, tmp_path)
  printed = re.search(r'each device: ([\d,]+ .iB) for state and batch, ([\d,]+ .iB)', capsys.readouterr().err)
  assert printed.groups() == (memory.size_text(found.held), memory.size_text(found.temporary))
  assert (found.devices, found.batch, found.steps) == (8, config.batch_size // 8, 1)
  assert found.temporary > 0 and found.flops > 0 and found.traffic > 0
  # Gradients are summed over the devices, in float32, and not much else is.
  parameters = config_size(config)
  assert 4 * parameters < found.collectives < 4.4 * parameters


def test_a_step_in_parts_has_the_operations_of_a_whole_one():
  config = one_network()
  whole = requirements.find(config, '/nowhere')
  config.grad_accum_steps = 2
  parts = requirements.find(config, '/nowhere')
  assert abs(parts.flops / whole.flops - 1) < 0.2  # the optimizer counts twice
  assert parts.traffic > 0.9 * whole.traffic and 1.9 * whole.collectives < parts.collectives < 2.1 * whole.collectives


def test_parts_that_do_not_divide_among_the_devices():
  """16 images in 4 parts on 8 devices: half of the devices compute a part, as the run does."""
  config = one_network()
  whole = requirements.find(config, '/nowhere')
  config.grad_accum_steps = 4
  parts = requirements.find(config, '/nowhere')
  assert abs(parts.flops / whole.flops - 1) < 0.5 and isinstance(parts.collectives, int)


def config_size(config):
  """Parameters of the networks that train together."""
  from cmtkd_jax.training import build

  method = build.create_method(config, 10)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), 'float32')
  variables = jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_the_command_needs_no_data(capsys):
  # More images than memory would hold.
  plan({'data.name': 'generated:512x512x1:10:20000', 'data.resize': 8})
  text = capsys.readouterr().out
  lines = dict(line.strip().split('  ', 1) for line in text.splitlines() if line.startswith('  '))
  assert list(lines) == ['devices', 'memory', 'operations', 'memory traffic', 'collectives', 'time']
  assert lines['devices'].strip() == '8 x cpu, 2 images a step on each'
  assert 'fits into' in lines['memory']
  assert 'speed of cpu is not listed' in lines['time']


def test_teachers_that_are_trained_first_need_not_be_there():
  config = load('digits_kd', 'smoke')
  config.model.width = 1 / 16
  found = requirements.find(config, '/nowhere')
  alone = requirements.find(one_network(), '/nowhere')
  assert found.flops > 1.2 * alone.flops  # the teacher's forward pass


@pytest.mark.parametrize(
  'changes, topology, message',
  [
    ({'data.name': 'folder:/nowhere'}, None, 'to plan without the data, set config.data.name='),
    ({}, 'v5e', "topology='v5e' is not a slice of TPUs"),
    ({'batch_size': 12}, None, 'does not divide over 8 devices'),
    # As training refuses it.
    ({'early_stopping': '1 epochs'}, None, 'config.data.minival=0.0'),
    ({'bits.rules': (('nowhere', 4, 4),)}, None, 'config.bits.rules'),
  ],
)
def test_what_cannot_be_planned(changes, topology, message):
  with pytest.raises(UserError, match=re.escape(message)):
    plan(changes, topology)


def test_a_table_of_runs_is_refused():
  with pytest.raises(UserError, match='name the configuration of one run'):
    commands.run_plan(Command('plan', load('table2_resnet18_cifar100')))


found = requirements.Requirements(
  devices=4,
  kind='TPU v5 lite',
  batch=64,
  held=300 * MIB,
  temporary=600 * MIB,
  images=100 * MIB,
  available=16 * 2**30,
  chip=chips.Chip(memory=16 * 2**30, flops=2e14, bandwidth=8e11, links=4e11),
  flops=8e11,
  traffic=1.6e10,
  collectives=10**8,
  steps=3600 * 50,
)


def test_time_by_hand():
  # 0.8 T / 200 T = 4 ms; 16 G / 800 G = 20 ms; 100 MB are sent twice and received twice over 400 G: 1 ms.
  assert found.seconds == {'products': 0.004, 'memory': 0.02, 'other chips': 0.001}
  text = requirements.render(found)
  assert '1,000 MiB: state and batch 300 MiB, temporary buffers 600 MiB, images 100 MiB; fits into 16,384 MiB' in text
  assert '20.0 ms by the roofline, for memory (products 4.0, memory 20.0, other chips 1.0 ms); 12,800 images/s' in text
  assert '1 h 0 min at that pace, for 180,000 steps' in text
  full = requirements.render(found._replace(available=999 * MIB))
  assert 'does not fit into 999 MiB: raise config.grad_accum_steps' in full


def test_collectives_by_hand():
  program = """
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%a), channel_id=1, to_apply=%add
  %all-reduce.2 = (bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)S(1)}, f32[]) all-reduce(%b, %c), channel_id=2
  %s = (pred[2]{0}, pred[16]{0}) all-gather-start(%d), dimensions={0}
  %x = pred[16]{0} all-gather-done(%s)
  %y = f32[100] add(%e, %f), metadata={op_name="all-reduce"}
  """
  assert requirements._collective_bytes(program) == 8 * 4 * 4 + 3 * 3 * 64 * 64 * 2 + 4 + 16


HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None


@pytest.mark.skipif(HAS_LIBTPU, reason='the compiler is there')
def test_a_missing_compiler_is_named():
  with pytest.raises(UserError, match=r"the compiler for TPUs is missing; pip install 'jax\[tpu\]=="):
    requirements.find(one_network(), '', 'v5e:2x2')


@pytest.mark.skipif(not HAS_LIBTPU, reason='needs libtpu')
def test_a_slice_of_tpus():
  config = one_network()
  config.dtype = 'bfloat16'
  one, four = (requirements.find(config, '', topology) for topology in ('v5e:1x1', 'v5e:2x2'))
  assert (one.devices, four.devices, four.kind) == (1, 4, 'TPU v5 lite')
  assert one.collectives == 0 < four.collectives
  assert max(four.seconds, key=four.seconds.get) == 'memory' and four.fits
  with pytest.raises(UserError, match='topology=v5e:3x3 is not a slice that the compiler for TPUs knows'):
    requirements.find(config, '', 'v5e:3x3')


def test_a_run_that_began_keeps_its_teachers(tmp_path, monkeypatch):
  config = config_lib.default()
  config.prerequisites = {'teacher': {'method': {'name': 'single'}}}
  config.method.name, config.teacher_workdirs = 'average_teacher', ('{teacher}', 'elsewhere')
  saved = (teachers.Teacher('a', config), teachers.Teacher('b', config))
  monkeypatch.setattr(requirements.run_files, 'has_checkpoint', lambda workdir: True)
  monkeypatch.setattr(requirements.teachers, 'open_all', lambda config, workdir: saved)
  assert requirements._teachers(config, tmp_path) == saved
