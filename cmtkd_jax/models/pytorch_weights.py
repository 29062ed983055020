"""Weights of torchvision's and timm's ResNet18, 34 and 50, and of torchvision's AlexNet, as variables of our networks.

A state dict, saved as .safetensors or .npz, is read by name; nothing in the file is executed. Convolutions [O, I, H, W]
become [H, W, I, O], matrices are transposed. AlexNet has no normalization: its biases become those of normalizations
that change nothing in evaluation (in training they use the batch's statistics, as always). Those of MobileNetV2 are
refused: torchvision's has ReLU6 for our ReLU and no activation after a projection, where ours has one, so that the
same weights would make another function.
"""

import functools
import math
import re
import zipfile

import numpy as np
from etils import epath

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.models.network import STUDENT
from cmtkd_jax.runtime import local_file, packages

SUFFIXES = ('.safetensors', '.npz')
_PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.pkl', '.tar')  # reading these would run the code in them
_PREFIX = re.compile(r'^(?:(?:state_dict|model|module|net|_orig_mod)\.)+')  # of wrappers around the network
_EPSILON = 1e-5  # of our normalizations
_LIMIT = 2**32  # bytes of a file's arrays, so that a small file cannot fill the memory
_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}


def is_weight_file(path):
  """Returns whether `path` names a file of weights, rather than a work directory.

  Raises:
    UserError: it names a pickle of PyTorch.
  """
  if str(path).endswith(_PICKLES) and not epath.Path(path).is_dir():
    raise UserError(
      f'config.init_from={str(path)!r} is a pickle of PyTorch, which could run any code; convert it: '
      'python -c "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], '
      "weights_only=True); d = d.get('state_dict', d.get('model', d)); s.save_file({k: "
      'v.contiguous() for k, v in d.items()}, sys.argv[2])" '
      f'{path} weights.safetensors'
    )
  return str(path).endswith(SUFFIXES)


def load(path, model):
  """Reads a state dict into the variables of a network.

  Args:
    path: of a .safetensors or .npz file, `{name in the state dict: array}`.
    model: `config.model`; its name, stem and block order must be those of the file.

  Returns:
    {'params': {'student': ...}, 'batch_stats': {'student': ...}} of float32 arrays.

  Raises:
    UserError: the file cannot be read, or is none of such a network.
  """
  if model.name not in _MODELS:
    raise UserError(
      f'config.init_from={str(path)!r}: weights from PyTorch fit config.model.name '
      f'{", ".join(map(repr, _MODELS))}, not {model.name!r}'
    )
  needed, rename = _MODELS[model.name]
  for field, value in needed.items():
    if model[field] != value:
      raise UserError(f'config.model.{field}={model[field]!r}: PyTorch has this network with {value!r}; set it')
  variables = {'params': {}, 'batch_stats': {}}
  for full_name, array in _read(path).items():
    name = _PREFIX.sub('', full_name)
    if name.endswith('num_batches_tracked'):
      continue
    entries = rename(name, array)
    if not entries:
      raise UserError(f'{path}: {full_name!r} is not an array of a {model.name} of PyTorch; save its state_dict()')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
      raise UserError(f'{path}: {full_name!r} holds NaN or infinite values; take the weights of an earlier epoch')
    for (collection, *keys), value in entries.items():
      tree = variables[collection].setdefault(STUDENT, {})
      for key in keys[:-1]:
        tree = tree.setdefault(key, {})
      try:
        tree[keys[-1]] = np.asarray(value, np.float32)
      except (TypeError, ValueError):
        raise UserError(
          f'{path}: {name!r} is {array.dtype}{list(array.shape)}, not numbers; save the state_dict again'
        ) from None
  return variables


def _read(path):
  if not epath.Path(path).exists():
    raise UserError(f'config.init_from: there is no file {path}')
  is_npz = str(path).endswith('.npz')
  safetensors = None if is_npz else packages.load('safetensors.numpy', path)
  try:
    local_file.check(path)
    if is_npz:
      _check_npz(path)
      with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
    return safetensors.load_file(path)
  except Exception as e:  # each reader has exceptions of its own
    raise UserError(f'{path} cannot be read ({one_line(e, 120)}); save the state_dict again') from None


