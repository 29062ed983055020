"""Tables of runs as text, Markdown and JSON, from the rows of `table.collect`."""

import json
import re

from cmtkd_jax.errors import printable
from cmtkd_jax.runtime import text_table

# {config.table.split: (the images of the results, the images that choose the best epoch)}
_SPLITS = {
  'test': ('the test split', 'the test split, as papers print it'),
  'minival': ('held-out training images (minival)', 'the same images'),
}


def render(title, rows):
  """Returns the table as text."""
  header, body = _cells(rows)
  lines = text_table.lines(header, body, left=(0, len(header) - 1))
  above = [line for line in (printed_title(title, rows), *_what_was_run(rows)) if line]
  return '\n'.join(['', *map(printable, above), *lines, '', *map(printable, _below(rows))])


def markdown(title, rows):
  """Returns the table as Markdown."""
  header, body = _cells(rows)
  paragraphs = [
    *([f'**{text_table.markdown_cell(printed_title(title, rows))}**'] if title else []),
    *map(text_table.markdown_cell, _what_was_run(rows)),
    '\n'.join(text_table.markdown(header, body)),
    *map(text_table.markdown_cell, _below(rows)),
  ]
  return '\n\n'.join(paragraphs) + '\n'


def as_json(title, rows):
  """Returns the table as JSON; what its configuration says stays next to what was run."""
  return json.dumps({'title': title, 'printed_title': printed_title(title, rows), 'lines': rows}, indent=1)


FORMATS = {'text': render, 'markdown': markdown, 'json': as_json}


def printed_title(title, rows):
  """Returns the recipe's title; where it tells a number of epochs, with the one that was run."""
  epochs = _joined(rows, 'epochs')
  return re.sub(r'\b\d+(\.\d+)? epochs?\b', f'{epochs} epochs', title) if epochs else title


def _joined(rows, key):
  """The distinct values of a list field of the rows, '' without any."""
  values = sorted({value for row in rows for value in row.get(key, ())})
  return ', '.join(f'{value:g}' if isinstance(value, (int, float)) else value for value in values)


def _what_was_run(rows):
  """The line below the title, from the finished runs themselves: a recipe may have been run otherwise."""
  if not (epochs := _joined(rows, 'epochs')):
    return []
  about = [f'{epochs} epochs', f'network {_joined(rows, "networks")}', _joined(rows, 'data')]
  return [f'run: {", ".join(about)}']


def _below(rows):
  tests = dict.fromkeys(test for row in rows for test in row.get('tests', ()))
  random = any(name.startswith('generated:') for row in rows for name in row.get('data', ()))
  baselines = dict.fromkeys(row['difference']['baseline'] for row in rows if row['difference'])
  splits = dict.fromkeys(row['split'] for row in rows)
  stopped = {row['run']: (len(row['stopped_early']), len(row['seeds'])) for row in rows if row.get('stopped_early')}
  return [
    *(
      f'Top-1 / top-5 in percent on {shown}: mean over seeds ± standard error (sd: standard deviation of one seed). '
      f'The best epoch is chosen on {chosen}.'
      for shown, chosen in map(_SPLITS.get, splits)
    ),
    *(
      f'Difference to {run}: top-1 of the last epoch, mean ± standard error over the seeds of both.'
      for run in baselines
    ),
    *(f'{count} of {seeds} seeds of {run} stopped early.' for run, (count, seeds) in stopped.items()),
    *(f'test: {test}' for test in tests),
    *(['The images are random (generated data): these accuracies mean nothing.'] if random else []),
  ]


def _cells(rows):
  """(header, cells of each row); what no row has is left out."""
  columns = {
    'row': lambda row: row['title'],
    'W/A': lambda row: ', '.join(row.get('run_bits', ())) or row['bits'],
    'published': lambda row: _published(row['published']),
    'last epoch': lambda row: _pair(row['last']),
    'difference': lambda row: _cell(row['difference'], sign='+') if row['difference'] else '-',
    'sd': lambda row: _deviation(row['last']),
    'best epoch': lambda row: _pair(row['best']),
    'seeds': lambda row: str(len(row['seeds'])),
    'note': lambda row: row['note'],
  }
  if not any(value is not None for row in rows for value in row['published']):
    del columns['published']
  if not any(row['difference'] for row in rows):
    del columns['difference']
  return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def _published(values):
  known = any(value is not None for value in values)
  return ' / '.join('-' if value is None else f'{value:.1f}' for value in values) if known else '-'


def _deviation(result):
  return f'{result["top1"]["sd"]:.2f}' if result and result['top1']['sd'] is not None else '-'


def _pair(result):
  return f'{_cell(result["top1"])} / {_cell(result["top5"])}' if result else '-'


def _cell(value, sign=''):
  error = f' ± {value["standard_error"]:.2f}' if value['standard_error'] is not None else ''
  return f'{value["mean"]:{sign}.2f}{error}'
