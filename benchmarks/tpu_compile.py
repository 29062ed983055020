"""Memory, operations and traffic of the train step on TPUs, by their compiler; needs libtpu, and no TPU.

Run: pip install 'jax[tpu]'; python benchmarks/tpu_compile.py --out=FILE.json     (writes FILE.md beside it)

CMT-KD is set against as many full-precision networks, once each in a program of its own (four times the single one)
and once together in one program, where they share the chip's memory as those of CMT-KD do. What was compiled already
is read from the file; each step takes one to eight minutes.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
from train_step import apart, full_precision

from cmtkd_jax import config as config_lib
from cmtkd_jax.data.outline import outline
from cmtkd_jax.experiments import requirements
from cmtkd_jax.runs import provenance
from cmtkd_jax.runtime import topology as tpu_topology
from cmtkd_jax.training import build


def single(config):
  config.method.name = 'single'


def single_full_precision(config):
  single(config)
  config.student.weight_bits = config.student.activation_bits = 32


def unchanged(config):
  del config


# Name -> (argument of the configuration file, changes to it, the method it makes).
STEPS = {
  'CMT-KD, W2A2': ('', unchanged, build.create_method),
  'four in full precision, together': ('', full_precision, apart),
  'one in full precision': ('', single_full_precision, build.create_method),
  'one in W2A2': ('', single, build.create_method),
  'CMT-KD, W1A2': ('w1a2', unchanged, build.create_method),
  'CMT-KD, W2A2, FitNet': ('fitnet', unchanged, build.create_method),
}
# (configuration file, TPU slice, images a chip, steps)
SETTINGS = [
  ('cifar100_resnet18', 'v5e:2x2', 64, list(STEPS)),
  ('imagenet_resnet18', 'v5e:16x16', 16, list(STEPS)[:3]),
  ('cifar100_resnet18', 'v6e:2x2', 64, list(STEPS)[:3]),
]


def compiled(file, topology, batch, step):
  """Returns what the compiler says of one step, a JSON-able dict."""
  argument, change, create = STEPS[step]
  config = config_lib.load_config(__file__, f'../configs/{file}', argument)
  change(config)
  mesh = build.make_mesh(tpu_topology.tpu_slice(topology))
  config.dtype, config.batch_size = 'bfloat16', batch * mesh.size
  data = outline(config.data, batch_size=config.batch_size, mesh=mesh)
  begin = time.monotonic()
  found = requirements.of_method(create(config, data.num_classes), config, data, mesh)
  return {
    'gflop': found.flops / 1e9,
    'gigabytes': found.traffic / 1e9,
    'temporary_mib': found.temporary / 2**20,
    'held_mib': found.held / 2**20,
    'collective_mb': found.collectives / 1e6,
    'roofline_ms': 1e3 * max(found.seconds.values()),
    'compile_seconds': time.monotonic() - begin,
    'commit': provenance.commit(),
  }


def render(report):
  """The report as Markdown."""
  lines = [f'By libtpu {report["libtpu"]}, jax {report["jax"]}; `{report["command"]}`; bfloat16, figures of one chip.']
  for setting, steps in report['settings'].items():
    one = steps.get('one in full precision')
    lines += [
      '',
      f'**{setting}**',
      '',
      '| step | GFLOP | GB accessed | / 4 x one | temporary, MiB | / 4 x one | state and batch, MiB | collectives, MB '
      '| roofline, ms | commit |',
      '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, row in steps.items():
      ratio = lambda field, row=row, one=one: f'{row[field] / (4 * one[field]):.2f}' if one else '-'
      lines.append(
        f'| {name} | {row["gflop"]:,.0f} | {row["gigabytes"]:.2f} | {ratio("gigabytes")} | {row["temporary_mib"]:,.0f} '
        f'| {ratio("temporary_mib")} | {row["held_mib"]:,.0f} | {row["collective_mb"]:.0f} | {row["roofline_ms"]:.1f} '
        f'| {row["commit"]} |'
      )
  return '\n'.join([*lines, ''])


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', default='', help="regex of what is compiled, e.g. 'v6e.*: one'")
  parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON file to write, or to continue')
  options = parser.parse_args()
  report = json.loads(options.out.read_text()) if options.out.exists() else {'settings': {}}
  report |= {
    'jax': jax.__version__,
    'libtpu': importlib.metadata.version('libtpu'),
    'command': ' '.join(['python', *sys.argv]),
  }
  todo = [
    (f'{file}, {topology}, {batch} images a chip', (file, topology, batch, step), step)
    for file, topology, batch, steps in SETTINGS
    for step in steps
  ]
  todo = [
    (setting, arguments, step)
    for setting, arguments, step in todo
    if re.search(options.only, f'{setting}: {step}') and step not in report['settings'].get(setting, {})
  ]
  for number, (setting, arguments, step) in enumerate(todo, 1):
    print(f'{number}/{len(todo)}  {setting}: {step}', flush=True)
    report['settings'].setdefault(setting, {})[step] = compiled(*arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + '\n')
    options.out.with_suffix('.md').write_text(render(report))
  print(render(report))


if __name__ == '__main__':
  main()
