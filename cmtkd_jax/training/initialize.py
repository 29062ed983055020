"""Starting networks from trained ones, of another run or of a file from PyTorch, with a report of what was found.

A network takes the network of its own name, or else the other run's student. Quantizers start from data and the loaded
weights, since steps of another bit-width would be far off; a network of the same name whose layers all have the same
bits keeps them.
"""

import json
import re

from flax import traverse_util

from cmtkd_jax.config import init_from
from cmtkd_jax.errors import UserError
from cmtkd_jax.models import inspect, pytorch_weights
from cmtkd_jax.models.bit_policy import quantizer_names
from cmtkd_jax.runs import checkpoint, run_files


def load(text, allow, abstract, method, config=None, layers=()):
  """Reads trained networks into the variables of this run.

  Args:
    text: `config.init_from`: work directories, or files of `pytorch_weights`.
    allow: `config.init_from_ignore`, a regex of paths that may stay missing or mismatched.
    abstract: abstract variables of this run, {'params': {network: ...}, ...}.
    method: the `methods.Method`, whose `pretrained_candidates` say where each part may come from.
    config: of this run, which says the form of files from PyTorch; None for work directories.
    layers: `bit_table.LayerCost`s of this run, by which networks keep their quantizers; empty: none does.

  Returns:
    (variables, report): a nested dict of the arrays found, and lines of text.

  Raises:
    UserError: there is no checkpoint, a network is unknown, or an array that is neither allowed nor a quantizer's own
      is missing or has another shape.
  """
  wanted = traverse_util.flatten_dict(abstract)
  targets, may_differ = init_from.parse(text), re.compile(allow)
  networks = {path[1] for path in wanted}
  found, unused, lines = {}, [], []
  for target, directory in targets.items():
    if target and target not in networks:
      raise UserError(f'config.init_from: there is no network {target!r}; there are {", ".join(sorted(networks))}')
    source, meta, where = _read(directory, config)
    same_grids = _same_grids(networks, layers, config.to_dict(), meta) if layers else ()
    origins = {path: _origin(path, source, method) for path in wanted if target in ('', path[1])}
    used = {
      path: origin
      for path, origin in origins.items()
      if origin in source and (not inspect.is_quantizer_path(path) or (path[1] in same_grids and origin[1] == path[1]))
    }
    found |= {path: source[origin] for path, origin in used.items()}
    read = set(used.values())
    unused += [path for path in source if path not in read]
    lines.append(f'init_from {where}: {len(read)} of {len(source)} arrays used')

  mismatched = sorted(path for path, array in found.items() if array.shape != wanted[path].shape)
  created = [path for path in wanted if path not in found and (path[1] in targets or '' in targets)]
  kept = {path: array for path, array in found.items() if path not in mismatched}
  filled = ', '.join(sorted({path[1] for path in kept})) or 'nothing'
  lines += [
    f'  loaded      {len(kept)} arrays into {filled}',
    *(f'  created     {"/".join(path)}' for path in created),
    *(f'  unused      {"/".join(path)}' for path in unused),
    *(f'  mismatched  {"/".join(p)}: {list(found[p].shape)} there, {list(wanted[p].shape)} here' for p in mismatched),
  ]
  missing = ['/'.join(path) for path in [*created, *mismatched] if not _starts_fresh(path, method)]
  _check_missing([path for path in missing if not may_differ.fullmatch(path)], text)
  return traverse_util.unflatten_dict(kept), lines


def _read(directory, config):
  """({path: array}, metadata, name for the report) of a run's newest checkpoint, or of a file of `pytorch_weights`."""
  if pytorch_weights.is_weight_file(directory):
    return traverse_util.flatten_dict(pytorch_weights.load(directory, config.model)), {}, directory
  try:
    variables, meta, step = checkpoint.load_variables(f'{directory}/{run_files.CHECKPOINTS}')
  except UserError as e:
    raise UserError(f'config.init_from: {e}') from None
  return traverse_util.flatten_dict(variables), meta, f'{directory} (step {step})'


def _check_missing(paths, text):
  if paths:
    raise UserError(
      f'config.init_from: {len(paths)} arrays are missing or of another shape in {text}: '
      f'{", ".join(paths[:3])}{", ..." if len(paths) > 3 else ""}; allow them by the regex '
      'config.init_from_ignore, or name a directory that fits'
    )


def _origin(path, source, method):
  """The path in `source` that `path` is loaded from; one that is not in `source` when nothing there fits."""
  collection, name, *rest = path
  origins = [origin.split('/') for origin in method.pretrained_candidates(name)]
  present = [origin for origin in origins if any(key[1 : 1 + len(origin)] == tuple(origin) for key in source)]
  return (collection, *(present or origins)[0], *rest)


def _starts_fresh(path, method):
  """What only this method has, such as importance factors, starts as it does alone."""
  return inspect.is_quantizer_path(path) or len(method.pretrained_candidates(path[1])) == 1


def _same_grids(networks, layers, config, meta):
  """The `networks` whose layers have the same bits and quantizers here and in the run that `meta` is of."""

  def bits(network, rows):
    rows = [row for row in rows if row['layer'].startswith(f'{network}/')]
    return {row['layer']: (row['weight_bits'], row['activation_bits']) for row in rows}

  def described(config):
    used = quantizer_names(config['quantizer'])
    return json.dumps([config['bits'], used, [config['quantizer'].get(name) for name in used.values()]])

  if not {'config', 'bits'} <= meta.keys() or described(config) != described(meta['config']):
    return set()
  here = [row._asdict() for row in layers]
  return {name for name in networks if bits(name, here) == bits(name, meta['bits'])}
