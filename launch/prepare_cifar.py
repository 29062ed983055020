#!/usr/bin/env python3
"""Turns the official archive of CIFAR-10 or CIFAR-100 into the .npy files that --config.data.name=npy:DIR reads.

    python launch/prepare_cifar.py cifar-100-python.tar.gz DIR [--classes=N] [--images=N]

--classes=N keeps the images of the first N classes only, 0 to N-1 in the order of the archive's names; --images=N the
first N training images of each class, and all test images.
The archive is the "python version" of https://www.cs.toronto.edu/~kriz/cifar.html. Other files in DIR stay as they are.
"""

import argparse
import filecmp
import hashlib
import pathlib
import pickle
import shlex
import sys
import tarfile
import tempfile
import warnings

import numpy as np

FIX = 'download cifar-100-python.tar.gz or cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html'
BATCHES = [f'data_batch_{k}' for k in range(1, 6)]
# {MD5 of an archive: (its folder, training files, test files, file of names, what its keys begin with)}
ARCHIVES = {
  'eb9058c3a382ffc7106e4002c42a8d85': ('cifar-100-python', ['train'], ['test'], 'meta', b'fine_'),
  'c58f30108f718f92721af3b95e74349a': ('cifar-10-batches-py', BATCHES, ['test_batch'], 'batches.meta', b''),
}


def read(path):
  """Returns {name of a .npy file: array} of an archive; exits if it is not an official one."""
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
      if digest not in ARCHIVES:  # Unpickling runs what a file says, so only known ones are opened.
        sys.exit(f'error: {path}: is cut short or not an official archive (its MD5 is {digest}); {FIX}')
      folder, train, test, meta, prefix = ARCHIVES[digest]
      file.seek(0)
      with tarfile.open(fileobj=file) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # NumPy 2.4.0 to 2.4.4 warns of pickles this old.
        load = lambda name: pickle.load(archive.extractfile(f'{folder}/{name}'), encoding='bytes')
        found = {'class_names': np.array([name.decode() for name in load(meta)[prefix + b'label_names']])}
        batches = {'train': list(map(load, train)), 'test': list(map(load, test))}
  except OSError as e:
    sys.exit(f'error: {path}: {e.strerror or e}; {FIX}')
  for split, parts in batches.items():
    planes = np.concatenate([part[b'data'] for part in parts]).reshape(-1, 3, 32, 32)
    found[f'{split}_images'] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    found[f'{split}_labels'] = np.concatenate([np.array(part[prefix + b'labels'], np.int32) for part in parts])
  return found


def keep_classes(found, classes):
  """Returns the arrays of the first classes only; exits where there are not so many."""
  names = found['class_names']
  if not 2 <= classes <= len(names):
    sys.exit(f'error: --classes={classes}: the archive has {len(names)} classes; give a number from 2 to {len(names)}')
  kept = {'class_names': names[:classes]}
  for split in ('train', 'test'):
    among = found[f'{split}_labels'] < classes
    kept |= {name: found[name][among] for name in (f'{split}_images', f'{split}_labels')}
  return kept


def keep_images(found, images):
  """Returns the arrays with the first training images of each class only; exits where a class has not so many."""
  labels = found['train_labels']
  places = [np.flatnonzero(labels == label) for label in range(len(found['class_names']))]
  fewest = min(map(len, places))
  if not 1 <= images <= fewest:
    sys.exit(f'error: --images={images}: a class has only {fewest} training images; give a number from 1 to {fewest}')
  kept = np.sort(np.concatenate([place[:images] for place in places]))
  return found | {name: found[name][kept] for name in ('train_images', 'train_labels')}


def write(found, folder):
  """Writes the arrays, each whole or not at all; exits rather than replace a file of other data."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.prepare_cifar', dir=folder) as partial:
      files = {pathlib.Path(partial, f'{name}.npy'): folder / f'{name}.npy' for name in found}
      for (file, path), array in zip(files.items(), found.values()):
        np.save(file, array)
        if path.exists() and not filecmp.cmp(file, path, shallow=False):
          sys.exit(f'error: {path}: holds other data; name another folder, or remove the file')
      for file, path in files.items():
        file.replace(path)
  except OSError as e:
    sys.exit(f'error: {e.filename or folder}: {e.strerror or e}; name a folder that can be written, with 200 MB free')


def main(arguments=None):
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name in ('ARCHIVE', 'DIR'):
    parser.add_argument(name, type=pathlib.Path)
  parser.add_argument('--classes', type=int, metavar='N', help='keep the first N classes only; default: all')
  parser.add_argument('--images', type=int, metavar='N', help='keep the first N training images of each class')
  options = parser.parse_args(arguments)
  found = read(options.ARCHIVE)
  if options.classes is not None:
    found = keep_classes(found, options.classes)
  if options.images is not None:
    found = keep_images(found, options.images)
  write(found, options.DIR)
  print(f'train with --config.data.name={shlex.quote(f"npy:{options.DIR}")}')


if __name__ == '__main__':
  main()
