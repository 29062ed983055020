"""A trained network as a file: packed archive, StableHLO, ONNX, a folder for the hub; and its evaluation in integers.

`from_run` makes a `Graph` of a run's network, `write` the files and their manifest, `open_network` a function of images
of any of them.

FORMATS, FOLDERS: `{name: Format}`, what the formats are called with `--format`.
"""

from cmtkd_jax.export.exported import Exported, from_graph, from_run
from cmtkd_jax.export.files import FOLDER, NotWrittenError, open_network, write
from cmtkd_jax.export.registry import FOLDERS, FORMATS, Format, check_formats

__all__ = [
  'FOLDER',
  'FOLDERS',
  'FORMATS',
  'Exported',
  'Format',
  'NotWrittenError',
  'check_formats',
  'from_graph',
  'from_run',
  'open_network',
  'write',
]
