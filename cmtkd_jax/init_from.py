"""Starting networks from trained ones of another run, with a report of what was and was not found."""

import re

from flax import traverse_util

from cmtkd_jax import checkpoint, run_files
from cmtkd_jax.errors import UserError


def parse(text):
  """Returns `{network: work directory}` of 'student=DIR,teacher1_4bit=DIR', or `{'': DIR}` for one directory."""
  if '=' not in text:
    return {'': text}
  pairs = [part.partition('=') for part in text.split(',')]
  for name, _, directory in pairs:
    if not name.strip() or not directory.strip():
      raise UserError(f"config.init_from: {text!r} is neither a work directory nor 'network=DIR,network=DIR'")
  return {name.strip(): directory.strip() for name, _, directory in pairs}


def load(text, allow, abstract):
  """Reads trained networks into the variables of this run.

  A network takes the network of its own name, or else the source's student; a combined classifier without a namesake
  takes the student's head.

  Args:
    text: `config.init_from`.
    allow: `config.init_from_allow`, a regex of paths that may stay missing or mismatched.
    abstract: abstract variables of this run, {'params': {network: ...}, ...}.

  Returns:
    (variables, report): a nested dict of the arrays found, and lines of text.

  Raises:
    UserError: there is no checkpoint, a network is unknown, or an array that is neither allowed nor a quantizer's own
      is missing or has another shape.
  """
  wanted = traverse_util.flatten_dict(abstract)
  networks = {path[1] for path in wanted}
  found, unused, lines = {}, [], []
  targets = parse(text)
  try:
    may_differ = re.compile(allow)
  except re.error as error:
    raise UserError(f'config.init_from_allow={allow!r} is no regular expression: {error}') from None
  for target, directory in targets.items():
    if target and target not in networks:
      raise UserError(f'config.init_from: there is no network {target!r}; there are {", ".join(sorted(networks))}')
    variables, _, step = checkpoint.load_variables(f'{directory}/{run_files.CHECKPOINTS}')
    source = traverse_util.flatten_dict(variables)
    used = set()
    for path in wanted:
      if target in ('', path[1]):
        origin = _origin(path, source)
        if origin in source:
          found[path] = source[origin]
          used.add(origin)
    unused += [path for path in source if path not in used]
    lines.append(f'init_from {directory} (step {step}): {len(used)} of {len(source)} arrays used')

  mismatched = {path for path, array in found.items() if array.shape != wanted[path].shape}
  named = {path[1] for path in found}
  created = [path for path in wanted if path not in found and (path[1] in targets or '' in targets)]
  lines += [f'  loaded      {len(found) - len(mismatched)} arrays into {", ".join(sorted(named))}']
  lines += [f'  created     {"/".join(path)}' for path in created]
  lines += [f'  unused      {"/".join(path)}' for path in unused]
  lines += [f'  mismatched  {"/".join(path)}: {list(found[path].shape)} there, {list(wanted[path].shape)} here'
            for path in sorted(mismatched)]
  refused = ['/'.join(path) for path in [*created, *sorted(mismatched)]
             if not _may_differ(path) and not may_differ.fullmatch('/'.join(path))]
  if refused:
    raise UserError(f'config.init_from: {len(refused)} arrays are missing or of another shape in {text}: '
                    f'{", ".join(refused[:3])}{", ..." if len(refused) > 3 else ""}; allow them by the regex '
                    'config.init_from_allow, or name a directory that fits')
  kept = {path: array for path, array in found.items() if path not in mismatched}
  return traverse_util.unflatten_dict(kept), lines


def _origin(path, source):
  collection, network, *rest = path
  if any(key[1] == network for key in source):
    return path
  if network == 'combined_head':
    return (collection, 'student', 'head', *rest)
  return (collection, 'student', *rest)


def _may_differ(path):
  """Quantizers start from data, and what no single network has is new by nature."""
  return (any(name.endswith('_quantizer') for name in path) or path[1] == 'importance'
          or path[1].startswith('adaptor_'))
