"""What a run needs, before anything is rented: memory, operations and traffic of its step, found by the compiler."""

import math
import re
from typing import NamedTuple

import numpy as np

from cmtkd_jax import config as config_lib
from cmtkd_jax.data.outline import outline
from cmtkd_jax.errors import UserError
from cmtkd_jax.experiments import chain
from cmtkd_jax.runs import run_files
from cmtkd_jax.runtime import chips
from cmtkd_jax.runtime import topology as tpu_topology
from cmtkd_jax.runtime.progress import format_duration
from cmtkd_jax.training import build, memory, plan, schedule, teachers
from cmtkd_jax.training.step import abstract_state, jit_train_step

_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


class Requirements(NamedTuple):
  """What one step takes on each device, and how many there are; None for what nobody says.

  devices: their number. kind: as JAX names it. batch: images on each device.
  held, temporary, images: bytes of state and batch, of temporary buffers, of images that stay on the device.
  available: bytes of memory. chip: its `chips.Chip`.
  flops: floating-point operations. traffic: bytes read and written. collectives: bytes of results of collectives. With
    `grad_accum_steps` these are those of a step on one part, times the parts: the optimizer counts once for each.
  steps: of the run.
  """

  devices: int
  kind: str
  batch: int
  held: int
  temporary: int
  images: int
  available: int | None
  chip: chips.Chip | None
  flops: float
  traffic: float
  collectives: int
  steps: int

  @property
  def memory(self):
    """Bytes of memory in all."""
    return self.held + self.temporary + self.images

  @property
  def fits(self):
    """Whether that is there; None where nobody says."""
    return None if self.available is None else self.memory <= self.available

  @property
  def seconds(self):
    """`{what a step waits for: seconds at the peak of the chip}`, the roofline; {} where nobody says.

    An estimate, as the compiler also counts bytes that stay on the chip, and nothing reaches its peak.
    """
    if self.chip is None:
      return {}
    return {
      'products': self.flops / self.chip.flops,
      'memory': self.traffic / self.chip.bandwidth,
      # Each byte of an all-reduce is sent twice and received twice, by the others' parts and by the sums.
      'other chips': 4 * self.collectives / self.chip.links,
    }


def find(config, workdir, topology=None):
  """Returns the `Requirements` of the run that `config` describes, without its data.

  Args:
    config: a `ConfigDict` of one run.
    workdir: of the run, which may have trained teachers in it.
    topology: a slice of TPUs, such as 'v5e:2x2'; None for the devices at hand.

  Raises:
    UserError: the configuration cannot be used, the step does not fit into memory, or there is no such topology.
  """
  config_lib.check(config)
  mesh = build.make_mesh(None if topology is None else tpu_topology.tpu_slice(topology))
  advice = "; to plan without the data, set config.data.name='generated:HxWxC:CLASSES:N'"
  data = outline(config.data, batch_size=config.batch_size, mesh=mesh, advice=advice)
  trained = _teachers(config, workdir)
  parts = plan.of_data(config, trained, data.num_classes, data.input_shape, data.steps_per_epoch)
  return _of_parts(parts, config, data, mesh)


def _teachers(config, workdir):
  """The `Teacher`s of the run, those it has if it began; those of its prerequisites need not be trained."""
  names = {f'{{{name}}}': name for name in config.prerequisites}
  if run_files.has_checkpoint(workdir) or not names.keys() & set(config.teacher_workdirs):
    return teachers.open_all(config, workdir)
  return tuple(
    teachers.Teacher(teacher, chain.prerequisite(config, names[teacher]))
    if teacher in names
    else teachers.open_all(config_lib.derive(config, {'teacher_workdirs': (teacher,)}), workdir)[0]
    for teacher in config.teacher_workdirs
  )


def of_method(method, config, data, mesh):
  """Returns the `Requirements` of training `method` on `data`, an `outline.Outline`, with the devices of `mesh`."""
  sizes = dict(steps_per_epoch=data.steps_per_epoch, batch_size=config.batch_size)
  when = schedule.create(config, **sizes)
  learning = plan.learning(config, method, data.input_shape, when.total, **sizes)
  return _of_parts(dict(learning, method=method, schedule=when), config, data, mesh)


