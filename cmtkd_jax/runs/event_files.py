"""Event files of TensorBoard: a run that resumes logs some steps again, and must not show them twice.

An event file is a TFRecord file (see `data.sources.tfrecord`) of `Event {double wall_time = 1; int64 step = 2; ...}`.
Reference: tensorflow/core/util/event.proto.
"""

import struct

from cmtkd_jax.data.sources import tf_example
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file

PATTERN = 'events.out.tfevents.*'
_HEADER, _FOOTER = 12, 4  # bytes around the data of a record: its length and the CRCs
_STEP, _VARINT = 2, 0


def drop_after(workdir, last_step):
  """Removes the events after `last_step` from the event files in `workdir`, an `epath.Path`; all of them for step 0.

  The rest stays byte for byte, and a record torn by a kill goes, too.

  Raises:
    UserError: one cannot be read.
  """
  for path in local_file.matching(workdir, PATTERN):
    if not last_step:
      path.unlink()
      continue
    try:
      data = local_file.read_bytes(path)
    except OSError as e:
      raise UserError(f'workdir: {path} cannot be read ({e.strerror or e}); remove it') from None
    kept = b''.join(record for record in _records(data) if _step(record) <= last_step)
    if kept != data:
      local_file.write_whole(path, kept)


def _records(data):
  at = 0
  while at + _HEADER <= len(data):
    end = at + _HEADER + struct.unpack_from('<Q', data, at)[0] + _FOOTER
    if end > len(data):
      return
    yield data[at:end]
    at = end


def _step(record):
  try:
    fields = list(tf_example.fields(record[_HEADER:-_FOOTER]))
  except ValueError:  # not an event: nothing that TensorBoard could show twice
    return 0
  return next((value for number, kind, value in fields if (number, kind) == (_STEP, _VARINT)), 0)
