"""`manifest.json`, which lies next to exported files: what is to be known of the network, and a digest of each file.

  format, version   'cmtkd_jax export', 1; a reader refuses what is newer
  about             as in the packed archive: classes, image_shape, resize, ...
  files             {name of a file: its SHA-256 in hexadecimal digits}

The digest is checked before a file is parsed: parsers of StableHLO and ONNX may crash on damaged files, or read another
network. A StableHLO file is not read without it, nor is any file next to a manifest that does not name it: an earlier
export left it there. A digest shows damage, not forgery: whoever can write both files can make them agree, so run
StableHLO and ONNX files only from sources that you trust.
"""

import hashlib

from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.export import schema, strict_json
from cmtkd_jax.runtime import local_file

FILE = 'manifest.json'
FORMAT, VERSION = 'cmtkd_jax export', 1
_SCHEMA = schema.Record(
  {
    'format': schema.OneOf((FORMAT,)),
    'version': schema.Integer(1, VERSION),
    'about': schema.ABOUT,
    'files': schema.Mapping(schema.Digest()),
  }
)


def write(folder, about, names):
  """Adds files of `folder` to its manifest, or begins a new one where that is of another network.

  Files that are gone are dropped. Call it when the files are complete.

  Args:
    folder: path of the directory.
    about: JSON-able dict, see `schema.ABOUT`.
    names: names of the files that were written just now.

  Raises:
    UserError: `about` does not fit the schema.
    OSError: a file cannot be read, or the manifest not be written.
  """
  folder = epath.Path(folder)
  try:
    about = strict_json.parse(strict_json.dump(about))
    schema.check_about(about)
  except schema.InvalidError as e:
    raise UserError(f'{folder / FILE} is not written: {e}') from None
  try:
    old = read(folder / FILE)
    files = old['files'] if old['about'] == about else {}
  except UserError:  # none yet, or damaged
    files = {}
  files = {name: digest for name, digest in files.items() if (folder / name).exists()}
  files |= {name: _digest((folder / name).read_bytes()) for name in names}
  text = strict_json.dump({'format': FORMAT, 'version': VERSION, 'about': about, 'files': files}, indent=1)
  local_file.write_whole(folder / FILE, text)


def stale(folder, names):
  """Returns which files of `names` are in `folder`, though its manifest does not name them: of an earlier export."""
  folder = epath.Path(folder)
  try:
    named = read(folder / FILE)['files']
  except UserError:  # none yet, or damaged
    return []
  return [folder / name for name in names if name not in named and (folder / name).exists()]


def read(path):
  """Returns the manifest at `path` as a dict.

  Raises:
    UserError: there is none, or it is damaged, or of a newer version or one without digests.
  """
  path = epath.Path(path)
  try:
    found = strict_json.parse(local_file.read_bytes(path))
    if said := schema.newer(found, FORMAT, VERSION):
      raise UserError(f'{path} {said}')
    if isinstance(found, dict) and {'classes', 'image_shape'} <= set(found):  # `about` alone
      raise UserError(
        f'{path} was written by an earlier version of cmtkd_jax and has no digests; export the network again'
      )
    _SCHEMA.check(found, 'manifest')
    schema.check_about(found['about'])
  except FileNotFoundError:
    raise UserError(f'{path} does not exist; copy it with the exported file, or export the network again') from None
  except PermissionError as e:
    raise local_file.cannot_be_read(path, e) from None
  except (OSError, schema.InvalidError) as e:
    raise UserError(f'{path} is damaged or not a manifest ({e}); export the network again') from None
  return found


def read_checked(path, required=False):
  """Returns (bytes, about) of an exported file whose digest is as the manifest next to it says.

  Args:
    path: an `epath.Path`.
    required: whether there must be a manifest.

  Returns:
    The bytes, and `about` of the manifest, None where there is no manifest.

  Raises:
    UserError: the file cannot be read, is not what was written, or the manifest is of another export.
  """
  try:
    data = local_file.read_bytes(path)
  except FileNotFoundError:
    raise UserError(f'{path} does not exist; export the network first') from None
  except OSError as e:
    raise UserError(f'{path} cannot be read ({e.strerror or e}); name an exported file') from None
  beside = path.parent / FILE
  if not required and not beside.exists():
    return data, None
  found = read(beside)
  wanted = found['files'].get(path.name)
  if wanted is None and required:
    raise UserError(
      f'{path} cannot be checked: {beside} has no digest of it; keep the name that it was written with, '
      'or export it again'
    )
  if wanted is None:  # a file that an earlier export left there
    raise UserError(
      f'{path} is of another export than {beside}, which does not name it; export it again, or move it into a '
      'folder of its own'
    )
  if _digest(data) != wanted:
    raise UserError(f'{path} is damaged: it is not the file that {beside} has the digest of; export it again')
  return data, found['about']


def _digest(data):
  return hashlib.sha256(data).hexdigest()
