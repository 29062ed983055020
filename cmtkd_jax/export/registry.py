"""The formats by name, and what reads and writes each."""

import importlib.util
from typing import Any, NamedTuple

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter
from cmtkd_jax.export.formats import hub, onnx_common, onnx_qdq, onnx_qlinear, onnx_qonnx, packed, stablehlo


class Format(NamedTuple):
  """A kind of file, or of folder.

  file: its name.
  write: (path, graph, about), with calibration images where it `calibrates`; of a folder (path, graph, about, summary).
  read: path -> (function of images, about); None where other programs do.
  packages: what must be installed.
  calibrates: whether feature maps are rounded to 8 bits, by what images show: uint8 [N, H, W, C].
  """

  file: str
  write: Any
  read: Any
  packages: tuple[str, ...] = ()
  calibrates: bool = False

  def missing(self):
    """Returns the first package that is not installed, '' where all are."""
    return next((name for name in self.packages if importlib.util.find_spec(name) is None), '')


def _read_packed(path):
  graph, about = packed.read(path)
  return interpreter.Network(graph), about


def _read_hub(path):
  graph, about = hub.read(path)
  return interpreter.Network(graph), about


_ONNX = ('onnx', 'onnxruntime')
# Adding a format: its file, one line here, its test.
FORMATS = {
  'packed': Format('student.npz', packed.write, _read_packed),
  'stablehlo': Format('student.stablehlo', stablehlo.write, stablehlo.read, ('flatbuffers',)),
  'onnx_qdq': Format('student.onnx', onnx_qdq.write, onnx_common.read, _ONNX),
  'onnx_qlinear': Format('student.qlinear.onnx', onnx_qlinear.write, onnx_common.read, _ONNX, calibrates=True),
  'onnx_qonnx': Format('student.qonnx.onnx', onnx_qonnx.write, None, _ONNX),
}
# Folders, which hold digests of their own and are written where they are asked for.
FOLDERS = {'hub': Format('hub', hub.write, _read_hub, ('safetensors',))}


def check_formats(formats):
  """Raises `UserError` unless all are names in `FORMATS` or `FOLDERS`."""
  if isinstance(formats, str):
    raise UserError(f'formats={formats!r} is one name; give a list of names: [{formats!r}]')
  for name in formats:
    if name not in FORMATS | FOLDERS:
      known = ', '.join(FORMATS | FOLDERS)
      raise UserError(f'formats={list(formats)}: there is no format {name!r}; there are {known}')
