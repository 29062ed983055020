"""Against a second framework: weights, losses and quantizers of PyTorch, where it is installed.

The formulations on PyTorch's side are written from the definitions, with its own automatic differentiation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from torch import nn
from torch.nn import functional as F

from cmtkd_jax import config as config_lib
from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.quantizers import dorefa, lsq, pact
from cmtkd_jax.training import build, initialize

# Networks, with the names of torchvision.


class BasicBlock(nn.Module):
  def __init__(self, inputs, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.downsample = None
    if stride != 1 or inputs != features:
      self.downsample = nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features))

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
  """Version 1.5: the 3x3 convolution has the stride."""

  def __init__(self, inputs, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * features)
    self.downsample = None
    if stride != 1 or inputs != 4 * features:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, 4 * features, 1, stride, bias=False), nn.BatchNorm2d(4 * features)
      )

  def forward(self, x):
    y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
    return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  def __init__(self, width, classes, blocks=(2, 2, 2, 2), block=BasicBlock):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    inputs = width
    for k in range(4):
      features = width * 2**k
      outputs = features * (4 if block is Bottleneck else 1)
      first = block(inputs, features, 1 if k == 0 else 2)
      others = [block(outputs, features, 1) for _ in range(blocks[k] - 1)]
      setattr(self, f'layer{k + 1}', nn.Sequential(first, *others))
      inputs = outputs
    self.fc = nn.Linear(inputs, classes)

  def forward(self, x):
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    for k in range(1, 5):
      x = getattr(self, f'layer{k}')(x)
    return self.fc(x.mean((2, 3)))


class AlexNet(nn.Module):
  def __init__(self, widths, hidden, classes):
    super().__init__()
    a, b, c, d, e = widths
    self.features = nn.Sequential(
      nn.Conv2d(3, a, 11, 4, 2),
      nn.ReLU(),
      nn.MaxPool2d(3, 2),
      nn.Conv2d(a, b, 5, padding=2),
      nn.ReLU(),
      nn.MaxPool2d(3, 2),
      nn.Conv2d(b, c, 3, padding=1),
      nn.ReLU(),
      nn.Conv2d(c, d, 3, padding=1),
      nn.ReLU(),
      nn.Conv2d(d, e, 3, padding=1),
      nn.ReLU(),
      nn.MaxPool2d(3, 2),
    )
    self.classifier = nn.Sequential(
      nn.Dropout(),
      nn.Linear(36 * e, hidden),
      nn.ReLU(),
      nn.Dropout(),
      nn.Linear(hidden, hidden),
      nn.ReLU(),
      nn.Linear(hidden, classes),
    )

  def forward(self, x):
    return self.classifier(torch.flatten(self.features(x), 1))


def randomize(network):
  """Leaves no statistic, scale or bias at its neutral value."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, tensor in network.state_dict().items():
      if name.endswith('num_batches_tracked'):
        continue
      if tensor.ndim == 1:
        tensor.uniform_(0.5, 1.5, generator=generator)
      else:
        tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
  return network.eval()


def save(network, path):
  arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
  if path.suffix == '.npz':
    np.savez(path, **arrays)
  else:
    from safetensors.numpy import save_file

    save_file(arrays, path)
  return str(path)


def make_config(name, path):
  config = config_lib.default()
  config.method.name, config.init_from = 'single', path
  config.model.name, config.model.width, config.model.stem = name, 1 / 8, 'imagenet'
  config.model.block_order = 'post' if name.startswith('resnet') else 'pre'
  config.student.weight_bits = config.student.activation_bits = 32
  return config


def load(config, size, classes=7):
  """Returns (method, variables, report)."""
  method = build.create_method(config, classes)
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  abstract = jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)
  return method, *initialize.load(config.init_from, config.init_from_ignore, abstract, method, config)


NETWORKS = {
  'resnet18': (lambda: ResNet(8, 7), 64),
  'resnet34': (lambda: ResNet(8, 7, (3, 4, 6, 3)), 64),
  'resnet50': (lambda: ResNet(8, 7, (3, 4, 6, 3), Bottleneck), 64),
  'alexnet_torchvision': (lambda: AlexNet((8, 24, 48, 32, 32), 512, 7), 224),
}