def _of_parts(run, config, data, mesh):
  """`run`: parts of a `plan.Plan` by name."""
  parts = dict({name: run[name] for name in ('method', 'optimizer', 'averaging')}, augment=data.augment)
  sharding = build.replicated(mesh)
  state = abstract_state(data.batch_spec, sharding, **parts, seed=config.seed)

  def compiled(batch_spec, grad_accum_steps):
    step = jit_train_step(sharding, **parts, grad_accum_steps=grad_accum_steps, mix=data.mix, loss_at=run['loss_at'])
    with memory.errors_as_advice(config):
      return step.lower(state, batch_spec).compile()

  times = config.grad_accum_steps
  whole = part = compiled(data.batch_spec, times)
  if times > 1:  # the compiler counts the body of a loop once, so what is counted is a step on one part
    rows = _rows_of_part(config, mesh)
    part = compiled({name: spec.update(shape=(rows, *spec.shape[1:])) for name, spec in data.batch_spec.items()}, 1)
    times *= config.batch_size / times / rows
  analysis, cost = whole.memory_analysis(), part.cost_analysis()
  if analysis is None or not cost:
    raise UserError(
      f'the compiler of {mesh.devices.flat[0].platform!r} reports no memory or no operations; plan for '
      "another device, such as topology='v5e:2x2'"
    )
  device = mesh.devices.flat[0]
  return Requirements(
    devices=mesh.size,
    kind=device.device_kind,
    batch=config.batch_size // mesh.size,
    held=memory.held(analysis),
    temporary=analysis.temp_size_in_bytes,
    images=data.on_device_bytes,
    available=chips.memory(device),
    chip=chips.CHIPS.get(device.device_kind),
    flops=times * cost.get('flops', 0.0),
    traffic=times * cost.get('bytes accessed', 0.0),
    collectives=round(times * _collective_bytes(part.as_text())),
    steps=run['schedule'].total,
  )


def _rows_of_part(config, mesh):
  """Images of a part, or a few more, so that they divide among the devices and the groups of a normalization."""
  unit = math.lcm(mesh.size, config.model.bn_groups)
  return -(-(config.batch_size // config.grad_accum_steps) // unit) * unit


def _collective_bytes(program):
  """Bytes of the results of all collectives in the text of a compiled program."""
  operation = re.compile(rf'= (.*?) (?:{"|".join(_COLLECTIVES)})(?:-done)?\(')
  array = re.compile(r'\b([a-z]+)(\d*)\w*\[([\d,]*)\]')
  total = 0
  for result in operation.findall(program):
    for _, bits, shape in array.findall(result):
      total += int(bits or 8) // 8 * int(np.prod([int(side) for side in shape.split(',') if side]))
  return total


def render(found):
  """Returns `Requirements` as text, a line each."""
  parts = f'state and batch {memory.size_text(found.held)}, temporary buffers {memory.size_text(found.temporary)}'
  if found.images:
    parts += f', images {memory.size_text(found.images)}'
  room = 'memory of the device unknown'
  if found.available is not None:
    room = f'fits into {memory.size_text(found.available)}'
    if not found.fits:
      room = f'does not fit into {memory.size_text(found.available)}: {memory.ADVICE}'
  lines = [
    ('devices', f'{found.devices} x {found.kind}, {found.batch} images a step on each'),
    ('memory', f'{memory.size_text(found.memory)}: {parts}; {room}'),
    ('operations', f'{found.flops / 1e9:,.1f} GFLOP a step'),
    ('memory traffic', f'{found.traffic / 1e9:,.2f} GB a step'),
    ('collectives', f'{found.collectives / 1e6:,.1f} MB a step'),
  ]
  if found.seconds:
    waits, longest = max(found.seconds.items(), key=lambda item: item[1])
    times = ', '.join(f'{name} {1e3 * seconds:.1f}' for name, seconds in found.seconds.items())
    images = found.batch * found.devices / longest
    lines += [
      ('time of a step', f'{1e3 * longest:.1f} ms by the roofline, for {waits} ({times} ms); {images:,.0f} images/s'),
      ('time of the run', f'{format_duration(longest * found.steps)} at that pace, for {found.steps:,} steps'),
    ]
  else:
    lines.append(('time', f'unknown, since the speed of {found.kind} is not listed; the run has {found.steps:,} steps'))
  width = max(len(name) for name, _ in lines)
  return '\n'.join(['on each device:', *(f'  {name.ljust(width)}  {text}' for name, text in lines)])
