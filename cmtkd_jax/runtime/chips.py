"""What accelerators can do, by the pages of their makers."""

import glob
import importlib.util
import os
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
  """The peak of one accelerator, as its maker states it.

  memory: bytes.
  flops: floating-point operations a second, of products in bfloat16 or, on a TPU, of any.
  bandwidth: bytes a second between chip and memory.
  links: bytes a second to and from other chips, both directions together.
  """

  memory: int
  flops: float
  bandwidth: float
  links: float


# {kind of a device, as JAX names it: Chip}.
# Sources: cloud.google.com/tpu/docs, pages v5e, v5p, v6e; NVIDIA's data sheets of A100, H100 and H200 (SXM, dense).
CHIPS = {
  'TPU v5 lite': Chip(16 * GIB, 197e12, 819e9, 400e9),
  'TPU v5': Chip(95 * GIB, 459e12, 2765e9, 1200e9),
  'TPU v6 lite': Chip(32 * GIB, 918e12, 1640e9, 800e9),
  'NVIDIA A100-SXM4-40GB': Chip(40 * GIB, 312e12, 1555e9, 600e9),
  'NVIDIA A100-SXM4-80GB': Chip(80 * GIB, 312e12, 2039e9, 600e9),
  'NVIDIA H100 80GB HBM3': Chip(80 * GIB, 989e12, 3350e9, 900e9),
  'NVIDIA H200': Chip(141 * 10**9, 989e12, 4800e9, 900e9),
}


def memory(device):
  """Returns the bytes of memory that `device`, which may not be there, has for itself; None where nobody says."""
  if device.device_kind in CHIPS:
    return CHIPS[device.device_kind].memory
  if device.platform == 'cpu':
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()
  return (device.memory_stats() or {}).get('bytes_limit')


# What the driver of an accelerator makes -> the packages by which JAX uses it.
_DRIVERS = {
  '/dev/nvidia[0-9]*': ('jax_cuda12_plugin', 'jax_cuda13_plugin'),
  '/dev/kfd': ('jax_rocm60_plugin', 'jax_rocm7_plugin'),
  '/dev/accel*': ('libtpu',),
  '/dev/vfio/[0-9]*': ('libtpu',),
}


def expects_accelerator():
  """Returns whether JAX will find a GPU or TPU; touches none, so that processes can still join each other."""
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms.split(',')[0] != 'cpu'
  return any(
    glob.glob(device) and any(importlib.util.find_spec(package) for package in packages)
    for device, packages in _DRIVERS.items()
  )