@pytest.mark.parametrize(
  'name, suffix',
  [
    ('resnet18', '.safetensors'),
    ('resnet18', '.npz'),
    ('resnet34', '.npz'),
    ('resnet50', '.safetensors'),
    ('alexnet_torchvision', '.safetensors'),
  ],
)
def test_logits_of_imported_weights(tmp_path, name, suffix):
  make, size = NETWORKS[name]
  network = randomize(make())
  method, variables, report = load(make_config(name, save(network, tmp_path / f'weights{suffix}')), size)
  images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
  found = jax.jit(lambda v, x: method.apply(v, x, train=False).logits['student'])(variables, images)
  with torch.no_grad():
    expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
  text = '\n'.join(report)
  assert 'created' not in text and 'unused' not in text and 'mismatched' not in text


def test_what_does_not_fit_is_refused(tmp_path):
  network = ResNet(8, 7)
  path = save(network, tmp_path / 'weights.safetensors')
  config = make_config('resnet18', path)
  with pytest.raises(UserError, match='head/classifier.*init_from_ignore'):
    load(config, 64, classes=10)
  config.init_from_ignore = '.*head/classifier.*'
  assert any('mismatched' in line and 'head/classifier/kernel' in line for line in load(config, 64, classes=10)[2])
  config.init_from_ignore = ''
  config.student.weight_bits = config.student.activation_bits = 2  # quantizers start from data and need no leave
  assert not any('created' in line for line in load(config, 64)[2])
  config.model.block_order = 'pre'
  with pytest.raises(UserError, match="config.model.block_order='pre': .*'post'"):
    load(config, 64)
  config = make_config('alexnet_torchvision', path)
  with pytest.raises(UserError, match="weights.safetensors: '[a-z0-9.]+' is not an array of a alexnet_torchvision"):
    load(config, 224)
  bottlenecks = save(ResNet(8, 7, (1, 1, 1, 1), Bottleneck), tmp_path / 'bottlenecks.npz')
  with pytest.raises(UserError, match="'layer1.0.(conv|bn)3[.a-z_]+' is not an array of a resnet18"):
    load(make_config('resnet18', bottlenecks), 64)
  config = make_config('resnet18', path)
  config.model.block_order = 'pre'
  for name, stem in (('resnet8', 'cifar'), ('mobilenet_v2', 'imagenet')):
    config.model.name, config.model.stem = name, stem
    known = "'resnet18', 'resnet34', 'resnet50', 'alexnet_torchvision'"
    with pytest.raises(UserError, match=f"{known}, not '{name}'"):
      load(config, 32)
  missing = dict(network.state_dict())
  del missing['layer3.0.bn2.running_var']
  np.savez(tmp_path / 'part.npz', **{name: tensor.numpy() for name, tensor in missing.items()})
  with pytest.raises(UserError, match='1 arrays are missing .*batch_stats/student/stage3/block1/norm2/var'):
    load(make_config('resnet18', str(tmp_path / 'part.npz')), 64)
  np.savez(tmp_path / 'pickled.npz', a=np.array([{}], object))
  (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'weights.safetensors').read_bytes()[:1000])
  for name in ('pickled.npz', 'cut.safetensors'):
    with pytest.raises(UserError, match=f'{name} cannot be read'):
      load(make_config('resnet18', str(tmp_path / name)), 64)
  with pytest.raises(UserError, match='there is no file .*absent.npz'):
    load(make_config('resnet18', str(tmp_path / 'absent.npz')), 64)


# Losses.


def logits(seed):
  return (2 * np.random.default_rng(seed).normal(size=(8, 10))).astype(np.float32)


LABELS = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
TAU = 4.0


def torch_kd(s, t):
  return F.kl_div(F.log_softmax(s / TAU, 1), F.softmax(t / TAU, 1), reduction='batchmean') * TAU**2


def torch_dkd(s, t):
  target = F.one_hot(torch.from_numpy(LABELS).long(), 10).bool()
  p, q = F.softmax(t / TAU, 1), F.softmax(s / TAU, 1)
  binary = lambda x: torch.stack([x[target], 1 - x[target]], 1)
  tckd = F.kl_div(torch.log(binary(q)), binary(p), reduction='batchmean')
  others = lambda z: z[~target].reshape(8, 9) / TAU
  nckd = F.kl_div(F.log_softmax(others(s), 1), F.softmax(others(t), 1), reduction='batchmean')
  return TAU**2 * (1.0 * tckd + 8.0 * nckd)


def torch_dist(s, t):
  p, q = F.softmax(t / TAU, 1), F.softmax(s / TAU, 1)
  rho = lambda a, b: F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1).mean()
  return TAU**2 * ((1 - rho(q, p)) + (1 - rho(q.T, p.T)))


