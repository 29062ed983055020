"""What all ONNX files of a network have in common: how they are put together, written and read.

They take 'images', uint8 [N, H, W, C] of any N, and return 'logits', float32 [N, classes]. The entry 'about' of their
metadata is the JSON text of what is to be known of the network.
"""

import importlib
import json

import numpy as np
from etils import epath

import cmtkd_jax
from cmtkd_jax.errors import UserError
from cmtkd_jax.export.graph import IMAGES

LOGITS = 'logits'
ABOUT = 'about'


def package(name):
  """Returns the module `name`, which only ONNX files need.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise UserError(f'ONNX files need the package {name} ({e}): pip install onnx onnxruntime') from None


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

  def write(self, path, image_shape, about, opset, domains=()):
    """Writes the file.

    Args:
      path: where to.
      image_shape: (H, W, C).
      about: JSON-able dict.
      opset: version of ONNX's operations.
      domains: other domains whose operations are used, in version 1.
    """
    helper, types = self._onnx.helper, self._onnx.TensorProto
    graph = helper.make_graph(
        self._nodes, 'network', [helper.make_tensor_value_info(IMAGES, types.UINT8, ['N', *image_shape])],
        [helper.make_tensor_value_info(LOGITS, types.FLOAT, ['N', None])], list(self._constants.values()))
    opsets = [helper.make_opsetid('', opset)]
    model = helper.make_model(
        graph, opset_imports=[*opsets, *(helper.make_opsetid(domain, 1) for domain in domains)],
        ir_version=helper.find_min_ir_version_for(opsets), producer_name=cmtkd_jax.__name__,
        producer_version=cmtkd_jax.__version__)
    helper.set_model_props(model, {ABOUT: json.dumps(about)})
    epath.Path(path).write_bytes(model.SerializeToString())


def read(path):
  """Returns (function of images uint8 [B, H, W, C] to logits float32 [B, classes], about) of a file, on the CPU.

  Raises:
    UserError: there is no such file, it is damaged or not one of ours, or ONNX Runtime is not installed.
  """
  runtime, path = package('onnxruntime'), epath.Path(path)
  options = runtime.SessionOptions()
  options.log_severity_level = 4  # what goes wrong is raised
  # Else the weights would be made from their codes in every call.
  options.add_session_config_entry('session.disable_quant_qdq', '1')
  try:
    session = runtime.InferenceSession(path.read_bytes(), options, providers=['CPUExecutionProvider'])
    about = json.loads(session.get_modelmeta().custom_metadata_map[ABOUT])
    names = [[x.name for x in arguments()] for arguments in (session.get_inputs, session.get_outputs)]
    if names != [[IMAGES], [LOGITS]]:
      raise ValueError(f'it has the inputs and outputs {names}')
  except FileNotFoundError:
    raise UserError(f'{path} does not exist; write it with --mode=export') from None
  except Exception as e:  # ONNX Runtime raises kinds of its own
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:120]
    raise UserError(f'{path} is damaged or no ONNX file that ONNX Runtime and cmtkd_jax read ({reason}); '
                    'export it again') from None
  return lambda images: session.run([LOGITS], {IMAGES: np.asarray(images)})[0], about
