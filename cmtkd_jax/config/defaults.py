"""The base configuration: every field with its default."""

import functools

import ml_collections
from ml_collections import config_dict

from cmtkd_jax import losses, methods, options, quantizers
from cmtkd_jax.models.bit_policy import QUANTIZER_ROLES

LOSSES = {'feature_loss': losses.FEATURE_LOSSES, 'logit_loss': losses.LOGIT_LOSSES}


def default():
  """Returns the base `ConfigDict`: CMT-KD with HWGQ, a 2-bit student and 4/6/8-bit teachers, on the digits."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.method = 'cmtkd'
  # Of convolutions; parameters, statistics, the classifier and losses are float32. bfloat16 has 8 significant bits, so
  # that maps of 6 to 8 bits lose some of their levels in it.
  config.dtype = 'float32'
  config.init_from = ''  # a work directory, or 'student=DIR,teacher1_4bit=DIR': start from trained networks
  config.init_from_allow = ''  # regex of parameters that may be missing or mismatched there
  config.teachers = ()  # work directories of finished runs, for the methods that learn from trained teachers
  # Runs that come first, {name: changes to this configuration}; '{name}' in init_from and teachers is their directory.
  config.first = ml_collections.ConfigDict()

  config.data = dict(
    name='digits',  # 'digits', a tfds name, 'folder:PATH', 'npy:PATH', 'generated:HxWxC:CLASSES:N'
    dir='',  # tfds data_dir
    minival=0.0,  # fraction of train held out, for choosing
    augment='pad_crop',
    pad=1,
    pad_mode='zeros',
    image_size=8,
    resize=0,
    mean=(0.5,),
    std=(0.5,),
    resident='auto',
    num_workers=4,
    workers='threads',  # that read and decode where images stream; 'processes' where one Python is too slow
    decoder='pil',  # of streamed images; 'tensorflow' is faster, resizes without antialiasing, and must be installed
    max_corrupt=0.01,
  )  # share of training images that may be broken, and are replaced by the next ones
  config.model = dict(
    name='resnet8',
    width=1.0,
    stem='cifar',
    block_order='pre',
    init='he_fan_out',
    bn_affine=True,
    bn_momentum=0.9,
    bn_groups=1,
  )  # statistics of the whole batch; of so many parts of it: as many as devices = each for itself
  config.student = dict(weight_bits=2, activation_bits=2)
  config.bits = dict(
    first_last=32, shortcut='quantized', rules=()
  )  # ordered (regex on 'student/stage1/..', weight bits, activation bits); the first match wins

  config.quantizer = dict(name='hwgq', weights='', activations='')  # the last two where one role has another quantizer
  for name, module in quantizers.QUANTIZERS.items():
    roles = {role: getattr(module, role.capitalize(), None) for role in QUANTIZER_ROLES}
    config.quantizer[name] = {role: options.defaults(cls, exclude=('bits',)) for role, cls in roles.items() if cls}
  for kind, table in LOSSES.items():
    config[kind] = {name: options.defaults(cls) for name, cls in table.items()}
  for name, module in methods.METHODS.items():
    config[name] = options.defaults(module.Settings)

  config.optimizer = dict(
    learning_rate=0.1,
    momentum=0.9,
    nesterov=False,
    schedule='step',
    decay_at='',
    decay_factor=0.1,
    warmup='',
    importance_lr_factor=0.1,
    weight_decay=1e-4,
    weight_decay_low_bits=25e-6,  # of networks whose weights have 1 or 2 bits
    gradient_clip=config_dict.placeholder(float),
  )
  config.batch_size = 64
  config.eval_batch_size = 256
  # What saves memory, at the price of time.
  config.accumulate = 1  # parts of the batch that are computed one after the other, and their gradients averaged
  config.remat = ''  # regex of networks whose maps are computed again in the backward pass: 'teacher.*', '.*'
  # Durations: '120 epochs', '3000 steps' or '1000000 examples'.
  config.duration = '60 epochs'
  config.log_every = '50 steps'
  config.eval_every = '10 epochs'
  config.checkpoint_every = '10 epochs'
  config.keep_checkpoints = 2
  config.profile = ''  # e.g. '10 steps': after a few steps, record so many with JAX's profiler into WORKDIR/profile
  config.allow_changes = False  # go on in a work directory of another configuration
  config.tensorboard = True  # also write TensorBoard files where clu and TensorFlow are installed

  # A table of runs (--mode=table): {name: changes to this configuration}, and its lines, see experiments/table.py.
  config.table = dict(title='', seeds=(0, 1, 2), only=(), runs={}, lines=())
  return config


def flat(config, prefix=''):
  """Returns `{'optimizer.momentum': value}` of all fields."""
  fields = {}
  for name, value in config.items():
    nested = isinstance(value, ml_collections.ConfigDict)
    fields |= flat(value, f'{prefix}{name}.') if nested else {f'{prefix}{name}': value}
  return fields


@functools.cache
def known_fields():
  """Returns `flat` of the base configuration."""
  return flat(default())
