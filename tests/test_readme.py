"""The READMEs' tables name what there is, and their links and commands point at files that exist."""

import math
import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import pytest

from cmtkd_jax import losses, methods, models, quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.models.bit_policy import BitPolicy
from cmtkd_jax.models.layers import LayerFactory

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'cmtkd_jax'
READMES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob('*.md'), *ROOT.glob('[!.]*/**/README.md')])


def first_column(path):
  """Names in the first column of the tables of a README, and its text."""
  text = (PACKAGE / path).read_text()
  return set(re.findall(r'^\| `(\w+)`', text, re.MULTILINE)), text


@pytest.mark.parametrize(
  'path, table',
  [
    ('methods/README.md', methods.METHODS),
    ('quantizers/README.md', quantizers.QUANTIZERS),
    ('losses/README.md', losses.FEATURE_LOSSES),
    ('models/README.md', models.MODELS),
  ],
)
def test_tables_name_everything(path, table):
  assert first_column(path)[0] == set(table)


def test_logit_losses_are_named():
  text = first_column('losses/README.md')[1]
  assert set(re.findall(r'\| `(\w+)` \| [^|\n]+ \|$', text, re.MULTILINE)) == set(losses.LOGIT_LOSSES)


def test_widths_of_quantizers():
  """The bits that the table claims are those of the classes."""
  rows = re.findall(r'^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|', first_column('quantizers/README.md')[1], re.MULTILINE)
  claimed = {}
  for name, *cells in rows:
    for role, cell in zip(('Weight', 'Activation'), cells, strict=True):
      cls = getattr(quantizers.QUANTIZERS[name], role, None)
      if cell == '-' or cell.startswith('as '):
        assert (cls is None) == (cell == '-'), (name, role)
        continue
      bits = set()
      for part in re.match(r'[\d, -]+', cell)[0].rstrip(', ').split(', '):
        low, _, high = part.partition('-')
        bits |= set(range(int(low), int(high or low) + 1))
      assert bits == set(cls.bit_widths), (name, role)
      claimed[name, role] = bits
  assert len(claimed) > 18


FORMS = (('cifar', 10, lambda name: 32), ('imagenet', 1000, lambda name: 227 if name == 'alexnet' else 224))


@pytest.mark.integration
@pytest.mark.parametrize('name', models.MODELS)
def test_sizes_taps_and_orders_of_networks(name):
  line = re.search(rf'^\| `{name}` \| (.*) \|$', first_column('models/README.md')[1], re.MULTILINE)[1]
  *sizes, taps, orders = line.split(' | ')

  def build(stem, classes, order='pre'):
    layers = LayerFactory(BitPolicy(32, 32))
    return models.MODELS[name](num_classes=classes, layers=layers, width=1.0, stem=stem, block_order=order)

  for size, (stem, classes, pixels) in zip(sizes, FORMS, strict=True):
    if size == '-':
      with pytest.raises(UserError, match=stem):
        build(stem, classes)
      continue
    network, images = build(stem, classes), jnp.zeros((2, pixels(name), pixels(name), 3))
    parameters = jax.eval_shape(lambda n=network, x=images: n.init(jax.random.key(0), x, False))['params']
    assert size == f'{sum(math.prod(p.shape) for p in jax.tree.leaves(parameters)) / 1e6:.2f}'
    assert taps == ', '.join(map(str, network.taps))
  for order in models.ORDERS:
    if f'`{order}`' in orders:
      build('cifar', 10, order)
      continue
    with pytest.raises(UserError, match='block_order'):
      build('cifar', 10, order)


def test_maps_name_every_room():
  front = (ROOT / 'README.md').read_text().split('\n## Map\n')[1].split('\n## ')[0]
  inside = (PACKAGE / 'README.md').read_text().split('\n## Map of the code\n')[1].split('\n## ')[0]
  rooms = {f'{path.parent.name}/' for path in PACKAGE.glob('*/__init__.py')} | {'main.py', 'errors.py', 'options.py'}
  for text in (front, inside):
    assert sorted(room for room in rooms if room not in text) == []


@pytest.mark.parametrize('readme', READMES, ids=str)
def test_links_and_files_exist(readme):
  text = (ROOT / readme).read_text()
  links = [link.partition('#')[0] for link in re.findall(r'\]\(([^)]+)\)', text) if not link.startswith('http')]
  assert [link for link in links if not (ROOT / readme.parent / link).exists()] == []
  named = set(
    re.findall(r'(?:^|[ `(=])((?:configs|launch|benchmarks|tests|cmtkd_jax)/[\w./]+\.(?:py|md|sh|sbatch|yaml))', text)
  )
  assert sorted(name for name in named if 'NAME' not in name and not (ROOT / name).exists()) == []


def test_requirements_are_those_of_the_package_and_its_extras():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  wanted = {
    *project['dependencies'],
    *(line for name in ('tensorflow', 'tfds', 'tensorboard', 'report', 'test') for line in extras[name]),
  } - {'cmtkd_jax[tensorflow]'}
  lines = (line.partition('#')[0].strip() for line in (ROOT / 'requirements.txt').read_text().splitlines())
  assert sorted(filter(None, lines)) == sorted(wanted)


def test_the_front_page_is_short():
  """It is read in ten minutes; what is longer has a README of its own."""
  assert len((ROOT / 'README.md').read_bytes()) <= 14 * 1024
