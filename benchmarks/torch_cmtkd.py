"""The train step of CMT-KD in PyTorch, for comparison: ResNets with HWGQ, the attention loss, SGD, augmentation.

Written from the definitions, the way PyTorch is fast: channels last, autocast, a fused optimizer, and nothing that
waits for the device. Modules are named like the parameters of `cmtkd_jax`, so that `tests/methods/test_torch_twin.py`
can compare losses and gradients. What differs: running variances are unbiased, and under autocast normalized and
quantized maps are bfloat16, where ours are float32 until the next convolution. Its configuration is that of
`cmtkd_jax`, as a nested dict.
"""

import contextlib
import time

import torch
from torch import nn
from torch.nn import functional as F

BACKBONES = {'resnet8': ((1, 1, 1), (16, 32, 64)), 'resnet18': ((2, 2, 2, 2), (64, 128, 256, 512))}
# Steps of HWGQ by bit-width 1..8, for data of standard deviation 1.
WEIGHT_STEP = (1.595769, 0.995687, 0.586019, 0.335201, 0.188139, 0.104063, 0.056868, 0.030762)
ACTIVATION_STEP = (0.799, 0.538, 0.3217, 0.185, 0.105488, 0.057261, 0.030870, 0.016528)
LOW_BITS = 2  # weights of so few bits get the smaller weight decay
# The one form of the method that is written here.
FIXED = {
  'method.name': 'cmtkd',
  'model.block_order': 'pre',
  'model.bn_groups': 1,
  'model.bn_affine': True,
  'quantizer.name': 'hwgq',
  'quantizer.weights': '',
  'quantizer.activations': '',
  'quantizer.hwgq.activation.scheme': 'nearest',
  'quantizer.hwgq.activation.step': 'published',
  'quantizer.hwgq.weight.per_channel': False,
  'quantizer.hwgq.weight.binary_scale': 'std',
  'bits.first_last': 32,
  'bits.rules': (),
  'bits.shortcut': 'quantized',
  'method.cmtkd.taps': (),
  'method.cmtkd.ce_temperature': 1.0,
  'feature_loss.name': 'attention',
  'logit_loss.name': 'kl_divergence',
  'method.cmtkd.stop_gradient_target': True,
  'method.cmtkd.stop_gradient_shared': False,
  'method.cmtkd.combined_head': 'shared',
  'method.cmtkd.fused': 'quantized',
  'method.cmtkd.student_map': 'quantized',
  'method.cmtkd.requantize': False,
  'method.cmtkd.importance_init': (),
  'feature_loss.attention.norm': 'mean_square',
  'feature_loss.attention.power': 2.0,
  'feature_loss.attention.adaptor': 'identity',
  'feature_loss.attention.tap_factor': 1.0,
  'optimizer.nesterov': False,
  'optimizer.grad_clip_norm': None,
  'grad_accum_steps': 1,
  'remat': '',
}


def check(config):
  """Raises `ValueError` for a configuration that this file does not implement."""
  for field, value in FIXED.items():
    found = config
    for name in field.split('.'):
      found = found[name]
    if found != value:
      raise ValueError(f'config.{field}={found!r}: the PyTorch step has {value!r} only')


# Quantizers.


class HalfWave(torch.autograd.Function):
  """D * round(clip(x / D, 0, n)); the gradient passes where 0 <= x <= n D."""

  @staticmethod
  def forward(ctx, x, step, n):
    ctx.save_for_backward(x.ge(0).logical_and_(x.le(n * step)))
    return (x * (1 / step)).clamp_(0, n).round_().mul_(step)

  @staticmethod
  def backward(ctx, g):
    (passes,) = ctx.saved_tensors
    return g * passes, None, None


class MidRise(torch.autograd.Function):
  """s * (clip(round(w / s + 1/2), 1 - h, h) - 1/2) with h = 2^(b-1) and s = step * std(w); the gradient passes."""

  @staticmethod
  def forward(ctx, w, step, half):
    s = (step * w.std()).clamp_min(1e-12)
    return (w / s).add_(0.5).round_().clamp_(1 - half, half).sub_(0.5).mul_(s)

  @staticmethod
  def backward(ctx, g):
    return g, None, None


class Activation(nn.Module):
  """Half-wave quantizer of `bits`; a ReLU at 32."""

  def __init__(self, bits):
    super().__init__()
    self.bits = bits

  def forward(self, x):
    return F.relu(x) if self.bits == 32 else HalfWave.apply(x, ACTIVATION_STEP[self.bits - 1], 2**self.bits - 1)


