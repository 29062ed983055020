"""Classes of image files, from the directory of a run or an exported file."""

import csv
import glob
import io
import json
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from cmtkd_jax import export
from cmtkd_jax.data.broken import WrongSizeError
from cmtkd_jax.data.transforms import decode_pil, image_file
from cmtkd_jax.errors import UserError, printable
from cmtkd_jax.runtime import local_file
from cmtkd_jax.runtime.progress import Progress

_MOST = 5  # classes that are named
_BATCH = 64
_MANY = 100  # images from which progress is shown


class Prediction(NamedTuple):
  """What is found for one file.

  classes: the most likely classes, the likeliest first, as (name, probability from 0 to 1); () where `error` says why
    the file cannot be read.
  """

  file: str
  classes: tuple[tuple[str, float], ...] = ()
  error: str = ''


def find(images):
  """Returns the image files that `images` names, in order: files, folders with all below, and patterns such as *.jpg.

  Of folders, hidden files and folders are left out, as in training. What names nothing stays as it is, and is reported
  when it is read.

  Raises:
    UserError: a folder cannot be read.
  """
  found = []
  for path in images:
    if os.path.isdir(path):
      below = (os.path.join(folder, name) for folder, names in sorted(_folders(path)) for name in sorted(names))
      found += [file for file in below if os.path.splitext(file)[1].lower() in image_file.suffixes()]
    elif os.path.exists(path):
      found.append(path)
    else:
      matches = sorted(glob.glob(path, recursive=True))
      found += dict.fromkeys(find(matches)) if matches else [path]  # '**' matches folders and what is in them
  return found


def _folders(path):
  """(folder, its files) of `path` and what is below, without hidden ones, each once: links may lead in a circle."""

  def fail(error):
    raise local_file.cannot_be_read(f'images: {error.filename}', error)

  seen = set()
  for folder, folders, files in os.walk(path, onerror=fail, followlinks=True):
    if (real := os.path.realpath(folder)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    yield folder, [name for name in files if not name.startswith('.')]


def predict(path, images) -> Iterator[Prediction]:
  """Yields a `Prediction` for each image file, in order, batch by batch; shows progress where there are many.

  Args:
    path: directory of a run, or an exported file.
    images: as for `find`; each is resized and cropped as the test images were.

  Raises:
    UserError: the network cannot be read, or there is no image.
  """
  if not images:
    raise UserError('images are missing; name image files or folders')
  if not all(images):
    raise UserError('images: a name is empty; name image files or folders')
  network, about = export.open_network(path)
  if (channels := about['image_shape'][-1]) not in (1, 3):
    raise UserError(
      f'workdir: {path} takes images of {channels} channels, which no image file has; give it arrays with '
      'cmtkd_jax.open_network'
    )
  files = find(images)
  if not files:
    raise UserError(f'images={list(images)}: there are no images ({", ".join(sorted(image_file.suffixes()))})')
  begin = time.monotonic()
  with Progress(len(files), enabled=len(files) > _MANY, unit='image') as progress:
    for start in range(0, len(files), _BATCH):
      part = files[start : start + _BATCH]
      yield from _predict_batch(network, about, part, len(part) if len(files) <= _BATCH else _BATCH)
      done = start + len(part)
      progress.update(done, done / (time.monotonic() - begin))


def _predict_batch(network, about, files, size):
  """The `Prediction`s of `files`, computed as a batch of `size` so that all batches run the same program."""
  rows, errors = {}, {}
  for file in files:
    try:
      rows[file] = read_image(file, about)
    except UserError as e:
      errors[file] = str(e)
  probabilities = {}
  if rows:
    batch = np.zeros((size, *about['image_shape']), np.uint8)
    batch[: len(rows)] = list(rows.values())
    probabilities = dict(zip(rows, np.asarray(jax.nn.softmax(np.asarray(network(batch)))), strict=False))
  for file in files:
    if file in errors:
      yield Prediction(file, error=errors[file])
    else:
      best = np.argsort(-probabilities[file])[:_MOST]
      yield Prediction(file, tuple((about['classes'][c], float(probabilities[file][c])) for c in best))


def render(predictions, output) -> Iterator[str]:
  """Yields `Prediction`s as lines of 'text', 'csv' (those without error) or 'json' (one array)."""
  if output == 'json':
    before = '['
    for prediction in predictions:
      found = [{'class': name, 'probability': probability} for name, probability in prediction.classes]
      result = {'error': prediction.error} if prediction.error else {'classes': found}
      yield f'{before}{json.dumps({"file": prediction.file, **result})}'
      before = ' ,'
    yield ']'
    return
  for i, prediction in enumerate(predictions):
    if output == 'csv' and not i:  # not before the network was read
      yield 'file,' + ','.join(f'class{i},probability{i}' for i in range(1, _MOST + 1))
    if prediction.error:
      continue
    if output == 'csv':
      cells = [cell for name, value in prediction.classes for cell in (name, f'{value:.6f}')]
      yield _csv_line([prediction.file, *cells, *[''] * (2 * _MOST - len(cells))])  # as many as the header has
    else:
      classes = ', '.join(f'{printable(name)} {100 * value:.1f} %' for name, value in prediction.classes)
      yield f'{printable(prediction.file)}: {classes}'


def _csv_line(cells):
  text = io.StringIO()
  csv.writer(text, lineterminator='\r\n').writerow(cells)  # quotes names that hold any part of the terminator
  return text.getvalue().removesuffix('\r\n')


def read_image(file, about):
  """Returns an image file as uint8 [H, W, C], read as in training (`data.transforms.image_file`), resized and cropped.

  Args:
    file: path of an image file.
    about: of the network: 'image_shape' (H, W, C), and 'resize', the shorter side after resizing, 0 for none.

  Raises:
    UserError: it cannot be read, or has another size than the network where nothing is resized.
  """
  height, _, channels = about['image_shape']
  transform = decode_pil.Transform('none', size=height, resize=about['resize'], channels=channels, seed=None)
  try:
    return transform(local_file.read_bytes(file), 0, 0)
  except WrongSizeError as e:
    raise UserError(f'images: {file} is {e}, the size of the training images; resize it') from None
  except (OSError, ValueError) as e:
    reason = 'there is no such file' if isinstance(e, FileNotFoundError) else e
    raise UserError(f'images: {file} cannot be read ({reason}); give image files such as .jpg or .png') from None
