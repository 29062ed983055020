"""Where the time of a compiled step goes, by part of the method: a profile of JAX against the program's text."""

import collections
import glob
import gzip
import json
import re
import tempfile

import jax

# What the compiler keeps of an operation's origin -> the part of the step it belongs to; the first that fits. A fused
# operation has the origin of its last one, or else of most in it, so neighbors lend each other time.
PARTS = (
  ('convolutions and dense layers', r'conv_general_dilated|dot_general|\b(convolution|dot)\b'),
  ('quantizers of weights', r'weight_quantizer'),
  ('quantizers of activations', r'activation_quantizer'),
  ('batch normalization', r'/(norm\d*|shortcut_norm)/'),
  ('losses', r'\.loss\)'),
  ('copies', r'^(copy|transpose)\b|transpose_copy'),
  ('the rest of the networks: fusion, residual sums, ReLU', r'jvp\('),
  ('augmentation', r'_randint|gather|dynamic_slice|random_bits|threefry|shift_right|pad'),
  ('optimizer, metrics and what has no name', r''),
)


def parts_of(text):
  """`{operation: part}` of a compiled program's text."""
  found, inside = {}, collections.defaultdict(collections.Counter)  # {computation: origins of what is in it}
  for line in text.splitlines():  # a computation stands before whoever calls it
    if head := re.match(r'(?:ENTRY )?%?([\w.-]+) .*{$', line):
      computation = head[1]
    made = re.match(r'\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(', line)
    if made:
      origin, called = re.search(r'op_name="([^"]*)"', line), re.search(r'calls=%?([\w.-]+)', line)
      most = inside[called[1]].most_common(1) if called else ()
      origin = origin[1] if origin else most[0][0] if most else ''
      if made[2] in ('convolution', 'dot'):  # tells more of what they are fused with than all the rest
        inside[computation][origin or made[2]] += len(text)
      elif origin:
        inside[computation][origin] += 1
      found[made[1]] = next(part for part, pattern in PARTS if re.search(pattern, f'{made[2]} {origin or made[1]}'))
  return found


def by_part(run, text):
  """Profiles `run()`; returns `{part: seconds}`, over all threads of the device.

  Args:
    run: executes steps and waits for their end.
    text: `as_text()` of the compiled step.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (file,) = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
    with gzip.open(file) as trace:
      events = json.load(trace)['traceEvents']
  parts, sums = parts_of(text), collections.Counter()
  for event in events:
    operation = event.get('args', {}).get('hlo_op')
    if event.get('ph') == 'X' and operation in parts:
      sums[parts[operation]] += event['dur'] / 1e6
  return dict(sums.most_common())


def render(sums):
  """The sums as a Markdown table of shares."""
  total = sum(sums.values())
  return '\n'.join(
    [
      '| part | share |',
      '|---|---|',
      *(f'| {part} | {100 * seconds / total:.1f} % |' for part, seconds in sums.items()),
    ]
  )