class Conv(nn.Module):
  """Convolution with weights of `bits`, without bias."""

  def __init__(self, inputs, features, kernel, stride, bits):
    super().__init__()
    self.stride, self.padding, self.bits = stride, (kernel - 1) // 2, bits
    self.weight = nn.Parameter(torch.empty(features, inputs, kernel, kernel))
    nn.init.kaiming_normal_(self.weight, mode='fan_out')

  def forward(self, x):
    w = self.weight
    if self.bits != 32:
      w = MidRise.apply(w, WEIGHT_STEP[self.bits - 1], 2 ** (self.bits - 1))
    return F.conv2d(x, w, stride=self.stride, padding=self.padding)


# Networks.


class Stem(nn.Module):
  def __init__(self, features, form, activation_bits):
    super().__init__()
    self.imagenet = form == 'imagenet'
    self.conv = Conv(3, features, *((7, 2) if self.imagenet else (3, 1)), 32)
    self.norm, self.activation = nn.BatchNorm2d(features), Activation(activation_bits)

  def forward(self, x):
    x = self.conv(x)
    if self.imagenet:
      x = F.max_pool2d(x, 3, 2, 1)
    return self.activation(self.norm(x))


class Block(nn.Module):
  def __init__(self, inputs, features, stride, weight_bits, activation_bits):
    super().__init__()
    self.conv1 = Conv(inputs, features, 3, stride, weight_bits)
    self.norm1, self.activation1 = nn.BatchNorm2d(features), Activation(activation_bits)
    self.conv2 = Conv(features, features, 3, 1, weight_bits)
    projects = stride != 1 or inputs != features
    self.shortcut = Conv(inputs, features, 1, stride, weight_bits) if projects else None

  def forward(self, x, identity):
    y = self.conv2(self.activation1(self.norm1(self.conv1(x))))
    return y + (identity if self.shortcut is None else self.shortcut(x))


class Stage(nn.Module):
  """Images or a quantized map -> the map before the stage's closing quantizer."""

  def __init__(self, inputs, features, blocks, stride, weight_bits, activation_bits, stem=''):
    super().__init__()
    self.stem = Stem(features, stem, activation_bits) if stem else None
    self.blocks = blocks
    for b in range(1, blocks + 1):
      first = b == 1 and not stem
      setattr(
        self,
        f'block{b}',
        Block(inputs if first else features, features, stride if b == 1 else 1, weight_bits, activation_bits),
      )
      setattr(self, f'norm{b}', nn.BatchNorm2d(features))
    self.activation = Activation(activation_bits)

  def forward(self, x):
    if self.stem is not None:
      x = self.stem(x)
    identity = x
    for b in range(1, self.blocks + 1):
      identity = getattr(self, f'block{b}')(x, identity)
      y = getattr(self, f'norm{b}')(identity)
      if b < self.blocks:
        x = self.activation(y)
    return y


class Head(nn.Module):
  """Mean over the positions and one dense layer, in float32."""

  def __init__(self, features, classes):
    super().__init__()
    self.classifier = nn.Linear(features, classes)

  def forward(self, x):
    with torch.autocast(x.device.type, enabled=False):
      return self.classifier(x.float().mean((2, 3)))


class Network(nn.Module):
  def __init__(self, model, weight_bits, activation_bits, classes=0):
    super().__init__()
    blocks, widths = BACKBONES[model['name']]
    features = [max(1, round(w * model['width'])) for w in widths]
    for k, count in enumerate(blocks):
      setattr(
        self,
        f'stage{k + 1}',
        Stage(
          features[k - 1],
          features[k],
          count,
          1 if k == 0 else 2,
          weight_bits,
          activation_bits,
          model['stem'] if k == 0 else '',
        ),
      )
    self.taps = tuple(1 + 2 * sum(blocks[: k + 1]) for k in range(len(blocks)))
    self.features, self.activation = features[-1], Activation(activation_bits)
    if classes:
      self.head = Head(features[-1], classes)

  def stage(self, k, x):
    """The quantized map of tap `k`, from 0."""
    return self.activation(getattr(self, f'stage{k + 1}')(x))

  def forward(self, x):
    for k in range(len(self.taps)):
      x = self.stage(k, x)
    return self.head(x)


