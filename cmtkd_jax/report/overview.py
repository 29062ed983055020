"""The first sections of a page: what was run, its results, its networks."""

import statistics

from cmtkd_jax import methods
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import STUDENT, bit_table
from cmtkd_jax.models.bit_policy import quantizer_names
from cmtkd_jax.report import headline, training_rows
from cmtkd_jax.report.page import Section, escape, table
from cmtkd_jax.runs import run_reader
from cmtkd_jax.runtime import progress
from cmtkd_jax.training import restore

_NOT_YET = 'not logged yet'


def sections(run):
  """Returns the `Section`s that every run has, in words and tables."""
  return [
    Section('What was run', _heading_text(run), table=_facts(run)),
    Section('Results', _results_text(run), table=_results(run)),
    Section('Networks', _networks_text(), table=_networks(run)),
  ]


def _heading_text(run):
  method = escape((methods.METHODS[run.config.method.name].__doc__ or f'{run.config.method.name}.').splitlines()[0])
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
      f'{config.data.name}, {len(run.classes) or "unknown"} classes, images of {config.data.image_size} x '
      f'{config.data.image_size}',
    ),
    *([('test split', run.summary['test'])] if run.summary.get('test') else []),
    ('bits of the student', f'weights {config.student.weight_bits}, activations {config.student.activation_bits}'),
    ('epochs', f'{headline.epochs(run):.4g} (duration: {config.duration}), batches of {config.batch_size}'),
    *([('end', run.summary['stopped_early'])] if run.summary.get('stopped_early') else []),
    ('seed', config.seed),
    ('device', about.get('device', 'known at the end')),
    ('speed', f'{statistics.median(speeds):,.0f} training images a second (median)' if speeds else _NOT_YET),
    ('time', _time(run.rows) if run.rows else _NOT_YET),
    ('commit', about.get('commit') or 'unknown'),
    ('versions', ', '.join(map(' '.join, about.get('versions', {}).items())) or 'unknown'),
    ('directory', run.directory),
  ]
  return table((), facts)


def _time(rows):
  seconds, paused = training_rows.run_time(rows)
  text = f'{progress.format_duration(seconds)} from first to last logged line'
  return text + (f', without pauses ({progress.format_duration(paused)})' if paused else '')


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
    'test, as papers often print it, and so is optimistic. '
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
    'is the network to be deployed. <em>Teachers</em> are networks, mostly of more '
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
    total = bit_table.total(layers)
    role = {
      STUDENT: 'the network that the run is for; what would be deployed',
      'combined_head': 'the classifier of the combined teacher',
    }.get(name, 'trained before, frozen' if name in frozen else 'trains together with the student')
    rows.append(
      (
        run_reader.display_name(name),
        len(layers),
        f'{total.parameters:,}',
        ', '.join(map(str, sorted({layer.weight_bits for layer in layers}))),
        f'{total.size / total.parameters:.2f}',
        f'{total.size:,}',
        f'{total.macs:,}',
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
