"""The train step and the evaluation step: pure functions of (state, batch) for one `jax.jit` each."""

import functools
from typing import Any, NamedTuple

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cmtkd_jax.losses.base import of_class
from cmtkd_jax.models import STUDENT, layers
from cmtkd_jax.training.averaging import Averaging
from cmtkd_jax.training.freezing import frozen_fractions

NO_AVERAGE = Averaging()
_NO_STEP = 2**31 - 1  # a number that no step has
_OWN_METRICS = ('top1', 'gradient_norm', 'frozen_weights')  # of a network; no term of a loss may have these names
# Streams of a step's key, next to that of the first view, which is the key itself. Augmentations split their key, and
# `split(key, n)[i]` is `fold_in(key, i)`: a stream with a small number would meet their keys.
SAMPLING, _OTHER_VIEWS, _MIXING = 2**31 - 1, 2**31 - 2, 2**31 - 3


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes; saved and restored whole.

  step: int32 scalar, also the position in the data.
  params: parameters of every network, by name.
  model_state: `{collection: ...}` of BN statistics and fitted quantizer values.
  opt_state: of the optax transformation.
  key: uint32 [2], data of the run's PRNG key; the randomness of step s is `fold_in(key, s)`.
  average: variables of the average network, see `averaging`; () where none is kept.
  """

  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  key: jax.Array
  average: Any = ()

  @property
  def variables(self):
    """`{'params': ..., collections}` of the networks that are trained."""
    return {'params': self.params, **self.model_state}

  def to_tree(self, released=None):
    """Returns the form in which checkpoints hold it: networks apart from the rest.

    released: variables of the networks that others read, where they are not those that are trained, see `release`.
    """
    tree = {'optimizer': self.opt_state, 'step': self.step, 'key': self.key}
    if self.average:
      tree['average'] = self.average
    if released is None:
      return {'variables': self.variables, **tree}
    return {'variables': released, 'trained': self.variables, **tree}

  @classmethod
  def from_tree(cls, tree):
    """Undoes `to_tree`."""
    model_state = dict(tree.get('trained', tree['variables']))
    params = model_state.pop('params')
    return cls(tree['step'], params, model_state, tree['optimizer'], tree['key'], tree.get('average', ()))


def initial_state(trained, batch, *, method, optimizer, augment, seed, grad_accum_steps=1, averaging=NO_AVERAGE):
  """The state before the first step.

  Args:
    trained: variables that networks start from, may be empty or hold a part only; see `initialize`.
    batch: the first training batch: learned and fitted quantizer values start from what the networks make of its first
      part.
    method, optimizer, augment, grad_accum_steps, averaging: as in `train_step`.
    seed: of parameters, augmentation and everything else that is random in the run.

  Returns:
    `TrainState` at step 0.
  """
  key = jax.random.key(seed)
  images = _views(jax.random.fold_in(key, 0), batch['image'], method, augment)
  images = parts_of(images, grad_accum_steps, images.ndim - 4)[0]  # a step's memory has room for no more
  init_key = jax.random.fold_in(key, _NO_STEP)
  rngs = {'params': init_key, 'sampling': jax.random.fold_in(init_key, 1)}
  # As `method.init`, from the variables there are: what is missing is created from them and the images, and what is
  # there stays as it was. `method.apply` would also train what it has just created on them.
  run = lambda scope: method.clone(parent=scope)(images, train=True)
  create = flax.core.apply(run, mutable=flax.core.DenyList('intermediates'), flags={'initializing': True})
  model_state = dict(create(trained, rngs=rngs)[1])
  average = averaging.init(model_state)
  params = model_state.pop('params')
  return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), jax.random.key_data(key), average)


def abstract_state(batch_spec, sharding=None, **parts):
  """Returns shapes and dtypes of the `TrainState` that `initial_state(trained, batch, **parts)` makes, each placed."""
  state = jax.eval_shape(functools.partial(initial_state, **parts), {}, batch_spec)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def initial_state_options():
  """Returns the compiler options for `initial_state`, a program that runs once.

  On CPU, LLVM would spend up to minutes on the random numbers of many parameters. At its first level it takes seconds,
  the code runs as fast, and the values are the same to rounding.
  """
  if jax.default_backend() != 'cpu' or jax.config.read('jax_disable_most_optimizations'):  # which is lower still
    return None
  return {'xla_backend_optimization_level': 1}


def train_step(
  state, batch, *, method, optimizer, augment, grad_accum_steps=1, mix=None, loss_at=None, averaging=NO_AVERAGE
):
  """One step of everything that trains together.

  Args:
    state: `TrainState`.
    batch: {'image': uint8 [B, h, w, C], 'label': int32 [B]}, sharded over the devices.
    method: `methods.Method`.
    optimizer: optax transformation.
    augment: (key, uint8 images) -> float32 [B, H, W, C].
    grad_accum_steps: into how many parts the batch is cut, whose gradients are averaged. Each is normalized by itself;
      running statistics and fitted values of activations are updated after each, those of weights once.
    mix: (key, images [..., B, H, W, C]) -> (mixed images, share of the own label), as `data.Dataset.mix`; or None.
    loss_at: step -> loss of outputs and labels, see `loss_schedule`; None for the method's own at every step.
    averaging: an `averaging.Averaging`.

  Returns:
    (new state, metrics): float32 scalars 'loss', each loss term, '<network>/top1' in percent,
    '<network>/gradient_norm', and '<network>/frozen_weights' in percent where weights freeze.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
  images = _views(key, batch['image'], method, augment)
  sampling = jax.random.fold_in(key, SAMPLING)
  labels = batch['label']
  if mix is not None:
    images, share = mix(jax.random.fold_in(key, _MIXING), images)
    labels = MixedLabels(labels, jnp.roll(labels, 1), jnp.full(labels.shape, share))
  loss = method.loss if loss_at is None else loss_at(state.step)

  def objective(params, model_state, images, labels, key):
    outputs, model_state = method.apply(
      {'params': params, **model_state}, images, train=True, mutable=list(model_state), rngs={'sampling': key}
    )
    metrics = mixed(functools.partial(_metrics, loss, outputs), labels)
    return metrics['loss'], (metrics, model_state)

  gradients_of = jax.grad(objective, has_aux=True)
  if grad_accum_steps == 1:
    gradients, (metrics, model_state) = gradients_of(state.params, state.model_state, images, labels, sampling)
  else:
    parts = (
      parts_of(images, grad_accum_steps, images.ndim - 4),
      jax.tree.map(lambda x: parts_of(x, grad_accum_steps, 0), labels),
      jax.random.split(sampling, grad_accum_steps),
    )
    gradients, metrics, model_state = _accumulate(gradients_of, state, parts, grad_accum_steps)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  metrics |= {f'{name}/gradient_norm': optax.tree.norm(g) for name, g in gradients.items() if name not in method.frozen}
  metrics |= frozen_fractions(opt_state)
  state = state.replace(
    step=state.step + 1, params=optax.apply_updates(state.params, updates), model_state=model_state, opt_state=opt_state
  )
  return state.replace(average=averaging.update(state.average, state.variables, state.step)), metrics