# What trains together: a module each, whose call returns (loss, {network: logits}).


class Networks(nn.Module):
  """Networks of the student's architecture at the given widths, which never meet: a cross entropy each."""

  def __init__(self, config, classes, widths):
    super().__init__()
    self.weight_bits = {f'network{i}': bits for i, bits in enumerate(widths, 1)}
    for name, bits in self.weight_bits.items():
      setattr(self, name, Network(config['model'], bits, bits, classes))

  def forward(self, images, labels):
    logits = {name: getattr(self, name)(images) for name in self.weight_bits}
    return sum(F.cross_entropy(z, labels) for z in logits.values()), logits


class CMTKD(nn.Module):
  """Teachers, student, importance factors and the combined classifier (CMT-KD eqs. (1)-(10))."""

  def __init__(self, config, classes):
    super().__init__()
    check(config)
    self.settings, self.gamma = config['method']['cmtkd'], config['feature_loss']['attention']['weight']
    own = config['student']
    self.student = Network(config['model'], own['weight_bits'], own['activation_bits'], classes)
    self.weight_bits = {'student': own['weight_bits']}
    for i, bits in enumerate(self.settings['teacher_bits'], 1):
      name = f'teacher{i}_{bits}bit'
      setattr(self, name, Network(config['model'], bits, bits))
      self.weight_bits[name] = bits
    self.teacher_names = list(self.weight_bits)[1:]
    self.importance = nn.ParameterDict(
      {f'tap{tap}': nn.Parameter(torch.zeros(len(self.teacher_names))) for tap in self.student.taps}
    )
    self.combined_head = Head(self.student.features, classes)

  def forward(self, images, labels):
    teachers = [getattr(self, name) for name in self.teacher_names]
    shared = [images] * len(teachers)
    student, feature_loss = images, 0.0
    for k, tap in enumerate(self.student.taps):
      maps = [teacher.stage(k, x) for teacher, x in zip(teachers, shared)]
      student = self.student.stage(k, student)
      mixture = sum(pi * x for pi, x in zip(self.importance[f'tap{tap}'].softmax(0).unbind(), maps))
      feature_loss = feature_loss + attention_loss(mixture, student)
      shared = [mixture] * len(teachers)
    z_t, z_s = self.combined_head(mixture), self.student.head(student)
    target = min_logit(z_t, z_s, labels).detach()
    tau = self.settings['temperature']
    loss = (
      self.settings['alpha'] * (F.cross_entropy(z_s, labels) + F.cross_entropy(z_t, labels))
      + self.settings['beta'] * (distillation(target, z_s, tau) + distillation(target, z_t, tau))
      + self.gamma * feature_loss
    )
    return loss, {'student': z_s, 'combined_teacher': z_t}


def attention_loss(a, b):
  """Mean squared difference of the normalized sums of squares over the channels, eq. (5)."""
  flat = lambda x: F.normalize(x.float().square().sum(1).flatten(1))
  return F.mse_loss(flat(a), flat(b))


def min_logit(z_t, z_s, labels):
  """The smaller logit of each class, counted from the true class, eq. (7)."""
  true = labels[:, None]
  return torch.minimum(z_t - z_t.gather(1, true), z_s - z_s.gather(1, true))


def distillation(target, z, tau):
  """tau^2 KL of softened predictions, eqs. (8) and (9)."""
  return tau**2 * F.kl_div(
    F.log_softmax(z / tau, 1), F.log_softmax(target / tau, 1), reduction='batchmean', log_target=True
  )


# The step.


