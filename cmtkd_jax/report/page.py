"""The page itself: heading, results, sections, as one HTML file without anything from the network."""

import base64
import html
import statistics
import string
import types
from collections.abc import Mapping
from typing import NamedTuple

from cmtkd_jax import methods
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT
from cmtkd_jax.models.bit_policy import quantizer_names
from cmtkd_jax.runs import run_reader, run_summary
from cmtkd_jax.runtime import progress
from cmtkd_jax.training import restore

_NOT_YET = 'not logged yet'
_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c1f24;
       background: #fff; max-width: 66rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-top: 1px solid #d8dce2; padding-top: 1rem; }
p { max-width: 52rem; margin: .4rem 0 1rem; }
img { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0 1rem; }
th, td { text-align: left; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid #e4e6ea; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
summary { cursor: pointer; color: #0072B2; }
.unfinished { background: #fff3d6; border-left: 4px solid #E69F00; padding: .5rem .8rem; max-width: 51rem; }
nav a { margin-right: 1rem; color: #0072B2; }
</style>
</head>
<body>
<h1>$title</h1>
$notice
<nav>$links</nav>
$body
</body>
</html>
""")


class Section(NamedTuple):
  """One part of the page.

  title: plain text.
  text: the paragraph that explains it, HTML.
  images: `{file name: bytes of a PNG}`.
  table: HTML, '' for none.
  """

  title: str
  text: str
  images: Mapping[str, bytes] = types.MappingProxyType({})
  table: str = ''


def escape(value):
  """Returns `value` as text in HTML."""
  return html.escape(str(value))


def table(header, rows, summary=''):
  """Returns an HTML table of plain values; folded under a line `summary` where there is one."""
  cells = lambda tag, values: ''.join(f'<{tag}>{escape(value)}</{tag}>' for value in values)
  lines = [f'<tr>{cells("td", row)}</tr>' for row in rows]
  head = f'<thead><tr>{cells("th", header)}</tr></thead>' if header else ''
  text = f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'
  return f'<details><summary>{escape(summary)}</summary>{text}</details>' if summary else text


def render(run, sections):
  """Returns the page of a `run_reader.Run` with these `Section`s."""
  sections = [
    Section('What was run', _heading_text(run), table=_facts(run)),
    Section('Results', _results_text(run), table=_results(run)),
    Section('Networks', _networks_text(), table=_networks(run)),
    *sections,
  ]
  anchors = [section.title.lower().replace(' ', '-') for section in sections]
  body = ''.join(
    f'<section id="{anchor}"><h2>{escape(section.title)}</h2><p>{section.text}</p>{_images(section)}'
    f'{section.table}</section>\n'
    for anchor, section in zip(anchors, sections)
  )
  links = ' '.join(f'<a href="#{anchor}">{escape(section.title)}</a>' for anchor, section in zip(anchors, sections))
  return _PAGE.substitute(title=escape(f'Report on {run.name}'), notice=_notice(run), links=links, body=body)


def _images(section):
  return ''.join(
    f'<img alt="{escape(section.title)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
    for image in section.images.values()
  )


def _notice(run):
  if run.summary:
    return ''
  epoch = _epochs(run)
  so_far = f'what is here was logged up to epoch {epoch:.4g}' if epoch else 'nothing was logged yet'
  return (
    f'<p class="unfinished"><strong>This run is not finished:</strong> there is no {run_summary.FILE}; of '
    f'{escape(run.config.duration)}, {so_far}. The command that started it resumes it.</p>'
  )


def _epochs(run):
  if run.summary:
    return run.summary['epochs']
  return run.rows[-1]['step'] / run.steps_per_epoch if run.steps_per_epoch else 0


def _heading_text(run):
  method = escape(methods.METHODS[run.config.method.name].__doc__.splitlines()[0])
  return (
    f'{method} <em>Bits</em> are those of each weight and of each value between layers: with <em>b</em> bits '
    'a layer has 2<sup><em>b</em></sup> different values to compute with, where full precision has 32 bits.'
  )


def _facts(run):
  config, about = run.config, run.summary or _checkpoint_meta(run)
  speeds = [row['perf/images_per_second'] for row in run.rows if 'perf/images_per_second' in row]
  facts = [
    ('method', config.method.name),
    (
      'network',
      f'{config.model.name}, width {config.model.width:g}, quantizer '
      f'{", ".join(dict.fromkeys(quantizer_names(config.quantizer).values()))}',
    ),
    (
      'data',
      f'{config.data.name}, {len(run.classes)} classes, images of {config.data.image_size} x {config.data.image_size}',
    ),
    ('bits of the student', f'weights {config.student.weight_bits}, activations {config.student.activation_bits}'),
    ('epochs', f'{_epochs(run):.4g} of {config.duration}, batches of {config.batch_size}'),
    ('seed', config.seed),
    ('device', about.get('device', 'known at the end')),
    ('speed', f'{statistics.median(speeds):,.0f} training images a second (median)' if speeds else _NOT_YET),
    (
      'time',
      f'{progress.format_duration(run.rows[-1]["time"] - run.rows[0]["time"])} from first to last logged line'
      if run.rows
      else _NOT_YET,
    ),
    ('commit', about.get('commit') or 'unknown'),
    ('versions', ', '.join(map(' '.join, about.get('versions', {}).items())) or 'unknown'),
    ('directory', run.directory),
  ]
  return table((), facts)


def _checkpoint_meta(run):
  try:
    return restore.load_trained(run).meta
  except UserError:
    return {}


def _results_text(run):
  text = (
    'Top-1 is the share of images whose most likely class is the right one, top-5 the share whose right class '
    'is among the five most likely. <em>Last</em> is the last evaluation, the number to compare. '
    '<em>Best</em> is the highest of all evaluations on that split: on test it is picked by looking at '
    'test, as papers often print it, and flatters. '
  )
  if any('chosen' in result for result in run_reader.results(run).values()):
    text += '<em>Chosen</em> is the epoch that was best on the held-out slice of train (minival).'
  return text


def _results(run):
  results = run_reader.results(run)
  if not results:
    return '<p>There is no evaluation yet.</p>'
  percent = lambda value: f'{value:.2f} %'
  order = sorted(results, key=lambda name: (name.split('/')[0] != 'test', name.split('/')[1] != STUDENT))
  rows = []
  for name in order:
    split, network = name.split('/')
    result = results[name]
    row = [run_reader.display_name(network), split]
    for kind in ('last', 'best', 'chosen'):
      if kind in result:
        row += [percent(result[kind]['top1']), percent(result[kind]['top5'])]
        row += [f'{result[kind]["epoch"]:.4g}'] if kind != 'last' else []
    rows.append(row)
  header = ['network', 'split', 'last top-1', 'last top-5', 'best top-1', 'best top-5', 'at epoch']
  if max(map(len, rows)) > len(header):
    header += ['chosen top-1', 'chosen top-5', 'at epoch']
  return table(header, [row + [''] * (len(header) - len(row)) for row in rows])


def _networks_text():
  return (
    'The networks of the run as bits.json has them. <em>Mean bits</em> is the mean over all weights, each '
    'layer counted by its number of parameters; it lies above the width of the network, because the first and '
    'the last layer usually keep more bits. MACs are the multiply-adds for one image. The <em>student</em> '
    'is the network that one wants to have in the end. <em>Teachers</em> are networks, mostly of more '
    'bits, whose predictions or feature maps it imitates in addition to the labels.'
  )


def _networks(run):
  networks = {}
  for row in run.bits:
    networks.setdefault(row.layer.split('/')[0], []).append(row)
  try:
    frozen = restore.create_method(run).frozen
  except UserError:  # its teachers are gone
    frozen = ()
  rows = []
  for name in sorted(networks, key=lambda name: name != STUDENT):
    layers = networks[name]
    parameters = sum(layer.parameters for layer in layers)
    bits = sum(layer.parameters * layer.weight_bits for layer in layers)
    role = {
      STUDENT: 'the network that the run is for; what would be deployed',
      'combined_head': 'the classifier of the combined teacher',
    }.get(name, 'trained before, frozen' if name in frozen else 'trains together with the student')
    rows.append(
      (
        run_reader.display_name(name),
        len(layers),
        f'{parameters:,}',
        ', '.join(map(str, sorted({layer.weight_bits for layer in layers}))),
        f'{bits / parameters:.2f}',
        f'{bits:,}',
        f'{sum(layer.macs for layer in layers):,}',
        role,
      )
    )
  for name in run.networks:
    if name not in networks:
      members = [other for other in networks if other not in run.networks] or networks
      rows.append(
        (run_reader.display_name(name), *[''] * 6, f'{", ".join(map(run_reader.display_name, members))}: taken as one')
      )
  header = ('network', 'layers', 'parameters', 'bits of weights', 'mean bits', 'bits in all', 'MACs', 'what it is')
  return table(header, rows)
