"""The archive of an exported network: `student.npz`, which NumPy alone can read, with every code in its own bits.

The file is an uncompressed .npz. Its member `manifest` holds JSON as uint8; the others are the arrays of the
operations, uint8 or little-endian float32, named OUTPUT/ARRAY. The manifest has

  format, version   'cmtkd_jax packed network', 3 with `groups` of convolutions, else 2; a reader refuses what is newer
  image_shape       [H, W, C] of the uint8 images that go in
  nodes             the operations, see `graph`: op, inputs, output, attributes, arrays
  about             classes, image_shape, resize (shorter side before the center crop; 0: none), and what no program
                    needs: network, step, metrics (of the run's last and best epoch, whatever the step), bits, config,
                    versions (of training)

The arrays `codes` are packed as `bitpacking` says, `bits` of their attributes each, and have the shape of the attribute
`shape`. So `manifest = json.loads(bytes(numpy.load('student.npz')['manifest']))` says all there is to know.

The archive needs no other file. Each member has a CRC-32, as in every zip file, and `read` checks it; where
`manifest.json` next to the archive names it, its SHA-256 is checked first. Whatever the file holds is checked against
`schema` before it is used: a damaged or forged archive gives an error, and can run no code.
"""

import io
import math
import zipfile

import numpy as np
from etils import epath

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.export import graph_check, manifest, operations, schema, strict_json
from cmtkd_jax.export.formats import bitpacking
from cmtkd_jax.export.graph import Graph, Node
from cmtkd_jax.runtime import local_file

FORMAT = 'cmtkd_jax packed network'
_UNGROUPED, VERSION = 2, 3  # 2 has the operation `pixels`, 3 convolutions in groups
_MANIFEST = 'manifest'
_NPY = '.npy'  # what NumPy adds to the name of a member
_HEAD = schema.Record(
  {
    'format': schema.OneOf((FORMAT,)),
    'version': schema.Integer(1, 2**31),
    'image_shape': schema.IMAGE_SHAPE,
    'nodes': operations.NODES,
    'about': schema.ABOUT,
  }
)


def encode(graph, about):
  """Returns (arrays by the names of their members, the manifest as a JSON-able dict) of `graph` and `about`.

  Raises:
    InvalidError: they do not fit the schema.
  """
  arrays, nodes = {}, []
  schema.check_about(strict_json.parse(strict_json.dump(about)), graph.image_shape, graph_check.check(graph))
  for node in graph.nodes:
    attributes, own = dict(node.attributes), dict(node.arrays)
    if 'codes' in own:
      attributes['shape'] = own['codes'].shape
      own['codes'] = bitpacking.pack(own['codes'], attributes['bits'])
    arrays |= {
      f'{node.output}/{name}': np.asarray(array, array.dtype.newbyteorder('<'), order='C')
      for name, array in own.items()
    }
    nodes.append(
      {'op': node.op, 'inputs': node.inputs, 'output': node.output, 'attributes': attributes, 'arrays': sorted(own)}
    )
  version = VERSION if any(node.groups > 1 for node in graph.nodes) else _UNGROUPED
  return arrays, {
    'format': FORMAT,
    'version': version,
    'image_shape': graph.image_shape,
    'nodes': nodes,
    'about': about,
  }


def decode(head, members):
  """Returns (`Graph`, about) of a manifest and arrays, which may say anything; takes the arrays out of `members`.

  Raises:
    InvalidError: they are not what `encode` makes.
  """
  _HEAD.check(head, _MANIFEST)
  graph = Graph(tuple(_node(entry, members) for entry in head['nodes']), tuple(head['image_shape']))
  if members:
    raise schema.InvalidError(f'no operation has its member {next(iter(members))}')
  schema.check_about(head['about'], graph.image_shape, graph_check.check(graph))
  return graph, head['about']


