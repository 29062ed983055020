"""A folder as the Hugging Face hub has them: weights, configuration, preprocessing, model card.

  model.safetensors         the arrays of the packed archive, with its names: codes in their own bits as uint8, the
                            others float32. 8 bytes with the length of a JSON header, the header, the arrays' bytes;
                            the package `safetensors` writes and reads it
  config.json               model_type 'cmtkd_jax'; architectures, quantization_config and id2label as the hub knows
                            them; format, version, image_shape, nodes and about as in the manifest of the packed
                            archive; files, {name: SHA-256}, and digest, the SHA-256 of all other entries
  preprocessor_config.json  what is done to an image: resized, cropped. The network takes raw pixels; image_mean and
                            image_std are in its first layer
  README.md                 the model card, see `model_card`; nothing reads it back

A folder is made for others, so paths in the configuration are cut to their last part.

Whatever a folder holds is checked before it is used, as in `packed`: digests, then the header with its sizes, then
`schema` and `graph_check`. A damaged or foreign folder gives one line and can run no code.
"""

import hashlib

import numpy as np
from etils import epath

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.export import model_card, operations, public_config, schema, strict_json
from cmtkd_jax.export.formats import packed
from cmtkd_jax.runtime import local_file, packages

CONFIG, WEIGHTS, PREPROCESSOR, CARD = 'config.json', 'model.safetensors', 'preprocessor_config.json', 'README.md'
FORMAT = 'cmtkd_jax hub folder'
_FIX = "export the network again in the format 'hub'"
_SCHEMA = schema.Record(
  {
    'model_type': schema.OneOf((model_card.LIBRARY,)),
    'format': schema.OneOf((FORMAT,)),
    'version': schema.Integer(1, 2**31),
    'image_shape': schema.IMAGE_SHAPE,
    'id2label': schema.Mapping(schema.Text()),
    'nodes': operations.NODES,
    'about': schema.Mapping(),
    'files': schema.Record({WEIGHTS: schema.Digest(), PREPROCESSOR: schema.Digest()}),
    'digest': schema.Digest(),
  },
  {'architectures': schema.Items(schema.Text(), 1, 1), 'quantization_config': schema.Mapping()},
)
_DTYPES = {'U8': np.dtype(np.uint8), 'F32': np.dtype('<f4')}


def is_folder(path):
  """Returns whether the directory `path` is meant as such a folder, whole or damaged, and not as that of a run."""
  path = epath.Path(path)
  if (path / WEIGHTS).exists() or (path / PREPROCESSOR).exists():
    return True
  try:
    return b'"model_type"' in local_file.read_bytes(path / CONFIG)
  except OSError:
    return False


