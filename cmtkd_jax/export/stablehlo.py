"""One StableHLO file for CPU, CUDA and TPU and any batch size, whose weights are packed and unpacked in the program."""

import jax
import jax.numpy as jnp
from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import integer, packing

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(path, graph):
  """Writes the program (images uint8 [B, H, W, C]) -> logits float32 [B, classes].

  Sums run on float32 carriers, which every platform has. `jax.export.deserialize` reads the file; JAX promises to read
  it for six months, so keep the packed archive.
  """
  from jax import export  # needs flatbuffers
  batch = export.symbolic_shape('b')
  program = export.export(jax.jit(_program(graph)), platforms=PLATFORMS)(
      jax.ShapeDtypeStruct((*batch, *graph.image_shape), jnp.uint8))
  epath.Path(path).write_bytes(bytes(program.serialize()))


def read(path):
  """Returns the function of images that `write` wrote.

  Raises:
    UserError: there is no such file, or it cannot be read.
  """
  from jax import export
  try:
    program = export.deserialize(bytearray(epath.Path(path).read_bytes()))
  except FileNotFoundError:
    raise UserError(f'{path} does not exist; write it with --mode=export') from None
  except Exception as e:  # flatbuffers and MLIR raise many kinds
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:120]
    raise UserError(f'{path} is damaged or no StableHLO that this JAX reads ({reason}); export it again') from None
  return jax.jit(program.call)


def _program(graph):
  graph = graph.by_bytes()
  packed = {node.output: packing.pack(node.arrays['codes'], node.attributes['bits'])
            for node in graph.nodes if 'codes' in node.arrays}

  def weights(node):
    if node.output not in packed:
      return jnp.asarray(node.weights)
    codes = packing.unpack_by_shifts(jnp.asarray(packed[node.output]), node.attributes['bits'],
                                     node.arrays['codes'].shape)
    return node.decoded(codes, jnp)

  return lambda images: integer.run(graph, images, 'float', weights)[graph.nodes[-1].output]
