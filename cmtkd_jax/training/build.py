"""The parts that training and evaluation both start from: devices, data and method, as configured."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cmtkd_jax import config as config_lib
from cmtkd_jax import data, methods
from cmtkd_jax.data.outline import outline
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import checkpoint


def make_mesh(devices=None):
  """Returns a mesh of `devices`, by default all, along one axis, 'data'; one device is a mesh of one.

  The devices of a process lie side by side, so that its rows of a batch do. `jax.make_mesh` orders TPUs by their
  network instead, and refuses GPUs of several hosts.

  Raises:
    UserError: JAX has no device, computes in float64, or does not compile.
  """
  if jax.config.jax_enable_x64:
    raise UserError('JAX_ENABLE_X64 is set, but networks are trained and saved in float32; unset it')
  if jax.config.jax_disable_jit:
    raise UserError('JAX_DISABLE_JIT is set, but the train step is compiled before it runs; unset it')
  devices = _all_devices() if devices is None else devices
  ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(ordered), ('data',), axis_types=(AxisType.Auto,))


def _all_devices():
  platforms = os.environ.get('JAX_PLATFORMS', '')
  try:
    return jax.devices()
  except (AssertionError, RuntimeError) as e:  # the former where the named platform has no plugin
    reason = one_line(e, 200) or 'no such device, or its plugin is not installed'
    raise UserError(
      f'JAX finds no device with JAX_PLATFORMS={platforms!r} ({reason}); unset it, or install the plugin, such as '
      "pip install 'jax[cuda12]'"
    ) from None


def replicated(mesh):
  """Returns the sharding of what every device holds whole: state and metrics."""
  return NamedSharding(mesh, PartitionSpec())


def load_data(config, mesh):
  """Returns the configured `data.Dataset`."""
  return data.load(
    config.data, batch_size=config.batch_size, eval_batch_size=config.eval_batch_size, seed=config.seed, mesh=mesh
  )


def outline_data(config, known):
  """Returns the `data.outline.Outline` of a configuration; `known`, a dict, keeps it for others of the same data."""
  key = config.data.to_json(), config.batch_size
  if key not in known:
    known[key] = outline(config.data, batch_size=config.batch_size, mesh=make_mesh())
  return known[key]


def create_method(config, num_classes, teachers=()):
  """Returns the configured `methods.Method`.

  Args:
    config: a `ConfigDict`.
    num_classes: how many logits its networks have.
    teachers: the `teachers.Teacher`s that it learns from.

  Raises:
    UserError: the configuration cannot be used.
  """
  config_lib.check(config)
  return method_of(config, num_classes, teachers)


def method_of(config, num_classes, teachers=()):
  """`create_method` without the check: of a checked configuration, or of a run whose fields may now allow less."""
  name = config.method.name
  method = methods.METHODS[name].create(config, config_lib.create(config, f'method.{name}'), num_classes, teachers)
  if STUDENT not in method.weight_bits:  # what is evaluated, kept and exported
    raise TypeError(f'cmtkd_jax.methods.{name} trains no network {STUDENT!r}, but {", ".join(method.weight_bits)}')
  return method.clone(label_smoothing=config.label_smoothing)


def check_checkpoint_fits(method, input_shape, variables, where):
  """Raises `UserError`, beginning with `where`, unless `variables` are those of `method` at images of `input_shape`."""
  images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  abstract = jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)
  checkpoint.check_same_structure(abstract, variables, where)