def write(path, graph, about, summary):
  """Writes `graph` and `about`, a JSON-able dict, see `schema.ABOUT`, into the folder `path`.

  Args:
    path: of the folder; other files in it stay.
    graph: the `Graph`.
    about: what is to be known of it.
    summary: of the run, for the model card, see `model_card.text`.

  Raises:
    UserError: they do not fit the schema, or something else than files lies in the folder.
    OSError: it cannot be written.
  """
  safetensors = packages.load('safetensors.numpy', 'the folder for the hub')
  path = epath.Path(path)
  if 'config' in about:  # the only entry with paths; a class may well be named /m/01abc
    about = about | {'config': public_config.shorten_paths(about['config'])}
  try:
    arrays, head = packed.encode(graph, about)
    weights = safetensors.save(arrays, {'format': 'np'})
    config = config_lib.flat(about.get('config', {}))
    files = {WEIGHTS: weights, PREPROCESSOR: strict_json.dump(_preprocessor_of(about, config), indent=2).encode()}
    found = {
      'model_type': model_card.LIBRARY,
      **_known_to_the_hub(config, model_card.quantized(graph)),
      'id2label': {str(i): name for i, name in enumerate(about['classes'])},
      'format': FORMAT,
      'version': head['version'],
      'image_shape': head['image_shape'],
      'nodes': head['nodes'],
      'about': {name: value for name, value in about.items() if name not in ('classes', 'image_shape', 'resize')},
      'files': {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    found['digest'] = _digest(found)
    files[CARD] = model_card.text(graph, about, summary, len(weights)).encode()
    files[CONFIG] = strict_json.dump(found, indent=1).encode()  # last: it names the others
  except schema.InvalidError as e:
    raise UserError(f'{path} is not written: {e}') from None
  path.mkdir(parents=True, exist_ok=True)
  for name in files:
    local_file.refuse(path / name)
  for name, data in files.items():
    local_file.write_whole(path / name, data)


def read(path):
  """Returns (`Graph`, about) of a folder.

  Raises:
    UserError: a file is missing, damaged or of another program, or of a newer version.
  """
  path = epath.Path(path)
  found = _checked(path / CONFIG, _config)
  load = lambda name, parse: _checked(path / name, parse, found['files'][name])
  resize = load(PREPROCESSOR, lambda data: _resize(data, found['image_shape']))
  members = load(WEIGHTS, _arrays)

  def decode(_):
    own = {'classes': _classes(found['id2label']), 'image_shape': found['image_shape'], 'resize': resize}
    head = {name: found[name] for name in ('version', 'image_shape', 'nodes')}
    return packed.decode({'format': packed.FORMAT, **head, 'about': own | found['about']}, members)

  return _checked(path / CONFIG, decode)


def _checked(path, parse, digest=None):
  """Returns `parse` of what a file of the folder holds, if that has the `digest`."""
  try:
    data = local_file.read_bytes(path)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
      raise schema.InvalidError(f'it is not the file that {CONFIG} has the digest of')
    return parse(data)
  except FileNotFoundError:
    raise UserError(f'{path} does not exist; {_FIX}') from None
  except OSError as e:
    raise UserError(f'{path} cannot be read ({e.strerror or e}); {_FIX}') from None
  except _OtherError as e:
    raise UserError(f'{path} {e}') from None
  except schema.InvalidError as e:
    raise UserError(f'{path} is damaged ({e}); {_FIX}') from None


class _OtherError(ValueError):
  """The file is whole, and not for this program."""


def _config(data):
  found = strict_json.parse(data)
  kind = found.get('model_type') if isinstance(found, dict) else None
  if kind != model_card.LIBRARY:
    said = f'the model_type {schema.display_name(kind)}' if kind is not None else 'no model_type'
    raise _OtherError(
      f"has {said}, and not {model_card.LIBRARY!r}; name a folder that was exported in the format 'hub'"
    )
  if said := schema.newer(found, FORMAT, packed.VERSION):
    raise _OtherError(said)
  _SCHEMA.check(found, CONFIG)
  if _digest({name: value for name, value in found.items() if name != 'digest'}) != found['digest']:
    raise schema.InvalidError('its entries do not have the digest that it says')
  return found


def _digest(found):
  return hashlib.sha256(strict_json.dump(found).encode()).hexdigest()


def _classes(id2label):
  if list(id2label) != [str(i) for i in range(len(id2label))]:
    raise schema.InvalidError('id2label does not name the classes 0, 1, .. in their order')
  return list(id2label.values())


def _arrays(data):
  """Returns `{name: array}`; what `safetensors` lets through has the sizes that its header says."""
  safetensors = packages.load('safetensors', WEIGHTS)
  try:
    entries = safetensors.deserialize(data)
  except safetensors.SafetensorError as e:
    raise schema.InvalidError(one_line(e, 120)) from None
  found = {}
  for name, entry in entries:
    if entry['dtype'] not in _DTYPES:
      raise schema.InvalidError(f'{schema.display_name(name)} is {schema.display_name(entry["dtype"])}, not U8 or F32')
    found[name] = np.frombuffer(bytes(entry['data']), _DTYPES[entry['dtype']]).reshape(entry['shape'])
  return found


def _known_to_the_hub(config, quantized):
  """What pages of the hub show of a `config.json`, as far as the flat configuration says it."""
  if not config:
    return {}
  found = {'architectures': [config['model.name']]}
  if not quantized:
    return found
  name = lambda role: (config[f'quantizer.{role}'] or config['quantizer.name']) if role in quantized else None
  return found | {
    'quantization_config': {
      'quant_method': model_card.LIBRARY,
      'weight_bits': config['student.weight_bits'],
      'activation_bits': config['student.activation_bits'],
      'first_last_bits': model_card.first_last_bits(config),
      'weight_quantizer': name('weights'),
      'activation_quantizer': name('activations'),
    }
  }


def _preprocessor_of(about, config):
  return _preprocessor(about['image_shape'], about['resize'], config.get('data.mean'), config.get('data.std'))


def _preprocessor(image_shape, resize, mean, std):
  height, width, channels = image_shape
  found = {
    'do_convert_rgb': channels == 3,
    'do_resize': resize > 0,
    'size': {'shortest_edge': resize} if resize else {'height': height, 'width': width},
    'resample': 2,  # bilinear, as PIL numbers them
    'do_center_crop': resize > 0,
    'crop_size': {'height': height, 'width': width},
    'do_rescale': False,
    'do_normalize': False,
  }
  return found | {name: list(value) for name, value in (('image_mean', mean), ('image_std', std)) if value is not None}


def _resize(data, image_shape):
  """Returns the shorter side that a `preprocessor_config.json` resizes to, 0 for none."""
  found = strict_json.parse(data)
  size = found.get('size') if isinstance(found, dict) else None
  resize = size.get('shortest_edge', 0) if isinstance(size, dict) else None
  schema.Integer(0, schema.LONGEST_SIDE).check(resize, 'size.shortest_edge')
  numbers = [found.get(name) for name in ('image_mean', 'image_std')]
  if any(not isinstance(value, (list, type(None))) for value in numbers) or (
    found != _preprocessor(image_shape, resize, *numbers)
  ):
    raise schema.InvalidError(f'it is not what the format writes for images of {image_shape}')
  return resize
