"""The archive of an exported network: `student.npz`, which NumPy alone can read, with every code in its own bits.

The file is an uncompressed .npz. Its member `manifest` holds JSON as uint8; the others are the arrays of the
operations, named OUTPUT/ARRAY. The manifest has

  format, version   'cmtkd_jax packed network', 2; a reader refuses what is newer
  image_shape       [H, W, C] of the uint8 images that go in
  nodes             the operations, see `graph`: op, inputs, output, attributes, arrays
  about             classes, resize (shorter side before the centre crop; 0: none), metrics, bits, config, versions

The arrays `codes` are packed as `packing` says, `bits` of their attributes each, and have the shape of the attribute
`shape`. So `manifest = json.loads(bytes(numpy.load('student.npz')['manifest']))` says all there is to know.
"""

import json
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import integer, packing
from cmtkd_jax.export.graph import IMAGES, OPERATIONS, Graph, Node

FORMAT, VERSION = 'cmtkd_jax packed network', 2  # 2 has the operation `pixels`
_MANIFEST = 'manifest'


def write(path, graph, about):
  """Writes `graph` and what is to be known about it, a JSON-able dict."""
  arrays, nodes = {}, []
  for node in graph.nodes:
    attributes, own = dict(node.attributes), dict(node.arrays)
    if 'codes' in own:
      attributes['shape'] = own['codes'].shape
      own['codes'] = packing.pack(own['codes'], attributes['bits'])
    arrays |= {f'{node.output}/{name}': array for name, array in own.items()}
    nodes.append({'op': node.op, 'inputs': node.inputs, 'output': node.output, 'attributes': attributes,
                  'arrays': sorted(own)})
  manifest = {'format': FORMAT, 'version': VERSION, 'image_shape': graph.image_shape, 'nodes': nodes, 'about': about}
  arrays[_MANIFEST] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
  with epath.Path(path).open('wb') as file:
    np.savez(file, **arrays)


def read(path):
  """Returns (`Graph`, about) of a file.

  Raises:
    UserError: there is no such file, it is damaged or no packed network, or it is of a newer version.
  """
  path = epath.Path(path)
  try:
    with path.open('rb') as file, _open(file) as archive:
      manifest = json.loads(bytes(archive[_MANIFEST]))
      if manifest['format'] != FORMAT:
        raise ValueError(f'its format is {manifest["format"]!r}')
      if manifest['version'] > VERSION:
        raise UserError(f'{path} has version {manifest["version"]} of the format, and this cmtkd_jax reads up to '
                        f'{VERSION}; update cmtkd_jax')
      nodes = tuple(_node(entry, archive) for entry in manifest['nodes'])
      graph = Graph(nodes, tuple(map(int, manifest['image_shape'])))
      _check(graph)
      return graph, manifest['about']
  except UserError:
    raise
  except FileNotFoundError:
    raise UserError(f'{path} does not exist; write it with --mode=export') from None
  except (OSError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError, zipfile.BadZipFile,
          zlib.error, NotImplementedError) as e:
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:120]
    raise UserError(f'{path} is no packed network or is damaged ({reason}); export it again') from None


def _open(file):
  with zipfile.ZipFile(file) as archive:
    for member in archive.infolist():  # arrays are stored as they are: nothing can unpack to more than the file
      if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f'{member.filename} is compressed')
  file.seek(0)
  return np.load(file, allow_pickle=False)


def _node(entry, archive):
  attributes = dict(entry['attributes'])
  arrays = {name: archive[f'{entry["output"]}/{name}'] for name in entry['arrays']}
  if 'codes' in arrays:
    arrays['codes'] = packing.unpack(arrays['codes'], attributes['bits'], tuple(attributes.pop('shape')))
  return Node(entry['op'], tuple(entry['inputs']), entry['output'], attributes, arrays)


def _check(graph):
  """Raises `ValueError` or what JAX raises unless the operations fit together."""
  known = {IMAGES}
  for node in graph.nodes:
    if len(node.inputs) != OPERATIONS[node.op] or not known.issuperset(node.inputs):
      raise ValueError(f'operation {node.output} has the inputs {node.inputs}')
    for name, array in node.arrays.items():
      if array.dtype != (np.uint8 if name == 'codes' else np.float32):
        raise ValueError(f'{node.output}/{name} is {array.dtype}')
    known.add(node.output)
  logits = jax.eval_shape(lambda images: integer.run(graph, images, 'float')[graph.nodes[-1].output],
                          jax.ShapeDtypeStruct((1, *graph.image_shape), jnp.uint8))
  if logits.ndim != 2:
    raise ValueError(f'it ends in an array {logits.shape}')
