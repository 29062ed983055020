"""What a ResNet18 takes on disk at 1 to 8 bits of weights, in the packed archive and as StableHLO, beside float32.

Run: python benchmarks/export_sizes.py [--out=STEM]

The network is that of configs/cifar100_resnet18.py with its initial weights, whose number is all that counts here. Its
first and last layers are in full precision, as the paper has them, or have 8 bits. --out writes STEM.md and STEM.json.
"""

import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cmtkd_jax import config as config_lib
from cmtkd_jax import export
from cmtkd_jax.export import fold, trace
from cmtkd_jax.export.formats import packed, stablehlo
from cmtkd_jax.models.bit_policy import FULL_PRECISION
from cmtkd_jax.runs import provenance
from cmtkd_jax.training import build

_OUT = flags.DEFINE_string('out', None, 'Files to write, without their endings.')
_CLASSES = 100
_HEADER = (
  'bits',
  'first and last',
  'quantized weights',
  'of float32',
  'student.npz',
  'student.stablehlo',
  'all of float32',
)


def exported(bits, first_last):
  """(the network as a `Graph`, how many weights its kernels have)."""
  config = config_lib.load_config(__file__, '../configs/cifar100_resnet18')
  config.method.name, config.student.weight_bits, config.bits.first_last = 'single', bits, first_last
  shape = (config.data.image_size, config.data.image_size, len(config.data.mean))
  method = build.create_method(config, _CLASSES)
  variables = jax.jit(lambda: method.init({'params': jax.random.key(0)}, jnp.zeros((1, *shape)), train=False))()
  kernels = [leaf for leaf in jax.tree.leaves(variables['params']) if leaf.ndim > 1]
  graph = fold.fold(trace.trace(method, variables, shape, 'student'), shape, config.data.mean, config.data.std)
  return graph, sum(kernel.size for kernel in kernels)


def row(bits, first_last, folder):
  """Numbers of bytes."""
  graph, weights = exported(bits, first_last)
  files = {name: folder / f'{bits}.{name}' for name in ('npz', 'stablehlo')}
  packed.write(files['npz'], graph, export.from_graph(graph).about)
  stablehlo.write(files['stablehlo'], graph)
  layers = [node for node in graph.nodes if 'codes' in node.arrays and node.attributes['bits'] == bits]
  with np.load(files['npz']) as archive:
    quantized = sum(archive[f'{node.output}/codes'].nbytes for node in layers)
  of = sum(node.arrays['codes'].size for node in layers)
  if quantized != sum(-(-node.arrays['codes'].size * bits // 8) for node in layers):
    raise RuntimeError(f'{bits}-bit weights take {quantized} bytes for {of} weights')
  return {
    'bits': bits,
    'first_last': first_last,
    'quantized': quantized,
    'quantized_float32': 4 * of,
    'npz': files['npz'].stat().st_size,
    'stablehlo': files['stablehlo'].stat().st_size,
    'float32': 4 * weights,
  }


def main(argv):
  del argv
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for first_last in (FULL_PRECISION, 8):
      for bits in range(1, 9):
        rows.append(row(bits, first_last, pathlib.Path(folder)))
        print(f'{len(rows)}/16', file=sys.stderr, flush=True)
  kibibytes = lambda size: f'{size / 1024:,.0f} KiB'
  lines = [
    f'ResNet18 of configs/cifar100_resnet18.py, commit {provenance.commit()}, `python {" ".join(sys.argv)}`. '
    'Quantized weights take bits / 8 bytes each; the files hold scales, biases and the first and last layer, '
    'too.',
    '',
    f'| {" | ".join(_HEADER)} |',
    '|' + '---|' * len(_HEADER),
  ]
  lines += [
    f'| {r["bits"]} | {"float32" if r["first_last"] == FULL_PRECISION else "8 bits"} '
    f'| {kibibytes(r["quantized"])} | {kibibytes(r["quantized_float32"])} | {kibibytes(r["npz"])} '
    f'| {kibibytes(r["stablehlo"])} | {kibibytes(r["float32"])} ({r["float32"] / r["npz"]:.1f} x) |'
    for r in rows
  ]
  print('\n'.join(lines))
  if _OUT.value:
    pathlib.Path(f'{_OUT.value}.md').write_text('\n'.join(lines) + '\n')
    pathlib.Path(f'{_OUT.value}.json').write_text(
      json.dumps({'command': f'python {" ".join(sys.argv)}', 'commit': provenance.commit(), 'rows': rows}, indent=1)
      + '\n'
    )


if __name__ == '__main__':
  app.run(main)
