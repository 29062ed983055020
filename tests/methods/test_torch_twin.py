"""The CMT-KD step in PyTorch that benchmarks compare with does the same as ours, where PyTorch is installed."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from cmtkd_jax import config as config_lib
from cmtkd_jax.quantizers import hwgq
from cmtkd_jax.training import build, optimizer

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks'
CLASSES = 7


@pytest.fixture(scope='module')
def twin():
  spec = importlib.util.spec_from_file_location('torch_cmtkd', BENCHMARKS / 'torch_cmtkd.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def make_config(model='resnet8', stem='cifar', bits=2, teachers=(3, 4)):
  config = config_lib.default()
  config.model.name, config.model.stem, config.model.width = model, stem, 1 / 4
  config.student.weight_bits = config.student.activation_bits = bits
  config.method.cmtkd.teacher_bits = teachers
  config.data.mean = config.data.std = (0.5, 0.5, 0.5)
  return config


def to_ours(name, array):
  """(path, array) of a parameter or buffer of the twin in our variables."""
  *path, leaf = name.split('.')
  if leaf == 'weight':
    leaf = 'scale' if array.ndim == 1 else 'kernel'
  array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  return (*path, {'running_mean': 'mean', 'running_var': 'var'}.get(leaf, leaf)), array


def tree_of(named):
  """Nested dict of `(name, tensor)` of the twin, as ours."""
  tree = {}
  for name, tensor in named:
    (*path, leaf), array = to_ours(name, tensor.detach().numpy().copy())
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[leaf] = array
  return tree


def randomize(network):
  """Leaves nothing at its neutral value."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in network.parameters():
      if parameter.ndim == 1:
        parameter.uniform_(0.5, 1.5, generator=generator)
      else:
        parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)


def relative(found, expected):
  """Distance of two arrays relative to the norm of the second."""
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# Codes of few bits: with more, rounding takes some values over a threshold, and a network makes that larger.
@pytest.mark.parametrize(
  'model, stem, size, bits, teachers',
  [('resnet8', 'imagenet', 32, 32, (32, 32)), ('resnet8', 'cifar', 12, 2, (3, 4)), ('resnet18', 'cifar', 16, 1, (2,))],
)
def test_loss_and_gradients(twin, model, stem, size, bits, teachers):
  config = make_config(model, stem, bits, teachers)
  images = np.random.default_rng(0).normal(size=(8, size, size, 3)).astype(np.float32)
  labels = np.arange(8, dtype=np.int32) % CLASSES
  network = twin.CMTKD(config.to_dict(), CLASSES).train()
  randomize(network)
  params = tree_of(network.named_parameters())
  statistics = tree_of((name, b) for name, b in network.named_buffers() if 'num_batches' not in name)

  method = build.create_method(config, CLASSES)
  shapes = lambda tree: jax.tree.map(np.shape, tree)
  abstract = jax.eval_shape(lambda: method.init(jax.random.key(0), jnp.asarray(images), train=True))
  assert shapes({'params': params, 'batch_stats': statistics}) == shapes(abstract)

  def objective(params):
    outputs, state = method.apply(
      {'params': params, 'batch_stats': statistics}, images, train=True, mutable=['batch_stats']
    )
    return method.loss(outputs, labels)[0], (outputs.logits, state['batch_stats'])

  (loss, (logits, statistics)), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
  wanted_loss, wanted_logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(labels).long())
  wanted_loss.backward()

  np.testing.assert_allclose(loss, wanted_loss.item(), rtol=1e-4)
  assert logits.keys() == wanted_logits.keys()
  for name, z in wanted_logits.items():
    assert relative(logits[name], z.detach().numpy()) < 1e-4
  wanted = tree_of((name, parameter.grad) for name, parameter in network.named_parameters())
  flat, structure = jax.tree.flatten_with_path(gradients)
  assert structure == jax.tree.structure(wanted)
  scale = max(np.linalg.norm(g) for g in jax.tree.leaves(wanted))
  for (path, g), w in zip(flat, jax.tree.leaves(wanted), strict=True):
    # What is zero but for rounding, such as the gradient of a bias before a normalization, has no relative error.
    if np.linalg.norm(w) > 1e-5 * scale:
      assert relative(g, w) < 3e-4, jax.tree_util.keystr(path)
    else:
      assert np.linalg.norm(g) < 2e-5 * scale, jax.tree_util.keystr(path)
  # Running statistics, of which PyTorch's variances are unbiased ones.
  stem_norm = statistics['student']['stage1']['stem']['norm']
  norm = network.student.stage1.stem.norm
  count = images.shape[0] * (size // (4 if stem == 'imagenet' else 1)) ** 2
  np.testing.assert_allclose(stem_norm['mean'], norm.running_mean, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose((stem_norm['var'] - 0.9) * count / (count - 1), norm.running_var - 0.9, rtol=1e-3)


@pytest.mark.parametrize('bits', range(1, 9))
def test_quantizers(twin, bits):
  rng = np.random.default_rng(bits)
  for ours, theirs in (
    (hwgq.Activation(bits), lambda x: twin.Activation(bits)(x)),
    (hwgq.Weight(bits), lambda x: twin.MidRise.apply(x, twin.WEIGHT_STEP[bits - 1], 2 ** (bits - 1))),
  ):
    x, g = rng.normal(size=(2, 3, 3, 16, 8)).astype(np.float32)
    value, pull_back = jax.vjp(ours.fake_quantize, x)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor)
    expected.backward(torch.from_numpy(g))
    # None of this sample lies so close to a threshold that rounding decides.
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pull_back(g)[0], tensor.grad)


def test_optimizer(twin):
  """Every parameter has our learning rate, weight decay and momentum, twice in a row."""
  config = make_config()
  network = twin.CMTKD(config.to_dict(), CLASSES)
  randomize(network)
  params = tree_of(network.named_parameters())
  ours = optimizer.create(config, build.create_method(config, CLASSES), lambda step: 0.1)
  theirs = twin.optimizer(network, config.to_dict(), 0.1)
  state = ours.init(params)
  for seed in range(2):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
      parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = tree_of((name, parameter.grad) for name, parameter in network.named_parameters())
    theirs.step()
    updates, state = ours.update(gradients, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, tree_of(network.named_parameters())
  )


def test_augmentation(twin):
  """Each image is a window of the padded original, mirrored or not; each does occur."""
  torch.manual_seed(0)
  data = {'augment': 'pad_crop_flip', 'pad': 2, 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7)}
  images = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 3)).astype(np.uint8)
  found = twin.augment(torch.from_numpy(images), data)
  assert found.shape == (16, 3, 6, 6) and found.is_contiguous(memory_format=torch.channels_last)
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
  standard = (padded / 255 - data['mean']) / data['std']
  seen = set()
  for one, original in zip(found.permute(0, 2, 3, 1).numpy(), standard, strict=True):
    fits = [
      (y, x, mirrored)
      for y in range(5)
      for x in range(5)
      for mirrored in (False, True)
      if np.allclose(original[y : y + 6, x : x + 6][:, :: -1 if mirrored else 1], one, atol=1e-5)
    ]
    assert len(fits) == 1
    seen.update(fits)
  assert len(seen) > 8 and {mirrored for _, _, mirrored in seen} == {False, True}


def test_what_is_not_written_is_refused(twin):
  config = make_config()
  config.quantizer.name = 'lsq'
  with pytest.raises(ValueError, match='quantizer.name'):
    twin.CMTKD(config.to_dict(), CLASSES)
