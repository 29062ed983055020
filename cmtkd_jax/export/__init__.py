"""A trained network as a file: packed archive, StableHLO, ONNX, a folder for the hub; and its evaluation in integers.

`from_run` makes a `Graph` of a run's network, `write` the files and their manifest, `open_network` a function of images
of any of them.
"""

import importlib.util
import shlex
from typing import Any, NamedTuple

from etils import epath

from cmtkd_jax import data
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import fold, graph_check, images, interpreter, manifest, schema, strict_json, trace
from cmtkd_jax.export.formats import hub, onnx_common, onnx_qdq, onnx_qlinear, onnx_qonnx, packed, stablehlo
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import run_files, run_reader
from cmtkd_jax.runtime import local_file
from cmtkd_jax.training import restore

FOLDER = 'export'


class NotWrittenError(UserError):
  """The disk, and not the network, keeps a file from being written."""


class Exported(NamedTuple):
  """The main network of a run, ready to be written.

  graph: its `Graph`.
  about: classes, image_shape, resize, network, step, bits, metrics, config and versions, as JSON has them.
  summary: of the run, see `run_summary.write`; {} where it is not finished.
  """

  graph: Any
  about: dict
  summary: dict = {}  # noqa: RUF012  nobody writes into it


class Format(NamedTuple):
  """A kind of file, or of folder.

  file: its name.
  write: (path, graph, about, calibration images uint8 [N, H, W, C] or None); of a folder (path, graph, about, summary).
  read: path -> (function of images, about); None where other programs do.
  packages: what must be installed.
  """

  file: str
  write: Any
  read: Any
  packages: tuple[str, ...] = ()

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
  'onnx_qlinear': Format('student.qlinear.onnx', onnx_qlinear.write, onnx_common.read, _ONNX),
  'onnx_qonnx': Format('student.qonnx.onnx', onnx_qonnx.write, None, _ONNX),
}
# Folders, which hold digests of their own and are written where they are asked for.
FOLDERS = {'hub': Format('hub', hub.write, _read_hub, ('safetensors',))}


def from_run(workdir, step=None):
  """Returns the `Exported` main network of a run, at `step` or the newest checkpoint; needs no data.

  Raises:
    UserError: there is no such run or checkpoint, the network cannot be exported, or the names of its classes cannot
      be shown.
  """
  workdir = local_file.expanded(workdir)
  run = run_reader.read(workdir)
  trained = restore.load_trained(run, step)
  fields, name = run.config.data, STUDENT
  shape = data.input_shape(fields)
  graph = fold.fold(trace.trace(trained.method, trained.variables, shape, name), shape, fields.mean, fields.std)
  about = {
    'network': name,
    'classes': run.classes,
    'image_shape': shape,
    'resize': fields.resize,
    'step': trained.step,
    'bits': [row._asdict() for row in run.bits if row.layer.startswith(f'{name}/')],
    'metrics': run_reader.results(run),
    'config': run.config.to_dict(),
    'versions': run_files.versions(),
  }
  try:
    about = strict_json.parse(strict_json.dump(about))
    schema.check_about(about, shape, graph_check.check(graph))
  except schema.InvalidError as e:
    where = f'; the names of its classes are in {run_files.CLASSES}' if 'about.classes' in str(e) else ''
    raise UserError(f'{workdir} cannot be exported: {e}{where}') from None
  return Exported(graph, about, run.summary)


def from_graph(graph):
  """Returns the `Exported` of a `Graph` that comes from no run: its classes are numbers, and it resizes no images."""
  return Exported(
    graph,
    {
      'classes': [str(i) for i in range(graph_check.check(graph))],
      'image_shape': list(graph.image_shape),
      'resize': 0,
    },
  )


def check_formats(formats):
  """Raises `UserError` unless all are names in `FORMATS` or `FOLDERS`."""
  for name in formats:
    if name not in FORMATS | FOLDERS:
      known = ', '.join(FORMATS | FOLDERS)
      raise UserError(f'--format={",".join(formats)}: there is no format {name!r}; there are {known}')


def write(exported, folder, formats, calibration=None):
  """Writes the formats, names in `FORMATS` or `FOLDERS`, into `folder`, and adds the files to its manifest.

  Returns `{format: path}`.

  calibration: images uint8 [N, H, W, C], for formats that round feature maps to 8 bits.

  Raises:
    UserError: a format is unknown or cannot hold the network, or the images are not the network's.
    NotWrittenError: the folder cannot be written.
  """
  folder = local_file.expanded(folder)
  if calibration is not None:
    calibration = images.check(calibration, exported.graph.image_shape, 'calibration')
  check_formats(formats)
  folder, paths = epath.Path(folder), {}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
      if name in FOLDERS:
        paths[name] = folder / FOLDERS[name].file
        FOLDERS[name].write(paths[name], *exported)
        continue
      paths[name] = folder / FORMATS[name].file
      local_file.refuse(paths[name])
      FORMATS[name].write(paths[name], exported.graph, exported.about, calibration)
      manifest.write(folder, exported.about, [FORMATS[name].file])
  except OSError as e:
    raise NotWrittenError(f'{folder} cannot be written ({e.strerror or e}); make room, or make it writable') from None
  return paths


def open_network(path):
  """Returns (function, about) of a run's directory, or of an exported file or folder.

  The function takes images uint8 [B, H, W, C] and returns logits float32 [B, classes]. It raises `UserError` for
  anything else.

  Raises:
    UserError: there is no such file or run, or it is damaged.
  """
  path = local_file.expanded(path)
  path = epath.Path(path)
  if path.is_dir():
    if not (path / run_files.CHECKPOINTS).exists() and hub.is_folder(path):
      return _read_hub(path)
    if (there := _readable_in(path)) and not (path / run_files.CONFIG).exists():
      example = shlex.quote(str(there[0]))
      raise UserError(f'{path} is a folder of exported files; name one of them, e.g. --workdir={example}')
    graph, about, _ = from_run(path)
    return interpreter.Network(graph), about
  if path.name.endswith(FORMATS['onnx_qonnx'].file.partition('.')[2]):
    raise UserError(
      f'{path} is a QONNX file, which ONNX Runtime does not read; name {FORMATS["packed"].file} or '
      f'{FORMATS["onnx_qdq"].file} of the same export'
    )
  for found in FORMATS.values():
    if found.read and epath.Path(found.file).suffix == path.suffix:
      return found.read(path)
  raise UserError(
    f'{path} is neither the directory of a run nor an exported file that can be read; name one of these with '
    f'--workdir: {", ".join(found.file for found in (FORMATS | FOLDERS).values() if found.read)}'
  )


def _readable_in(folder):
  """The paths of the exported files and folders in `folder` that `open_network` reads."""
  paths = [folder / found.file for found in (FORMATS | FOLDERS).values() if found.read]
  return [path for path in paths if path.exists()]
