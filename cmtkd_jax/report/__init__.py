"""Reports on runs: what a work directory holds, as one page to look at. The only place that knows matplotlib."""

import os

from etils import epath

from cmtkd_jax.errors import UserError
from cmtkd_jax.runs import run_reader
from cmtkd_jax.runtime import local_file


def write(workdir, others=()):
  """Writes a run's page, one self-contained HTML file, and its images next to it as PNG files.

  Args:
    workdir: directory of a run, finished or not; the page is its `report/report.html`.
    others: further work directories, whose networks enter the figure of accuracy against model size. The page is then
      `report/comparison/report.html`, and the one of the run alone stays.

  Returns:
    path of the page.

  Raises:
    UserError: a directory holds no run, or the page cannot be written.
  """
  workdir = local_file.expanded(workdir)
  if isinstance(others, (str, os.PathLike)):
    raise UserError(f'others={str(others)!r} is one directory; give a list of directories: [{str(others)!r}]')
  try:  # here, since whoever only trains needs no matplotlib
    from cmtkd_jax.report import confusion, curves, pareto, weight_histograms
  except ModuleNotFoundError as e:
    if e.name.partition('.')[0] != 'matplotlib':
      raise
    raise UserError('a report needs matplotlib, which is not installed; pip install matplotlib') from None
  from cmtkd_jax.report import comparison, headline, overview, page

  run = run_reader.read(workdir)
  others = [run_reader.read(other) for other in others]
  sections = [
    *overview.sections(run),
    curves.learning_curves(run),
    curves.loss_terms(run),
    curves.importance_factors(run),
    weight_histograms.section(run),
    pareto.section(run, others),
    confusion.section(run),
  ]
  sections = [section for section in sections if section is not None]
  name, *compared = comparison.names([run, *others])
  title = f'Report on {name}' + (f', compared with {" and ".join(compared)}' if compared else '')
  html = page.render(title, headline.summary(run) + headline.notices(run), sections)
  folder = epath.Path(workdir) / 'report'
  return _write(folder / 'comparison' if others else folder, html, sections)


def _write(folder, html, sections):
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in local_file.matching(folder, '*.png'):  # of an earlier report, which may have had other figures
      stale.unlink()
    for section in sections:
      for name, image in section.images.items():
        local_file.write_whole(folder / name, image)
    path = folder / 'report.html'
    local_file.write_whole(path, html)
  except OSError as e:
    raise UserError(f'{local_file.cannot_be_written(folder, e)}, or copy the run to another place') from None
  return path
