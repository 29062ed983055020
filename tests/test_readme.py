"""The README's tables name what there is."""

import pathlib
import re

import pytest

from cmtkd_jax import losses, methods, quantizers

README = (pathlib.Path(__file__).parent.parent / 'README.md').read_text()


def first_column(heading):
  """Names in the first column of the table under `heading`."""
  section = README.split(f'\n## {heading}\n')[1].split('\n## ')[0]
  return set(re.findall(r'^\| `(\w+)`', section, re.MULTILINE)), section


@pytest.mark.parametrize('heading, table', [
    ('Other methods, chains and tables', methods.METHODS), ('Quantizers', quantizers.QUANTIZERS),
    ('Losses', losses.FEATURE_LOSSES)])
def test_tables_name_everything(heading, table):
  assert first_column(heading)[0] == set(table)


def test_logit_losses_are_named():
  section = first_column('Losses')[1]
  assert set(re.findall(r'\| `(\w+)` \| [^|\n]+ \|$', section, re.MULTILINE)) == set(losses.LOGIT_LOSSES)


def test_widths_of_quantizers():
  """The bits that the table claims are those of the classes."""
  rows = re.findall(r'^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|', first_column('Quantizers')[1], re.MULTILINE)
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
      assert bits == set(cls.widths), (name, role)
      claimed[name, role] = bits
  assert len(claimed) > 18


def test_map_names_every_module():
  section = README.split('\n## Map of the code\n')[1].split('\n### ')[0]
  package = pathlib.Path(__file__).parent.parent / 'cmtkd_jax'
  names = {path.name for path in package.glob('*.py')} | {f'{path.parent.name}/' for path in package.glob('*/*.py')}
  assert sorted(name for name in names - {'__init__.py', 'cmtkd_jax/'} if name not in section) == []