def _accumulate(gradients_of, state, parts, count):
  """Returns (gradients, metrics, model_state) of `count` parts of a batch: means, and the state after the last."""

  def add(carry, part):
    total, model_state = carry
    # All parts see the same weights, so each fits their quantizers from the values before the step: once a step.
    model_state = _with_weight_quantizers(model_state, state.model_state)
    gradients, (metrics, model_state) = gradients_of(state.params, model_state, *part)
    return (jax.tree.map(lambda t, g: t + g / count, total, gradients), model_state), metrics

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  (gradients, model_state), metrics = jax.lax.scan(add, (zeros, dict(state.model_state)), parts)
  return gradients, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics), model_state


def _with_weight_quantizers(model_state, before):
  """`model_state` with what weight quantizers have fitted in `before`."""
  name = layers.quantizer_name('weight')
  is_theirs = lambda path: any(entry.key == name for entry in path)
  return jax.tree_util.tree_map_with_path(lambda path, x, old: old if is_theirs(path) else x, model_state, before)


def _metrics(loss, outputs, labels):
  """`{name: float32 scalar}` of one forward pass: 'loss', its terms, accuracies."""
  found = loss(outputs, labels)
  if not isinstance(found, tuple) or len(found) != 2:
    raise ValueError(f"a method's loss returns (total, terms); got {type(found).__name__}")
  total, terms = found
  if not isinstance(terms, dict):
    raise ValueError(f"the terms of a method's loss are a dict of scalars; got {type(terms).__name__}")
  if STUDENT not in outputs.logits:
    raise ValueError(f"a method's outputs have logits of {STUDENT!r}; got those of {', '.join(outputs.logits)}")
  top1 = {f'{name}/top1': 100 * jnp.mean(label_rank(z, labels) < 1) for name, z in outputs.logits.items()}
  if clash := sorted(name for name in terms if name == 'loss' or name.rpartition('/')[2] in _OWN_METRICS):
    raise ValueError(f'a term of the loss is named {clash[0]!r}, which is what training calls another value; rename it')
  for name, value in {'the total': total, **terms}.items():
    if jnp.shape(value):
      raise ValueError(f'a loss is a scalar; {name} has shape {jnp.shape(value)}; take the mean')
  return {'loss': total, **terms, **top1}


