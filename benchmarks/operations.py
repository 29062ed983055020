"""Where the time of a compiled step goes, by part of the method: a profile of JAX against the program's text."""

import collections
import glob
import gzip
import json
import re
import tempfile

import jax

# What the compiler keeps of an operation's origin -> the part of the step it belongs to; the first that fits. A fused
# operation has the origin of its last one, or else of most in it, so neighbours lend each other time.
PARTS = (
    ('convolutions and dense layers', r'conv_general_dilated|dot_general|^(convolution|dot|custom-call)'),
    ('quantizers of weights', r'weight_quantizer'),
    ('quantizers of activations', r'activation_quantizer'),
    ('batch normalisation', r'/(norm\d*|shortcut_norm)/'),
    ('losses', r'\.loss\)'),
    ('fusion of the teachers, residual sums', r'jvp\('),
    ('augmentation', r'_randint|gather|dynamic_slice|random_bits|threefry|shift_right|pad'),
    ('copies', r'^(copy|transpose)'),
    ('optimizer, metrics and what has no name', r''),
)


def parts_of(text):
  """`{operation: (part, whether it is of the backward pass)}` of a compiled program's text."""
  found, inside = {}, collections.defaultdict(collections.Counter)  # {computation: origins of what is in it}
  for line in text.splitlines():  # a computation stands before whoever calls it
    if head := re.match(r'(?:ENTRY )?%?([\w.-]+) .*{$', line):
      computation = head[1]
    made = re.match(r'\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(', line)
    if made:
      origin, called = re.search(r'op_name="([^"]*)"', line), re.search(r'calls=%?([\w.-]+)', line)
      most = inside[called[1]].most_common(1) if called else ()
      origin = origin[1] if origin else most[0][0] if most else ''
      if origin:
        inside[computation][origin] += 1
      what = f'{made[2]} {origin}'
      found[made[1]] = next(part for part, pattern in PARTS if re.search(pattern, what)), 'transpose(jvp' in what
  return found


def by_part(run, text):
  """Profiles `run()`; returns `{part: {'forward': seconds, 'backward': seconds}}`, over all threads of the device.

  Args:
    run: executes steps and waits for their end.
    text: `as_text()` of the compiled step.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    file, = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
    with gzip.open(file) as trace:
      events = json.load(trace)['traceEvents']
  parts, sums = parts_of(text), collections.defaultdict(lambda: {'forward': 0.0, 'backward': 0.0})
  for event in events:
    operation = event.get('args', {}).get('hlo_op')
    if event.get('ph') == 'X' and operation in parts:
      part, backward = parts[operation]
      sums[part]['backward' if backward else 'forward'] += event['dur'] / 1e6
  return dict(sorted(sums.items(), key=lambda item: -sum(item[1].values())))


def render(sums):
  """The sums as a Markdown table of shares."""
  total = sum(sum(both.values()) for both in sums.values())
  lines = ['| part | forward | backward | together |', '|---|---|---|---|']
  for part, both in sums.items():
    shares = [100 * value / total for value in (both['forward'], both['backward'], sum(both.values()))]
    lines.append(f'| {part} | {" | ".join(f"{share:.1f} %" for share in shares)} |')
  return '\n'.join(lines)
