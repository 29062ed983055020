"""Model card, `README.md`, of a folder for the Hugging Face hub: an exported network and the results of its run.

What is not known is left out, and so is the license, which the owner chooses. The text begins with the YAML that the
hub reads; its texts are quoted as in JSON, which YAML takes.
"""

import json

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import printable
from cmtkd_jax.export import public_config, sizes
from cmtkd_jax.models.bit_policy import FULL_PRECISION

LIBRARY = 'cmtkd_jax'
_TASK = 'image-classification'
_SPLITS = {'last': 'last epoch', 'best': 'best epoch', 'chosen': 'as minival chooses'}


def text(graph, about, summary, file_bytes):
  """Returns the text.

  Args:
    graph: the `Graph`.
    about: see `schema.ABOUT`; its configuration is that of `public_config`.
    summary: of the run, as `run_summary.write` returns it; {} where it is not known.
    file_bytes: size of the file of weights.
  """
  config = config_lib.flat(about.get('config', {}))
  low, data = quantized(graph), config.get('data.name')
  trained_on = f'trained on {_code(data)}' if data else ''
  title = ', '.join(filter(None, [_code(config.get('model.name')), _bits_text(config), trained_on]))
  parts = [
    _front_matter(about, summary, data, title, low),
    f'# {title or "Exported network"}',
    _introduction(graph, low),
    _table(['', ''], _facts(config, about, summary, low)),
    _results(about, summary, data),
    _sizes(graph, file_bytes),
    _settings(about),
    _use(about),
  ]
  return '\n\n'.join(filter(None, parts)) + '\n'


def _facts(config, about, summary, low):
  """Rows (name, value) of what is known of the network and its run; `config` is flat."""
  height, width, channels = about['image_shape']
  facts = {
    'architecture': _code(config.get('model.name')),
    'images': f'{height} x {width} x {channels}, uint8',
    'classes': f'{len(about["classes"])}, named in `config.json`',
    'weights': _bits(config.get('student.weight_bits'), _exceptions(config)),
    'activations': _bits(config.get('student.activation_bits'), _exceptions(config, shortcuts=False)),
    'first and last layer': _bits(first_last_bits(config), _exceptions(config, shortcuts=False)),
    'quantizer': _quantizers(config, low),
    'method': _code(config.get('method.name')),
    'data': _code(config.get('data.name')),
    'test images': summary.get('test'),
    'step': about.get('step'),
    'steps of the run': summary.get('steps'),
    'epochs of the run': summary.get('epochs'),
    'seed': config.get('seed'),
    'device': summary.get('device'),
    f'commit of {LIBRARY}': _code(summary.get('commit')),
    'versions': ', '.join(f'{name} {version}' for name, version in about.get('versions', {}).items()),
  }
  return [[name, str(value)] for name, value in facts.items() if value not in (None, '')]


def quantized(graph):
  """Returns which of 'weights' and 'activations' have codes in some layer."""
  weights = min(sizes.by_bits(graph), default=FULL_PRECISION) < FULL_PRECISION
  activations = any(node.op == 'quantize' for node in graph.nodes)
  return [name for name, found in (('weights', weights), ('activations', activations)) if found]


def first_last_bits(config):
  """Returns the weight bits of the first and last layer by a flat configuration, None where it does not say."""
  full = config.get('student.weight_bits') == FULL_PRECISION
  return FULL_PRECISION if full else config.get('bits.first_last')


def _introduction(graph, low):
  kind = f'whose {" and ".join(low)} have few bits' if low else 'in full precision'
  held = 'float32'
  if 'weights' in low:
    held = 'packed codes' + ' and, in full precision, as float32' * (FULL_PRECISION in sizes.by_bits(graph))
  return (
    f'An image classifier {kind}, exported by `{LIBRARY}`. `model.safetensors` holds the weights as {held}; '
    '`config.json` their operations and the names of the classes.'
  )


def _is_random(data):
  return (data or '').startswith('generated:')


def _front_matter(about, summary, data, title, low):
  quoted = lambda value: json.dumps(printable(str(value)), ensure_ascii=False)
  tags = [_TASK, *(['quantization', 'low-bit'] if low else []), 'jax']
  lines = [f'library_name: {LIBRARY}', f'pipeline_tag: {_TASK}', 'tags:', *(f'- {tag}' for tag in tags)]
  # The results of the last epoch are those of this network only if it was saved at the last step, and is as precise.
  exact = about.get('step') is not None and about['step'] == summary.get('steps') and not _is_rounded(about)
  test = _own_results(about).get('test')
  if exact and test and data and not _is_random(data):
    lines.append(
      f"""\
metrics:
- accuracy
model-index:
- name: {quoted(title.replace('`', ''))}
  results:
  - task:
      type: {_TASK}
    dataset:
      name: {quoted(data)}
      type: {quoted(data)}
      split: test
    metrics:
    - type: accuracy
      name: "top-1 accuracy"
      value: {round(test['last']['top1'], 4)}
    - type: accuracy
      name: "top-5 accuracy"
      value: {round(test['last']['top5'], 4)}"""
    )
  return '\n'.join(['---', *lines, '---'])


