"""The train step and the evaluation step: pure functions of (state, batch) for one `jax.jit` each."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util


_NO_STEP = _NO_VIEW = 2**31 - 1  # numbers that no step and no view has


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes; saved and restored whole.

  step: int32 scalar, also the position in the data.
  params: parameters of every network, by name.
  model_state: `{collection: ...}` of BN statistics and fitted quantizer values.
  opt_state: of the optax transformation.
  key: uint32 [2], data of the run's PRNG key; the randomness of step s is `fold_in(key, s)`.
  """
  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  key: jax.Array

  def to_tree(self):
    """Returns the form in which checkpoints hold it: networks apart from the rest."""
    return {'variables': {'params': self.params, **self.model_state}, 'optimizer': self.opt_state,
            'step': self.step, 'key': self.key}

  @classmethod
  def from_tree(cls, tree):
    """Undoes `to_tree`."""
    model_state = dict(tree['variables'])
    params = model_state.pop('params')
    return cls(tree['step'], params, model_state, tree['optimizer'], tree['key'])


def initial_state(trained, batch, *, method, optimizer, augment, seed):
  """The state before the first step.

  Args:
    trained: variables that networks start from, may be empty or hold a part only; see `init_from`.
    batch: the first training batch: learned quantizer values start from what the networks make of it.
    method, optimizer, augment: as in `train_step`.
    seed: of parameters, augmentation and everything else that is random in the run.

  Returns:
    `TrainState` at step 0.
  """
  key = jax.random.key(seed)
  images = _views(jax.random.fold_in(key, 0), batch['image'], method, augment)
  init_key = jax.random.fold_in(key, _NO_STEP)
  rngs = {'params': init_key, 'sampling': jax.random.fold_in(init_key, 1)}
  if trained:
    # Whatever is missing in `trained` is created from it and the images; what is there stays as it was.
    _, created = method.apply(trained, images, train=True, mutable=True, rngs=rngs)
    flat = traverse_util.flatten_dict(created) | traverse_util.flatten_dict(trained)
    model_state = traverse_util.unflatten_dict(flat)
  else:
    model_state = dict(method.init(rngs, images, train=True))
  params = model_state.pop('params')
  return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), jax.random.key_data(key))


def train_step(state, batch, *, method, optimizer, augment):
  """One step of everything that trains together.

  Args:
    state: `TrainState`.
    batch: {'image': uint8 [B, h, w, C], 'label': int32 [B]}, sharded over the devices.
    method: `methods.Method`.
    optimizer: optax transformation.
    augment: (key, uint8 images) -> float32 [B, H, W, C].

  Returns:
    (new state, metrics): float32 scalars 'loss', each loss term, 'top1/<network>' and 'gradient_norm/<network>'.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
  images = _views(key, batch['image'], method, augment)
  rngs = {'sampling': jax.random.fold_in(key, _NO_VIEW)}

  def objective(params):
    outputs, model_state = method.apply(
        {'params': params, **state.model_state}, images, train=True, mutable=list(state.model_state), rngs=rngs)
    loss, terms = method.loss(outputs, batch['label'])
    return loss, (terms, outputs.logits, model_state)

  (loss, (terms, logits, model_state)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  metrics = {'loss': loss, **terms}
  metrics |= {f'top1/{name}': jnp.mean(label_rank(z, batch['label']) < 1) for name, z in logits.items()}
  metrics |= {f'gradient_norm/{name}': optax.tree.norm(g) for name, g in gradients.items() if name not in method.frozen}
  state = state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates),
                        model_state=model_state, opt_state=opt_state)
  return state, metrics


def _views(key, images, method, augment):
  """What the method trains on: [B, H, W, C], or [views, B, H, W, C] where it wants several augmentations."""
  first = augment(key, images)
  if method.views == 1:
    return first
  return jnp.stack([first, *(augment(jax.random.fold_in(key, view), images) for view in range(1, method.views))])


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
    sums[name] = {'top1': jnp.sum(mask * (rank < 1)), 'top5': jnp.sum(mask * (rank < 5)),
                  'cross_entropy': jnp.sum(mask * cross_entropy), 'count': jnp.sum(mask)}
  return sums


def label_rank(logits, labels):
  """Returns how many classes come before the label, int32 [B]; of equal logits the lower class comes first.

  rank < 1 is a top-1 hit as `argmax` has it, rank < 5 a top-5 hit as `top_k` has it, without a sort.
  """
  classes = jnp.arange(logits.shape[-1])[None]
  label = labels[:, None]
  own = jnp.sum(jnp.where(classes == label, logits, 0), axis=-1, keepdims=True)
  # Written so that a NaN comes before everything, itself included: a network that has diverged has no hits.
  return jnp.sum(~(logits <= own) | (logits == own) & (classes < label), axis=-1)
