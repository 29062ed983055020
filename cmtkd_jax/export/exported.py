"""The main network of a run as a graph of integer codes, with what its files say about it."""

from typing import Any, NamedTuple

from cmtkd_jax import data
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import fold, graph_check, schema, strict_json, trace
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import run_files, run_reader
from cmtkd_jax.runtime import local_file
from cmtkd_jax.training import restore


class Exported(NamedTuple):
  """The main network of a run, ready to be written.

  graph: its `Graph`.
  about: classes, image_shape, resize, network, step, bits, metrics, config and versions, as JSON has them. The metrics
    are the last and best of the run, whatever the step; the versions are those of training.
  summary: of the run, see `run_summary.write`; {} where it is not finished.
  """

  graph: Any
  about: dict
  summary: dict = {}  # noqa: RUF012  nobody writes into it


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
    'versions': trained.meta.get('versions', {}),
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