def _own_results(about):
  """{split: {'last', 'best' and, where there is a minival, 'chosen'}} of the exported network."""
  own = f'/{about.get("network", "")}'
  return {name.removesuffix(own): result for name, result in about.get('metrics', {}).items() if name.endswith(own)}


def _is_rounded(about):
  """Whether the run computed, and was evaluated, with fewer digits than the exported network has."""
  return about.get('config', {}).get('dtype', 'float32') != 'float32'


def _results(about, summary, data):
  found = _own_results(about)
  if not found:
    return ''
  ended = {'epoch': summary['epochs']} if 'epochs' in summary else {}
  body = [
    [f'{split}, {words}', f'{which["top1"]:.2f} %', f'{which["top5"]:.2f} %', str((ended | which).get('epoch', ''))]
    for split, result in found.items()
    for key, words in _SPLITS.items()
    if (which := result.get(key))
  ]
  notes = ['"Best" is the highest top-1 of all evaluations on that split, so it is optimistic.']
  if _is_random(data):
    notes.insert(0, 'The images are random (generated data): these accuracies mean nothing.')
  if not summary:
    notes.append('The run was not finished: these are its evaluations so far.')
  elif about.get('step') != summary.get('steps'):
    notes.append(
      f'The weights here are those of step {about.get("step")}; the last epoch ended at step {summary.get("steps")}.'
    )
  if _is_rounded(about):
    notes.append(
      f'The run computed in {about["config"]["dtype"]}, and this network computes in float32: its accuracy can be a '
      'little higher or lower; `--mode=export` prints it.'
    )
  return '\n\n'.join(['## Results', _table(['', 'top-1', 'top-5', 'epoch'], body), ' '.join(notes)])


def _sizes(graph, file_bytes):
  counts = sizes.by_bits(graph)
  total, packed = sum(counts.values()), {bits: -(-count * bits // 8) for bits, count in counts.items()}
  body = [[str(bits), f'{count:,}', f'{packed[bits]:,}', f'{4 * count:,}'] for bits, count in counts.items()]
  takes_pixels = any(node.op == 'pixels' for node in graph.nodes)
  ones = ', a further channel of the first layer for mean and std of the images,' if takes_pixels else ''
  body.append(['all', f'{total:,}', f'{sum(packed.values()):,}', f'{4 * total:,}'])
  return '\n\n'.join(
    [
      '## Size',
      _table(['bits', 'weights', 'bytes', 'bytes as float32'], body),
      f'`model.safetensors` has {file_bytes:,} bytes, with scales, biases{ones} and its header.',
    ]
  )


def _settings(about):
  if 'config' not in about:
    return ''
  default = config_lib.flat(public_config.shorten_paths(config_lib.default().to_dict()))
  as_lists = lambda value: [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
  lines = [
    f'{name} = {printable(repr(value))}'
    for name, value in sorted(config_lib.flat(about['config']).items())
    if name not in default or as_lists(default[name]) != as_lists(value)
  ]
  return '\n'.join(
    [
      '## Settings',
      '',
      'Fields of the configuration that differ from the defaults; `--mode=config` says what each means:',
      '',
      *('```', *lines, '```'),
    ]
  )


def _use(about):
  shape = ', '.join(map(str, about['image_shape']))
  return f"""\
## Use

With `cmtkd_jax` installed, and this folder in `DIR`:

```
python -m cmtkd_jax.main --mode=predict --workdir=DIR photo.png
```

```python
from cmtkd_jax import export

network, about = export.open_network('DIR')
logits = network(images)  # uint8 [B, {shape}], resized as preprocessor_config.json says
about['classes'][int(logits[0].argmax())]
```

The pixels go in as they are: mean and standard deviation are in the weights of the first layer."""


def _table(header, body):
  cell = lambda value: printable(value).replace('|', '\\|')
  return '\n'.join('| ' + ' | '.join(map(cell, row)) + ' |' for row in (header, ['---'] * len(header), *body))


def _code(value):
  return f'`{printable(str(value)).replace("`", "")}`' if value not in (None, '') else ''


def _bits(bits, exceptions=''):
  if bits is None:
    return None
  return ('float32' if bits == FULL_PRECISION else f'{bits} bit{"s" if bits != 1 else ""}') + exceptions


def _bits_text(config):
  weights, activations = config.get('student.weight_bits'), config.get('student.activation_bits')
  if weights is None or activations is None:
    return ''
  return f'weights of {_bits(weights)}, activations of {_bits(activations, _exceptions(config))}'


def _exceptions(config, shortcuts=True):
  """Completes the bits of the network with the layers that have others; '' for none."""
  found = ['shortcuts in full precision'] if shortcuts and config.get('bits.shortcut') == 'full_precision' else []
  found += ['layers of `bits.rules`'] if config.get('bits.rules') else []
  return f', but for {" and ".join(found)}' if found else ''


def _quantizers(config, low):
  names = {role: config.get(f'quantizer.{role}') or config.get('quantizer.name') for role in low}
  if len(set(names.values())) == 1 and len(names) == 2:
    return _code(names['weights'])
  return ', '.join(f'{_code(name)} of {role}' for role, name in names.items() if name)
