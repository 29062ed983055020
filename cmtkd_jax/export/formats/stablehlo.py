"""One StableHLO file for CPU, CUDA and TPU and any batch size, whose weights are packed and unpacked in the program."""

import jax
import jax.numpy as jnp
from etils import epath

from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.export import images as images_lib
from cmtkd_jax.export import interpreter, manifest, schema
from cmtkd_jax.export.formats import bitpacking
from cmtkd_jax.runtime import local_file, packages

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(path, graph, about=None):
  """Writes the program (images uint8 [B, H, W, C]) -> logits float32 [B, classes].

  Sums run on float32 carriers, which every platform has. `jax.export.deserialize` reads the file; JAX promises to read
  it for six months, so keep the packed archive. `read` needs a manifest next to the file, see `manifest.write`.
  """
  packages.load('flatbuffers', 'StableHLO')
  from jax import export

  del about  # which other formats hold
  batch = export.symbolic_shape('b')
  program = export.export(jax.jit(_program(graph)), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct((*batch, *graph.image_shape), jnp.uint8)
  )
  local_file.write_whole(path, bytes(program.serialize()))


def read(path):
  """Returns (function of images uint8 [B, H, W, C] to logits float32 [B, classes], about) of a file.

  The file is deserialized only if it has the digest that `manifest.json` next to it says: what reads it would crash on
  some damaged files, and read another network from others. The function raises `UserError` for other images.

  Raises:
    UserError: there is no such file or no manifest that names it, it is damaged, or this JAX cannot read it.
  """
  path = epath.Path(path)
  data, about = manifest.read_checked(path, required=True)
  packages.load('flatbuffers', path)
  try:
    from jax import export

    program = export.deserialize(bytearray(data))
    _check(program, about)
  except Exception as e:  # flatbuffers and MLIR raise many kinds
    reason = one_line(f'{type(e).__name__}: {e}', 120)
    raise UserError(f'{path} is not StableHLO that this JAX reads ({reason}); export it again') from None
  call = jax.jit(program.call)
  return lambda images: call(images_lib.check(images, about['image_shape'])), about


def _check(program, about):
  """Raises `schema.InvalidError` unless the program is a function of such images to such logits."""
  found = [(str(x.dtype), *x.shape[1:]) for x in (*program.in_avals, *program.out_avals)]
  wanted = [('uint8', *about['image_shape']), ('float32', len(about['classes']))]
  if found != wanted:
    raise schema.InvalidError(
      f'it maps {schema.display_name(found)}, and the manifest says {schema.display_name(wanted)}'
    )


def _program(graph):
  graph = graph.by_bytes()
  packed = {
    node.output: bitpacking.pack(node.arrays['codes'], node.attributes['bits'])
    for node in graph.nodes
    if 'codes' in node.arrays
  }

  def weights(node):
    if node.output not in packed:
      return jnp.asarray(node.weights)
    codes = bitpacking.unpack_by_shifts(
      jnp.asarray(packed[node.output]), node.attributes['bits'], node.arrays['codes'].shape
    )
    return node.decoded(codes, jnp)

  return lambda images: interpreter.run(graph, images, 'float', weights)[graph.nodes[-1].output]
