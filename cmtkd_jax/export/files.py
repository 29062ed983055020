"""Writes exported files, and opens them or a run as a function of images."""

import shlex

from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import images, interpreter, manifest
from cmtkd_jax.export.exported import from_run
from cmtkd_jax.export.formats import hub
from cmtkd_jax.export.registry import FOLDERS, FORMATS, check_formats
from cmtkd_jax.runs import run_files
from cmtkd_jax.runtime import local_file

FOLDER = 'export'  # of a run


class NotWrittenError(UserError):
  """The disk, and not the network, keeps a file from being written."""


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
      images_of = (calibration,) if FORMATS[name].calibrates else ()
      FORMATS[name].write(paths[name], exported.graph, exported.about, *images_of)
      manifest.write(folder, exported.about, [FORMATS[name].file])
  except OSError as e:
    raise NotWrittenError(local_file.cannot_be_written(folder, e)) from None
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
      return FOLDERS['hub'].read(path)
    if (there := _readable_in(path)) and not (path / run_files.CONFIG).exists():
      example = shlex.quote(str(there[0]))
      raise UserError(f'{path} is a folder of exported files; name one of them, such as {example}')
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
    f'{path} is neither the directory of a run nor an exported file that can be read; name one of these: '
    f'{", ".join(found.file for found in (FORMATS | FOLDERS).values() if found.read)}'
  )


def _readable_in(folder):
  """The paths of the exported files and folders in `folder` that `open_network` reads."""
  paths = [folder / found.file for found in (FORMATS | FOLDERS).values() if found.read]
  return [path for path in paths if path.exists()]