class MixedLabels(NamedTuple):
  """Labels of images that are mixtures of two: the image's own, its partner's, and the share of its own.

  own, partner: int32 [B]. share: float32 [B], the same number in every row, so that it can be cut like labels.
  """

  own: jax.Array
  partner: jax.Array
  share: jax.Array


def mixed(metrics_of, labels):
  """Returns `metrics_of(labels)`; of `MixedLabels`, the mean of both labels' by their shares.

      L = share L(own) + (1 - share) L(partner)

  So whatever depends on a label, such as eq. (7) of CMT-KD, is defined for each of the two, and terms without labels
  stay as they are.

  Source: Zhang et al., "mixup", ICLR 2018: their loss, which is equal to a soft label for a cross entropy.
  """
  if not isinstance(labels, MixedLabels):
    return metrics_of(labels)
  share = labels.share[0]
  return jax.tree.map(
    lambda own, partner: share * own + (1 - share) * partner, metrics_of(labels.own), metrics_of(labels.partner)
  )


def jit_train_step(sharding, **parts):
  """Returns the compiled form of `train_step`, (state, batch) -> (state, metrics), which takes the state's memory over.

  Args:
    sharding: of state and metrics.
    parts: the keyword arguments of `train_step`.
  """
  return jax.jit(functools.partial(train_step, **parts), donate_argnums=0, out_shardings=sharding)


def parts_of(x, count, axis):
  """Cuts axis `axis`, the batch, into [count, ...]: row r into part r % count, so that no row changes its device."""
  return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, count, *x.shape[axis + 1 :]), axis + 1, 0)


def _views(key, images, method, augment):
  """What the method trains on: [B, H, W, C], or [views, B, H, W, C] where it wants several augmentations."""
  first = augment(key, images)
  if method.views == 1:
    return first
  others = jax.random.fold_in(key, _OTHER_VIEWS)
  return jnp.stack([first, *(augment(jax.random.fold_in(others, view), images) for view in range(1, method.views))])


def eval_step(variables, batch, *, method, normalize):
  """Counts of one evaluation batch.

  Args:
    variables: {'params': ..., collections}.
    batch: as `train_step`'s, with 'mask': bool [B], False for padding.
    method, normalize: the method, and uint8 images -> float32 [B, H, W, C].

  Returns:
    {network: {'top1', 'top5', 'cross_entropy', 'count'}}: float32 sums over the batch's examples.
  """
  outputs = method.apply(variables, normalize(batch['image']), train=False)
  mask = batch['mask'].astype(jnp.float32)
  sums = {}
  for name, logits in outputs.logits.items():
    rank = label_rank(logits, batch['label'])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    sums[name] = {
      'top1': jnp.sum(mask * (rank < 1)),
      'top5': jnp.sum(mask * (rank < 5)),
      'cross_entropy': jnp.sum(mask * cross_entropy),
      'count': jnp.sum(mask),
    }
  return sums


def label_rank(logits, labels):
  """Returns how many classes come before the label, int32 [B]; of equal logits the lower class comes first.

  rank < 1 is a top-1 hit as `argmax` has it, rank < 5 a top-5 hit as `top_k` has it, without a sort.
  """
  classes = jnp.arange(logits.shape[-1])[None]
  label = labels[:, None]
  own = of_class(logits, labels, keepdims=True)
  # Written so that a NaN comes before everything, itself included: a network that has diverged has no hits.
  return jnp.sum(~(logits <= own) | (logits == own) & (classes < label), axis=-1)