def _check_npz(path):
  """Raises `ValueError` unless every array of an archive is as large as its header says, and all of them fit."""
  with zipfile.ZipFile(path) as archive:
    members = archive.infolist()
    if sum(member.file_size for member in members) > _LIMIT:
      raise ValueError(f'more than {_LIMIT / 2**30:.0f} GiB of arrays')
    for member in members:
      with archive.open(member) as file:
        read = {1: np.lib.format.read_array_header_1_0}.get(
          np.lib.format.read_magic(file)[0], np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
          raise ValueError(f'{member.filename} is not an array {dtype}{list(shape)}')


def _convert(array):
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _resnet(name, array, convolutions='12'):
  """`{path: array}` of one entry of the state dict, {} for an unknown one; blocks have these convolutions."""
  layers = rf'conv[{convolutions}]|bn[{convolutions}]|downsample\.0|downsample\.1|fc'
  match = re.fullmatch(rf'(?:(layer[1-4])\.(\d)\.)?({layers})\.(\w+)', name)
  if not match:
    return {}
  stage, block, layer, kind = match.groups()
  if layer == 'fc':
    collection, place = 'params', ('head', 'classifier')
  elif stage:
    layer = {'downsample.0': 'shortcut', 'downsample.1': 'shortcut_norm'}.get(layer, layer.replace('bn', 'norm'))
    place = (f'stage{stage[-1]}', f'block{int(block) + 1}', layer)
  else:
    place = ('stage1', 'stem', {'conv1': 'conv', 'bn1': 'norm'}.get(layer, layer))
  if 'norm' in place[-1]:
    collection, leaf = _NORM.get(kind, ('', ''))
    return {(collection, *place, leaf): array} if leaf else {}
  if kind == 'weight':
    return {('params', *place, 'kernel'): _convert(array)}
  return {('params', *place, 'bias'): array} if layer == 'fc' and kind == 'bias' else {}


# Convolution or matrix -> (its place, the normalization that takes its bias).
_ALEXNET = {
  'features.0': (('stage1', 'conv1'), ('stage1', 'norm1')),
  'features.3': (('stage2', 'conv1'), ('stage2', 'norm1')),
  'features.6': (('stage3', 'conv1'), ('stage3', 'norm1')),
  'features.8': (('stage3', 'conv2'), ('stage3', 'norm2')),
  'features.10': (('stage3', 'conv3'), ('stage3', 'norm3')),
  'classifier.1': (('head', 'fc6'), ('head', 'norm6')),
  'classifier.4': (('head', 'fc7'), ('head', 'norm7')),
  'classifier.6': (('head', 'fc8'), None),
}


def _alexnet(name, array):
  """As `_resnet`."""
  layer, _, kind = name.rpartition('.')
  if layer not in _ALEXNET or kind not in ('weight', 'bias'):
    return {}
  place, norm = _ALEXNET[layer]
  if kind == 'weight':
    if place[-1] == 'fc6' and array.ndim == 2 and array.shape[1] % 36 == 0:  # 6x6 maps, flattened channels last here
      array = array.reshape(len(array), -1, 6, 6).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return {('params', *place, 'kernel'): _convert(array)}
  if norm is None:
    return {('params', *place, 'bias'): array}
  one = np.ones_like(array)
  return {
    ('params', *norm, 'scale'): one,
    ('params', *norm, 'bias'): array,
    ('batch_stats', *norm, 'mean'): 0 * one,
    ('batch_stats', *norm, 'var'): (1 - _EPSILON) * one,
  }


_MODELS = {
  'resnet18': ({'stem': 'imagenet', 'block_order': 'post'}, _resnet),
  'resnet34': ({'stem': 'imagenet', 'block_order': 'post'}, _resnet),
  'resnet50': ({'stem': 'imagenet', 'block_order': 'post'}, functools.partial(_resnet, convolutions='123')),
  'alexnet_torchvision': ({'stem': 'imagenet', 'block_order': 'pre'}, _alexnet),
}