def augment(images, data):
  """uint8 [B, H, W, C] -> float32 [B, C, H, W] in channels-last memory: crop and mirror at random, standardize."""
  batch, height, width, _ = images.shape
  index = lambda size: torch.arange(size, device=images.device)
  mirrored = lambda: torch.rand(batch, 1, device=images.device) < 0.5
  if data['augment'].startswith('pad_crop'):
    pad = data['pad']
    corner = lambda: torch.randint(0, 2 * pad + 1, (batch, 1), device=images.device)
    rows, columns = index(height)[None] + corner(), index(width)[None]
    if data['augment'].endswith('flip'):
      columns = torch.where(mirrored(), columns.flip(1), columns)
    columns = columns + corner()
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    images = padded[index(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
  elif data['augment'] != 'none':  # cropped and resized already
    images = torch.where(mirrored()[:, :, None, None], images.flip(2), images)
  mean, std = (torch.tensor(data[name], device=images.device) for name in ('mean', 'std'))
  return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def optimizer(module, config, learning_rate):
  """SGD with one group per network, by its weight width, one for the importance factors, and one for the rest."""
  o, groups = config['optimizer'], []
  for name, child in module.named_children():
    decay, factor = o['weight_decay'], 1.0
    if name == 'importance':
      decay, factor = 0.0, o['importance_lr_factor']
    elif module.weight_bits.get(name, 32) <= LOW_BITS:
      decay = o['weight_decay_low_bits']
    groups.append({'params': list(child.parameters()), 'weight_decay': decay, 'lr': factor * learning_rate})
  return torch.optim.SGD(groups, learning_rate, o['momentum'], fused=True)


class Step:
  """One train step after the other on the same batch; `mode` is 'eager' or a mode of `torch.compile`."""

  def __init__(self, module, config, images, labels, mode, learning_rate=1e-3):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.module = module.to(device, memory_format=torch.channels_last).train()
    self.images, self.labels = (torch.from_numpy(x).to(device) for x in (images, labels))
    self.labels = self.labels.long()
    self.optimizer = optimizer(self.module, config, learning_rate)
    cast = contextlib.nullcontext
    if config['dtype'] == 'bfloat16':
      cast = lambda: torch.autocast(device, torch.bfloat16)

    def objective(images, labels):
      images = augment(images, config['data'])
      with cast():
        loss, logits = self.module(images.contiguous(memory_format=torch.channels_last), labels)
      top1 = {name: (z.detach().argmax(1) == labels).float().mean() for name, z in logits.items()}
      return loss, top1

    self.objective = objective if mode == 'eager' else torch.compile(objective, mode=mode)

  def __call__(self):
    torch.compiler.cudagraph_mark_step_begin()  # what the step before returned may be overwritten
    self.optimizer.zero_grad(set_to_none=True)
    loss, metrics = self.objective(self.images, self.labels)
    loss.backward()
    norms = {
      name: nn.utils.get_total_norm([p.grad for p in child.parameters()])
      for name, child in self.module.named_children()
    }
    self.optimizer.step()
    return loss.detach(), metrics, norms


def synchronize():
  """Returns when the device has done all that it was told."""
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def serve(connection, config, classes, images, labels):
  """Answers the requests of `train_step.py`, in a process of its own, until the connection is closed.

  ('prepare', name, kind, mode, warm-up steps) -> {'compile_seconds', 'memory'}; ('run', name, steps) -> (wall time,
  CPU time) of a step in seconds; what fails is answered as text. kind is 'cmtkd' or the widths of networks that never
  meet.
  """
  torch.backends.cudnn.benchmark = True
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as JAX does by default
  torch.manual_seed(0)
  steps = {}
  while True:
    try:
      request = connection.recv()
    except EOFError:
      return
    try:
      connection.send(_answer(request, steps, config, classes, images, labels))
    except Exception as e:  # whatever it is, the other measurements go on
      connection.send(f'{type(e).__name__}: {" ".join(str(e).split())[:300]}')


def _answer(request, steps, config, classes, images, labels):
  task, name, *rest = request
  begin, cpu_begin = time.perf_counter(), time.process_time()
  if task == 'run':
    for _ in range(rest[0]):
      steps[name]()
    synchronize()
    return (time.perf_counter() - begin) / rest[0], (time.process_time() - cpu_begin) / rest[0]
  kind, mode, warm_up = rest
  gpu = torch.cuda.is_available()
  if mode == 'reduce-overhead' and not gpu:
    raise RuntimeError('CUDA graphs need a GPU')
  held = torch.cuda.memory_allocated() if gpu else 0  # by the steps before this one
  module = CMTKD(config, classes) if kind == 'cmtkd' else Networks(config, classes, kind)
  step = Step(module, config, images, labels, mode)
  if gpu:
    torch.cuda.reset_peak_memory_stats()
  loss, _, _ = step()
  synchronize()
  seconds = time.perf_counter() - begin
  for _ in range(warm_up):
    loss, _, _ = step()
  if not torch.isfinite(loss):
    raise RuntimeError(f'the loss is {loss.item()}')
  steps[name] = step
  return {'compile_seconds': seconds, 'memory': torch.cuda.max_memory_allocated() - held if gpu else None}
