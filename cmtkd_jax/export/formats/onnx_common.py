"""What all ONNX files of a network have in common: how they are put together, written and read.

They take 'images', uint8 [N, H, W, C] of any N, and return 'logits', float32 [N, classes]; `onnx_qonnx` fixes N = 1.
The entry 'about' of their metadata is the JSON text of what is to be known of the network, see `schema.ABOUT`.
"""

import jax
import numpy as np
from etils import epath

import cmtkd_jax
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.export import graph_check, manifest, schema, strict_json
from cmtkd_jax.export import images as images_lib
from cmtkd_jax.export.graph import IMAGES
from cmtkd_jax.runtime import local_file, packages

LOGITS = 'logits'
ABOUT = 'about'


def package(name):
  """Returns the module `name`, which only ONNX files need; raises `UserError` where it is not installed."""
  return packages.load(name, 'an ONNX file', also='onnx onnxruntime')


class Parts:
  """Operations and constants of an ONNX file, in the making."""

  def __init__(self):
    self._onnx = package('onnx')
    self._nodes, self._constants = [], {}

  def node(self, op, inputs, output, **attributes):
    """Adds the operation `op` from tensors to a tensor, all by name; returns `output`."""
    inputs = [inputs] if isinstance(inputs, str) else inputs
    self._nodes.append(self._onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
    return output

  def constant(self, name, array):
    """Adds an array, also of one of the types of 2 and 4 bits that `ml_dtypes` has; returns `name`."""
    # Constants may be asked for more than once, as the scale 1.
    self._constants.setdefault(name, self._onnx.numpy_helper.from_array(np.asarray(array), name))
    return name

  def to_type(self, x, numpy_type, output):
    """Adds a cast of the tensor `x`."""
    return self.node('Cast', x, output, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type)))

  def write(self, path, graph, about, opset, domains=(), batch='N'):
    """Writes the file.

    Args:
      path: where to.
      graph: the `Graph` of the network, which the operations stand for.
      about: JSON-able dict, see `schema.ABOUT`.
      opset: version of ONNX's operations.
      domains: other domains whose operations are used, in version 1.
      batch: number of images, or a name for any number.

    Raises:
      UserError: `graph` or `about` does not fit the schema.
    """
    helper, types = self._onnx.helper, self._onnx.TensorProto
    try:
      logits, text = graph_check.check(graph), strict_json.dump(about)
      schema.check_about(strict_json.parse(text), graph.image_shape, logits)
    except schema.InvalidError as e:
      raise UserError(f'{path} is not written: {e}') from None
    graph = helper.make_graph(
      self._nodes,
      'network',
      [helper.make_tensor_value_info(IMAGES, types.UINT8, [batch, *graph.image_shape])],
      [helper.make_tensor_value_info(LOGITS, types.FLOAT, [batch, logits])],
      list(self._constants.values()),
    )
    opsets = [helper.make_opsetid('', opset)]
    model = helper.make_model(
      graph,
      opset_imports=[*opsets, *(helper.make_opsetid(domain, 1) for domain in domains)],
      ir_version=helper.find_min_ir_version_for(opsets),
      producer_name=cmtkd_jax.__name__,
      producer_version=cmtkd_jax.__version__,
    )
    helper.set_model_props(model, {ABOUT: text})
    local_file.write_whole(path, model.SerializeToString())


def read(path):
  """Returns (function of images uint8 [B, H, W, C] to logits float32 [B, classes], about) of a file, on the CPU.

  The function raises `UserError` for other images, and where ONNX Runtime cannot run the file.

  Raises:
    UserError: there is no such file, it is damaged or not one of ours, or ONNX Runtime is not installed.
  """
  runtime, path = package('onnxruntime'), epath.Path(path)
  data, _ = manifest.read_checked(path)
  options = runtime.SessionOptions()
  options.log_severity_level = 4  # what goes wrong is raised
  # Else the weights would be made from their codes in every call.
  options.add_session_config_entry('session.disable_quant_qdq', '1')
  try:
    session = runtime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    metadata = session.get_modelmeta().custom_metadata_map
    if ABOUT not in metadata:
      raise schema.InvalidError(f'its metadata has no entry {ABOUT}')
    about = strict_json.parse(metadata[ABOUT])
    _check(session, about)
  except Exception as e:  # ONNX Runtime raises kinds of its own
    raise UserError(
      f'{path} is damaged or not an ONNX file that ONNX Runtime and cmtkd_jax read ({_reason(e)}); export it again'
    ) from None

  def network(images):
    if isinstance(images, jax.core.Tracer):
      raise UserError(f'{path}: ONNX Runtime cannot run inside a JAX transformation such as jax.jit; call it outside')
    images = np.asarray(images_lib.check(images, about['image_shape']))
    try:
      (logits,) = session.run([LOGITS], {IMAGES: images})
      if logits.shape != (len(images), len(about['classes'])):
        raise ValueError(f'it returns an array of the shape {list(logits.shape)}')
    except Exception as e:
      raise UserError(f'{path} cannot be run by ONNX Runtime ({_reason(e)}); export it again') from None
    return logits

  return network, about


def _check(session, about):
  """Raises `schema.InvalidError` unless the file is a function of such images to such logits, and `about` fits them."""
  (images, *more), (logits, *others) = session.get_inputs(), session.get_outputs()
  names = [x.name for x in (images, *more, logits, *others)]
  if (
    names != [IMAGES, LOGITS]
    or images.type != 'tensor(uint8)'
    or logits.type != 'tensor(float)'
    or (len(images.shape), len(logits.shape)) != (4, 2)
  ):
    raise schema.InvalidError(
      f'it has the inputs and outputs {schema.display_name(names)}, {images.type} and {logits.type}'
    )
  schema.IMAGE_SHAPE.check(images.shape[1:], f'the shape of {IMAGES}')
  schema.Integer(1, schema.CLASSES.most).check(logits.shape[1], f'the number of {LOGITS}')
  schema.check_about(about, images.shape[1:], logits.shape[1])


def _reason(e):
  return one_line(f'{type(e).__name__}: {e}', 120)