def write(path, graph, about):
  """Writes `graph` and `about`, a JSON-able dict, see `schema.ABOUT`.

  Raises:
    UserError: they do not fit the schema.
  """
  try:
    arrays, head = encode(graph, about)
    arrays[_MANIFEST] = np.frombuffer(strict_json.dump(head).encode(), np.uint8)
  except schema.InvalidError as e:
    raise UserError(f'{path} is not written: {e}') from None
  file = io.BytesIO()
  np.savez(file, **arrays)
  local_file.write_whole(path, file.getvalue())


def read(path):
  """Returns (`Graph`, about) of a file.

  Raises:
    UserError: there is no such file, it is damaged or not a packed network, or it is of a newer version.
  """
  path = epath.Path(path)
  data, _ = manifest.read_checked(path)
  try:
    members = _members(data)
    if _MANIFEST not in members:
      raise schema.InvalidError(f'it has no member {_MANIFEST}')
    head = strict_json.parse(members.pop(_MANIFEST).tobytes())
    if said := schema.newer(head, FORMAT, VERSION):
      raise UserError(f'{path} {said}')
    return decode(head, members)
  except schema.InvalidError as e:
    raise UserError(f'{path} is damaged or not a packed network ({e}); export it again') from None


def _members(data):
  """Returns the arrays of an .npz file by name."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      found, size = {}, 0
      for info in archive.infolist():
        size += info.file_size
        # Members are stored as they are and once, so that nothing unpacks to more than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or size > len(data):
          raise schema.InvalidError('it is compressed, or its members overlap')
        name = info.filename.removesuffix(_NPY)
        if name in found:
          raise schema.InvalidError(f'it has the member {name!a} twice')
        found[name] = _array(archive.read(info), ascii(name))  # which also checks the CRC-32
      return found
  except schema.InvalidError:
    raise
  except Exception as e:  # zipfile raises many kinds: BadZipFile, OSError, RuntimeError, struct.error, ...
    raise schema.InvalidError(one_line(f'{type(e).__name__}: {e}', 120)) from None


def _array(data, name):
  """Returns the uint8 or float32 array of a .npy file."""
  file = io.BytesIO(data)
  try:
    if np.lib.format.read_magic(file) != (1, 0):
      raise ValueError('not version 1.0 of the format')
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
  except Exception as e:  # a header is parsed as Python, which has its own limits
    raise schema.InvalidError(one_line(f'{name} is not an array: {e}', 120)) from None
  offset = file.tell()
  # Pickled objects have another dtype. The size is compared before anything is allocated.
  if (
    dtype not in (np.dtype(np.uint8), np.dtype('<f4'))
    or min(shape, default=0) < 0
    or (math.prod(shape) * dtype.itemsize != len(data) - offset)
  ):
    raise schema.InvalidError(
      f'{name} is {schema.display_name(str(dtype))} {schema.display_name(shape)} in {len(data) - offset} bytes'
    )
  return np.frombuffer(data, dtype, offset=offset).reshape(shape, order='F' if fortran_order else 'C')


def _node(entry, members):
  """Returns the `Node` of an entry of `nodes`; takes its arrays out of `members`."""
  attributes, output, arrays = dict(entry['attributes']), entry['output'], {}
  for name in entry['arrays']:
    if f'{output}/{name}' not in members:
      raise schema.InvalidError(f'it has no member {output}/{name}')
    arrays[name] = members.pop(f'{output}/{name}')
  if 'codes' in arrays:
    schema.Integer(1, 8).check(attributes.get('bits'), f'{output}.bits')
    shape = attributes.pop('shape', None)
    operations.CODES_SHAPE.check(shape, f'{output}.shape')
    try:
      arrays['codes'] = bitpacking.unpack(arrays['codes'], attributes['bits'], tuple(shape))
    except ValueError as e:
      raise schema.InvalidError(f'{output}/codes: {e}') from None
  return Node(entry['op'], tuple(entry['inputs']), output, attributes, arrays)
