"""Speed of an exported ResNet18 in every form it has, against float32; needs an idle machine.

Run: python benchmarks/inference.py [--bits=2] [--sizes=32,224] [--batches=1,64] [--rounds=15] [--out=STEM]

The network has random weights, and the running statistics of one batch of crops from two photographs that come with
scikit-learn: enough for times, not for accuracies. The float32 networks are that of the same architecture with ReLUs
and no quantizers. All forms take the same uint8 images, in rounds over all of them, so that a slow minute does not hit
one alone; the best and the median time count. Threads are as many as the machine gives. --out writes STEM.json and
STEM.md.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from absl import app, flags
from sklearn import datasets

from cmtkd_jax import config as config_lib
from cmtkd_jax import export
from cmtkd_jax.export import fold, interpreter, trace
from cmtkd_jax.runs import provenance
from cmtkd_jax.training import build

_BITS = flags.DEFINE_integer('bits', 2, 'Bits of weights and activations.')
_SIZES = flags.DEFINE_list('sizes', ['32', '224'], 'Sides of the images; above 64 with the stem for ImageNet.')
_BATCHES = flags.DEFINE_list('batches', ['1', '64'], 'Images a call.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Timed calls of each form.')
_WIDTH = flags.DEFINE_float('width', 1.0, 'Factor on the channels; 1 is ResNet18.')
_OUT = flags.DEFINE_string('out', None, 'Files to write, without their endings.')
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PAUSE = 0.05  # seconds, in which the threads of a form stop waiting for more work and leave the cores to the next
_REFERENCE = 'float32, ONNX Runtime'


def crops(count, size):
  """uint8 [count, size, size, 3]."""
  rng, photographs = np.random.default_rng(0), datasets.load_sample_images().images
  corner = lambda image: [rng.integers(side - size + 1) for side in image.shape[:2]]
  chosen = [(image, *corner(image)) for image in (photographs[i % 2] for i in range(count))]
  return np.stack([image[y : y + size, x : x + size] for image, y, x in chosen])


def network(bits, size, images):
  """Returns (graph, forward function) of a network of `bits` that has seen `images`."""
  config = config_lib.default()
  config.method.name, config.student = 'single', dict(weight_bits=bits, activation_bits=bits)
  config.data.image_size, config.data.mean, config.data.std = size, _MEAN, _STD
  config.model.name, config.model.stem = 'resnet18', 'imagenet' if size > 64 else 'cifar'
  config.model.width, config.model.bn_momentum = _WIDTH.value, 0.0
  method = build.create_method(config, 1000 if size > 64 else 100)
  standardized = lambda x: (
    (x.astype(np.float32) / 255 - np.float32(_MEAN)[None, None, None]) / (np.float32(_STD)[None, None, None])
  )
  variables = jax.jit(lambda x: method.init(jax.random.key(0), standardized(x), train=True))(images)
  collections = [name for name in variables if name != 'params']
  _, state = jax.jit(lambda x: method.apply(variables, standardized(x), train=True, mutable=collections))(images)
  variables = {**variables, **state}
  graph = fold.fold(trace.trace(method, variables, images.shape[1:], 'student'), images.shape[1:], _MEAN, _STD)
  return graph, jax.jit(lambda x: method.apply(variables, standardized(x), train=False).logits['student'])


def forms(size, folder):
  """`{name: function of images}`."""
  images = crops(32, size)
  graph, _ = network(_BITS.value, size, images)
  plain_graph, plain = network(32, size, images)
  files = export.write(
    export.from_graph(graph), pathlib.Path(folder) / str(size), ['stablehlo', 'onnx_qdq', 'onnx_qlinear'], images
  )
  files |= {
    'float': export.write(export.from_graph(plain_graph), pathlib.Path(folder) / f'{size}_float', ['onnx_qlinear'])[
      'onnx_qlinear'
    ]
  }
  functions = {name: export.open_network(path)[0] for name, path in files.items()}
  return {
    'float32, JAX': plain,
    _REFERENCE: functions['float'],
    'integer, JAX, int8 sums': interpreter.Network(graph, 'int8'),
    'integer, JAX, float carriers': interpreter.Network(graph, 'float'),
    'integer, StableHLO': functions['stablehlo'],
    'integer, ONNX QDQ': functions['onnx_qdq'],
    'integer, ONNX QLinearConv': functions['onnx_qlinear'],
  }


def measure(functions, images):
  """`{name: {'best', 'median': seconds}}` of one call each."""
  for function in functions.values():
    jax.block_until_ready(function(images))
  times = {name: [] for name in functions}
  for _ in range(_ROUNDS.value):
    for name, function in functions.items():
      begin = time.perf_counter()
      jax.block_until_ready(function(images))
      times[name].append(time.perf_counter() - begin)
      time.sleep(_PAUSE)
  return {name: {'best': min(values), 'median': statistics.median(values)} for name, values in times.items()}


def machine():
  """What the times were taken with."""
  cpu = next(
    (line.split(':')[1].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')),
    platform.processor(),
  )
  return {
    'cpu': cpu,
    'cpus': os.cpu_count(),
    'jax_device': jax.devices()[0].device_kind,
    'command': ' '.join(['python', *sys.argv]),
    'commit': provenance.commit(),
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in ('jax', 'onnx', 'onnxruntime')},
  }


def _lines(path):
  return pathlib.Path(path).read_text().splitlines() if pathlib.Path(path).exists() else []


def markdown(about, rows):
  """The page of all figures."""
  versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
  page = [
    f'`{about["command"]}`',
    '',
    f'ResNet18 (width {about["width"]:g}), {about["bits"]}-bit weights and activations, random weights; '
    f'{about["cpu"]}, {about["cpus"]} CPUs, {versions}, commit {about["commit"]}. '
    f'Best and median of {about["rounds"]} calls, interleaved.',
  ]
  for (size, batch), times in rows.items():
    page += [
      '',
      f'**{size}x{size}, batch {batch}**',
      '',
      f'| form | best, ms | median, ms | images/s | speed against {_REFERENCE} |',
      '|---|---|---|---|---|',
    ]
    page += [
      f'| {name} | {1e3 * row["best"]:.1f} | {1e3 * row["median"]:.1f} | {batch / row["best"]:.0f} | '
      f'{times[_REFERENCE]["best"] / row["best"]:.2f} |'
      for name, row in times.items()
    ]
  return '\n'.join(page) + '\n'


def main(argv):
  del argv
  rows = {}
  with tempfile.TemporaryDirectory() as folder:
    for size in map(int, _SIZES.value):
      functions = forms(size, folder)
      for batch in map(int, _BATCHES.value):
        rows[size, batch] = measure(functions, crops(batch, size))
        print(f'timed {size}x{size}, batch {batch}', flush=True)
  about = machine() | {'bits': _BITS.value, 'width': _WIDTH.value, 'rounds': _ROUNDS.value}
  page = markdown(about, rows)
  print(page)
  if _OUT.value:
    pathlib.Path(f'{_OUT.value}.md').write_text(page)
    results = [{'size': size, 'batch': batch, 'forms': times} for (size, batch), times in rows.items()]
    pathlib.Path(f'{_OUT.value}.json').write_text(json.dumps(about | {'results': results}, indent=1))


if __name__ == '__main__':
  app.run(main)
