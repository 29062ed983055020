"""Which classes the main network confuses: the confusion matrix of the test split and its largest entries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colors

from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT
from cmtkd_jax.report import plotting
from cmtkd_jax.report.page import Section, escape, table
from cmtkd_jax.runs.run_reader import display_name
from cmtkd_jax.training import restore

_MAX_LABELS = 20  # classes that are named in the figure
_MAX_CONFUSIONS = 10


class Confusion(NamedTuple):
  """Predictions of every network for the test split.

  step: of the checkpoint.
  counts: `{network: int64 [C, C]}`, number of images by label (row) and predicted class (column).
  """

  step: int
  counts: dict


def count(workdir):
  """Returns the `Confusion` of the newest checkpoint in `workdir`, from one pass over its test split.

  Raises:
    UserError: the checkpoint or the data are not there.
  """
  run = restore.open_run(workdir)
  method, dataset, classes = run.method, run.dataset, run.dataset.num_classes

  def predict(variables, batch):
    logits = method.apply(variables, dataset.normalize(batch['image']), train=False).logits
    return {name: jnp.argmax(z, axis=-1) for name, z in logits.items()}, batch['label'], batch['mask']

  predict = jax.jit(predict, out_shardings=run.sharding)
  counts = {}
  for batch in dataset.evals['test'].batches():
    predicted, labels, mask = jax.device_get(predict(run.variables, batch))
    for name, guess in predicted.items():
      pairs = np.bincount(labels[mask] * classes + guess[mask], minlength=classes**2)
      counts[name] = counts.get(name, 0) + pairs.reshape(classes, classes)
  return Confusion(run.step, counts)


def most_frequent(counts, classes):
  """Returns the largest entries off the diagonal as (label, predicted, images, share of the label's images)."""
  wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
  order = np.argsort(-wrong, axis=None, kind='stable')[:_MAX_CONFUSIONS]
  pairs = [np.unravel_index(i, wrong.shape) for i in order]
  return [
    (classes[true], classes[guess], int(wrong[true, guess]), wrong[true, guess] / counts[true].sum())
    for true, guess in pairs
    if wrong[true, guess]
  ]


def section(run):
  """The confusion matrix of the main network and its most frequent confusions."""
  title = 'Confusion of classes'
  try:
    step, matrices = count(run.directory)
  except UserError as e:
    return Section(title, f'This part is missing, because the predictions could not be made: {escape(e)}.')
  counts = matrices[STUDENT]
  names = run.classes or [str(label) for label in range(len(counts))]
  right, total = int(np.trace(counts)), int(counts.sum())
  text = (
    f'The {display_name(STUDENT)} of step {step} classifies {right:,} of {total:,} test images correctly '
    f'({100 * right / total:.2f} %). Row by row: of the images of one class, the share that is taken for each class; '
    'the diagonal is right, everything else is a confusion. '
  )
  if len(counts) <= _MAX_LABELS:
    text += 'The numbers are images; in parentheses, those of the class.'
  else:
    text += (
      f'With {len(counts)} classes the figure has no room for their names: they run from top to bottom and '
      'from left to right in the order of classes.json.'
    )
  text += ' Shades grow with the square root of the share, so that rare confusions show.'
  rows = [(true, guess, images, f'{100 * share:.1f} %') for true, guess, images, share in most_frequent(counts, names)]
  if rows:
    text += ' The table has the confusions that happen most, each with its share of the class.'
    confusions = table(('class', 'taken for', 'test images', 'share'), rows)
  else:
    text += ' There is no confusion at all.'
    confusions = ''
  return Section(title, text, {'confusion.png': plotting.png(draw(counts, names))}, confusions)


def draw(counts, classes):
  """Returns the figure of a confusion matrix; with few classes their names and numbers of images."""
  few = len(counts) <= _MAX_LABELS
  size = 2.0 + 0.24 * len(counts) if few else 5.5
  figure, panel = plotting.panel(size + 0.8, size)
  shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  image = panel.imshow(shares, cmap='Blues', norm=colors.PowerNorm(0.5, 0, 100), interpolation='nearest')
  bar = figure.colorbar(image, ax=panel, shrink=0.8, ticks=(0, 1, 5, 20, 50, 100))
  bar.set_label('share of the class (%)', fontsize=9)
  bar.ax.tick_params(labelsize=8)
  panel.grid(False)
  panel.set_xlabel('predicted class', fontsize=9)
  panel.set_ylabel('true class', fontsize=9)
  if few:
    names = [plotting.plain(name if len(name) <= 18 else f'{name[:17]}…') for name in classes]
    panel.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) <= 3 else 90)
    panel.set_yticks(range(len(names)), [f'{name} ({total:,})' for name, total in zip(names, counts.sum(axis=1))])
    for (i, j), number in np.ndenumerate(counts):
      if number:
        panel.text(
          j, i, int(number), ha='center', va='center', fontsize=7, color='white' if shares[i, j] > 35 else 'black'
        )
  return figure
