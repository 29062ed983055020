"""The READMEs' tables name what there is, and their links and commands point at files that exist."""

import pathlib
import re
import tomllib

import pytest

from cmtkd_jax import losses, methods, quantizers

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
    *(line for name in ('tfds', 'tensorboard', 'report', 'test') for line in extras[name]),
  }
  lines = (line.partition('#')[0].strip() for line in (ROOT / 'requirements.txt').read_text().splitlines())
  assert sorted(filter(None, lines)) == sorted(wanted)


def test_the_front_page_is_short():
  """It is read in ten minutes; what is longer has a README of its own."""
  assert len((ROOT / 'README.md').read_bytes()) <= 14 * 1024