def torch_attention(s, t):
  flat = lambda x: F.normalize(x.pow(2).mean(1).flatten(1))
  return (flat(s) - flat(t)).pow(2).mean()


def compare(ours, theirs, student, teacher, layout):
  """Value, and gradients of both arguments; layout: our axes in the order of PyTorch's."""
  value, gradients = jax.value_and_grad(ours, (0, 1))(jnp.asarray(student), jnp.asarray(teacher))
  s, t = (torch.from_numpy(np.ascontiguousarray(x.transpose(layout))).requires_grad_() for x in (student, teacher))
  expected = theirs(s, t)
  expected.backward()
  np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
  for found, tensor in zip(gradients, (s, t), strict=True):
    wanted = tensor.grad.numpy().transpose(np.argsort(layout))
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max() + 1e-9)


@pytest.mark.parametrize('name, theirs', [('kl_divergence', torch_kd), ('dkd', torch_dkd), ('dist', torch_dist)])
def test_logit_losses(name, theirs):
  loss = losses.LOGIT_LOSSES[name]()
  compare(lambda s, t: loss(t, s, jnp.asarray(LABELS), TAU), theirs, logits(0), logits(1), (0, 1))


@pytest.mark.parametrize('name, theirs', [('attention', torch_attention), ('fitnet', F.mse_loss)])
def test_feature_losses(name, theirs):
  loss = losses.FEATURE_LOSSES[name]()
  s, t = np.random.default_rng(2).normal(size=(2, 4, 6, 5, 3)).astype(np.float32)
  compare(lambda s, t: loss(t, s), theirs, s, t, (0, 3, 1, 2))


# Quantizers: rounding passes its gradient by the usual detach.


def torch_round(x):
  return x + (torch.round(x) - x).detach()


def torch_lsq(v, s, low, high, scale):
  s = s * scale + (s - s * scale).detach()
  return torch_round(torch.clamp(v / s, low, high)) * s


def torch_pact(x, a, n):
  return torch_round(torch.where(x < a, F.relu(x), a) * n / a.detach()) * a.detach() / n


def torch_dorefa(w, n):
  r = torch.tanh(w)
  r = r / (2 * r.abs().max()) + 0.5
  return 2 * torch_round(r * n) / n - 1


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('name', ['lsq-weight', 'lsq-activation', 'pact', 'dorefa-weight', 'dorefa-activation'])
def test_quantizers(name, bits):
  rng = np.random.default_rng(bits)
  n, top = 2**bits - 1, 2 ** (bits - 1) - 1
  x = rng.normal(size=(6, 5, 5, 4)).astype(np.float32)
  features = 5 * 5 * 4
  ours, theirs, start = {
    'lsq-weight': (
      lsq.Weight(bits),
      lambda v, s: torch_lsq(v, s, -top - 1, top, (x.size * top) ** -0.5),
      {'step': 1.7 / 2**bits},
    ),
    'lsq-activation': (
      lsq.Activation(bits),
      lambda v, s: torch_lsq(v, s, 0, n, (features * n) ** -0.5),
      {'step': 1.3 / 2**bits},
    ),
    'pact': (pact.Activation(bits), lambda v, a: torch_pact(v, a, n), {'clip': 1.1}),
    'dorefa-weight': (dorefa.Weight(bits), lambda w: torch_dorefa(w, n), {}),
    'dorefa-activation': (dorefa.Activation(bits), lambda v: torch_round(torch.clamp(v, 0, 1) * n) / n, {}),
  }[name]
  g = rng.normal(size=x.shape).astype(np.float32)
  parameters = {k: jnp.float32(v) for k, v in start.items()}
  value, pull_back = jax.vjp(ours.fake_quantize, jnp.asarray(x), parameters)
  dx, dp = pull_back(jnp.asarray(g))
  tensors = [torch.from_numpy(x).requires_grad_(), *(torch.tensor(v, requires_grad=True) for v in start.values())]
  expected = theirs(*tensors)
  expected.backward(torch.from_numpy(g))
  # A value that one side rounds up and the other down is a whole step apart: none of this sample is.
  np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(dx, tensors[0].grad, rtol=1e-4, atol=1e-5)
  for k, tensor in zip(start, tensors[1:], strict=True):
    assert abs(tensor.grad.item()) > 1e-4
    np.testing.assert_allclose(dp[k], tensor.grad, rtol=1e-3, atol=1e-4)
