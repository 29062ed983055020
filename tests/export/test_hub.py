"""The folder for the Hugging Face hub, its model card, and the programs that read exported files."""

import json
import pathlib
import re
import shlex
import struct
import sys

import numpy as np
import pytest
from safetensors import numpy as safetensors

from cmtkd_jax import config as config_lib
from cmtkd_jax import export
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter, model_card, predict, public_config
from cmtkd_jax.export.formats import hub, packed
from cmtkd_jax.export.graph import Graph, Node
from cmtkd_jax.runs import run_files
from cmtkd_jax.runtime import local_file
from tests.export.test_files import INSTALLED, graph, images, line

README = pathlib.Path(hub.__file__).parents[1] / 'README.md'
WHICH = {'last': {'top1': 91.25, 'top5': 99.5}, 'best': {'top1': 92.125, 'top5': 99.0, 'epoch': 7.0}}
SUMMARY = {'steps': 800, 'epochs': 8.0, 'commit': 'abc1234', 'device': '2 x cpu', 'results': {}}
CLASSES = ['cat', 'dog | cow', 'naïve "é"', '---', 'x: y']


def exported(**changes):
  """An `Exported` as of a run."""
  config = config_lib.default()
  config.data.name, config.data.dir, config.model.name = 'folder:/home/me/secret/flowers', '~/data/tfds', 'resnet8'
  config.data.mean, config.data.std, config.student.weight_bits = (0.5,) * 3, (0.25,) * 3, 2
  config.quantizer.activations = 'lsq'
  found = export.from_graph(graph())
  about = found.about | {
    'classes': CLASSES,
    'resize': 10,
    'network': 'student',
    'step': 800,
    'metrics': {'test/student': WHICH, 'test/combined_teacher': {'last': {'top1': 1.5}, 'best': {'top1': 2.5}}},
    'config': json.loads(config_lib.to_json(config)),
    'versions': {'jax': '0.10.2'},
  }
  return found._replace(about=about | changes, summary=SUMMARY)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(folder, `Exported`)."""
  found = exported()
  return export.write(found, tmp_path_factory.mktemp('export'), ['hub'])['hub'], found


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of the folder, to be damaged."""
  for path in whole[0].iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


def test_folder_comes_back_as_the_packed_archive(whole, tmp_path):
  """Arrays, operations, codes and logits, bit for bit."""
  folder, found = whole
  assert sorted(path.name for path in folder.iterdir()) == sorted((hub.CONFIG, hub.WEIGHTS, hub.PREPROCESSOR, hub.CARD))
  packed.write(tmp_path / 'student.npz', found.graph, found.about)
  (ours, about), (theirs, said) = hub.read(folder), packed.read(tmp_path / 'student.npz')
  assert about == said | {'config': about['config']} and about['classes'] == CLASSES and about['resize'] == 10
  assert ours.image_shape == theirs.image_shape and len(ours.nodes) == len(theirs.nodes)
  for node, other in zip(ours.nodes, theirs.nodes):
    assert (node.op, node.inputs, node.output, dict(node.attributes)) == (
      *(other.op, other.inputs, other.output),
      dict(other.attributes),
    )
    assert node.arrays.keys() == other.arrays.keys()
    for name, array in node.arrays.items():
      assert (array.dtype, array.shape) == (other.arrays[name].dtype, other.arrays[name].shape)
      assert array.tobytes() == other.arrays[name].tobytes()
  network = export.open_network(folder)[0]
  logits, codes = network.with_codes(images())
  expected, expected_codes = export.open_network(tmp_path / 'student.npz')[0].with_codes(images())
  assert np.asarray(logits).tobytes() == np.asarray(expected).tobytes() and codes.keys() == expected_codes.keys()
  assert all(np.array_equal(codes[name], expected_codes[name]) for name in codes) and len(codes) == 2
  np.testing.assert_array_equal(network(images()), logits)


def test_files_by_hand(whole):
  """The layout of .safetensors, read without the package, and the fields that the hub knows."""
  folder, found = whole
  data = (folder / hub.WEIGHTS).read_bytes()
  (length,) = struct.unpack('<Q', data[:8])
  header = json.loads(data[8 : 8 + length])
  assert header.pop('__metadata__') == {'format': 'np'}
  begin, end = header['s1/codes']['data_offsets']
  codes = found.graph.nodes[4].arrays['codes']
  assert header['s1/codes'] == {'dtype': 'U8', 'shape': [36], 'data_offsets': [begin, end]}  # 144 codes of 2 bits
  every_bit = np.unpackbits(np.frombuffer(data[8 + length :][begin:end], np.uint8), bitorder='little').reshape(-1, 2)
  np.testing.assert_array_equal((every_bit @ [1, 2]).reshape(codes.shape), codes)
  assert len(data) == 8 + length + max(entry['data_offsets'][1] for entry in header.values())
  config = json.loads((folder / hub.CONFIG).read_text())
  assert config['model_type'] == 'cmtkd_jax' and config['architectures'] == ['resnet8']
  assert config['id2label'] == {str(i): name for i, name in enumerate(CLASSES)}
  assert config['quantization_config'] == {
    'quant_method': 'cmtkd_jax',
    'weight_bits': 2,
    'activation_bits': 2,
    'first_last_bits': 32,
    'weight_quantizer': 'hwgq',
    'activation_quantizer': 'lsq',
  }
  preprocessor = json.loads((folder / hub.PREPROCESSOR).read_text())
  assert preprocessor['size'] == {'shortest_edge': 10} and preprocessor['crop_size'] == {'height': 8, 'width': 8}
  assert (preprocessor['image_mean'], preprocessor['image_std']) == ([0.5] * 3, [0.25] * 3)
  assert preprocessor['do_resize'] and preprocessor['do_center_crop'] and not preprocessor['do_normalize']


def front_matter(text):
  """The YAML of a card, by `yaml` where it is installed."""
  yaml = pytest.importorskip('yaml')
  return yaml.safe_load(text.split('---\n')[1])


def test_card_has_the_figures_of_the_run(whole):
  text = (whole[0] / hub.CARD).read_text()
  for row in (
    '| test, last epoch | 91.25 % | 99.50 % | 8.0 |',
    '| test, best epoch | 92.12 % | 99.00 % | 7.0 |',
    '| 2 | 144 | 36 | 576 |',
    '| 4 | 320 | 160 | 1,280 |',
    '| 32 | 108 | 432 | 432 |',
    '| all | 572 | 628 | 2,288 |',
    f'has {(whole[0] / hub.WEIGHTS).stat().length:,} bytes',
    '| commit of cmtkd_jax | `abc1234` |',
    '| quantizer | `hwgq` of weights, `lsq` of activations |',
    '| device | 2 x cpu |',
    '| data | `folder:flowers` |',
    "quantizer.activations = 'lsq'",
  ):
    assert row in text, row
  assert 'license' not in text and 'combined_teacher' not in text
  everything = text + (whole[0] / hub.CONFIG).read_text()
  assert not any(word in everything for word in ('/home', 'secret', '~/'))  # of the disk that it was made on


def test_front_matter_is_what_the_hub_reads(whole):
  found = front_matter((whole[0] / hub.CARD).read_text())
  assert found['library_name'] == 'cmtkd_jax' and found['pipeline_tag'] == 'image-classification'
  assert 'quantization' in found['tags'] and 'license' not in found and found['metrics'] == ['accuracy']
  (index,) = found['model-index']
  (result,) = index['results']
  assert result['task'] == {'type': 'image-classification'}
  assert result['dataset'] == {'name': 'folder:flowers', 'type': 'folder:flowers', 'split': 'test'}
  assert [(metric['type'], metric['name'], metric['value']) for metric in result['metrics']] == [
    ('accuracy', 'top-1 accuracy', 91.25),
    ('accuracy', 'top-5 accuracy', 99.5),
  ]


def test_what_is_not_known_is_left_out(tmp_path):
  """A graph of no run, a run that was stopped, and another step than the last."""
  bare = export.write(export.from_graph(graph()), tmp_path, ['hub'])['hub']
  text = (bare / hub.CARD).read_text()
  assert text.count('\n## ') == 2 and 'metrics:' not in text and 'None' not in text and '# Exported network' in text
  assert 'quantization_config' not in json.loads((bare / hub.CONFIG).read_text())
  np.testing.assert_array_equal(export.open_network(bare)[0](images()), interpreter.Network(graph())(images()))
  stopped = exported()._replace(summary={})
  text = model_card.text(stopped.graph, public_config.shorten_paths(stopped.about), {}, 1)
  assert 'The run was not finished' in text and '| test, last epoch | 91.25 % | 99.50 % |  |' in text
  assert 'model-index' not in text and 'commit' not in text and 'None' not in text
  earlier = exported(step=400)
  text = model_card.text(earlier.graph, public_config.shorten_paths(earlier.about), SUMMARY, 1)
  assert 'The weights here are those of step 400; the last epoch ended at step 800.' in text
  assert 'model-index' not in text


def with_fields(about, **fields):
  """`about` with other values of its configuration; '__' for the dot."""
  config = config_lib.from_json(json.dumps(about['config']))
  config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
  return about | {'config': json.loads(config_lib.to_json(config))}


def card(made, **fields):
  return model_card.text(made.graph, public_config.shorten_paths(with_fields(made.about, **fields)), SUMMARY, 1)


def full_precision(quantize=False):
  """A graph whose weights are float32, and its activations too unless they are to be quantized."""
  rng = np.random.default_rng(0)
  dense = Node('dense', ('a0',), 's1', {'bits': 32}, {'kernel': np.float32(rng.normal(size=(4 * 4 * 4, 5)))})
  nodes = graph().nodes[:3]
  if quantize:
    nodes += (Node('quantize', ('a0',), 'q0', {'levels': 4}), Node('lookup', ('q0',), 'a1', arrays={'values': VALUES}))
    dense = Node('dense', ('a1',), 's1', dense.attributes, dense.arrays)
  affine = Node('affine', ('s1',), 'logits', arrays={'bias': np.zeros(5, np.float32), 'scale': np.ones(5, np.float32)})
  return Graph((*nodes, dense, affine), (8, 8, 3))


VALUES = np.float32([0, 1, 2, 3])
WIDTHS = {'student__weight_bits': 32, 'student__activation_bits': 32, 'bits__first_last': 8}


def test_a_network_in_full_precision_is_not_called_quantized(tmp_path):
  made = exported()._replace(graph=full_precision())
  made = made._replace(about=with_fields(made.about, **WIDTHS))
  folder = export.write(made, tmp_path, ['hub'])['hub']
  text = (folder / hub.CARD).read_text()
  assert 'An image classifier in full precision, exported by' in text and 'holds the weights as float32;' in text
  assert '| weights | float32 |' in text and '| first and last layer | float32 |' in text
  assert not any(word in text for word in ('few bits', 'codes', '| quantizer |', '- quantization', '- low-bit'))
  assert 'quantization_config' not in json.loads((folder / hub.CONFIG).read_text())
  assert export.open_network(folder)[0](images()).shape == (3, 5)

  made = made._replace(graph=full_precision(quantize=True), about=with_fields(made.about, student__activation_bits=2))
  text = card(made)
  assert 'An image classifier whose activations have few bits' in text and 'as float32;' in text
  assert '| quantizer | `lsq` of activations |' in text and '- low-bit' in text
  found = json.loads((export.write(made, tmp_path, ['hub'])['hub'] / hub.CONFIG).read_text())['quantization_config']
  assert (found['weight_quantizer'], found['activation_quantizer'], found['first_last_bits']) == (None, 'lsq', 32)


def test_weights_in_codes_and_in_full_precision(whole):
  text = (whole[0] / hub.CARD).read_text()
  assert 'whose weights and activations have few bits' in text
  assert 'holds the weights as packed codes and, in full precision, as float32;' in text
  only = exported()._replace(graph=Graph(graph().nodes[3:], (4, 4, 4)))  # the layers of 2 and 4 bits
  assert 'holds the weights as packed codes;' in card(only)


def test_a_card_of_random_images_claims_nothing():
  text = card(exported(), data__name='generated:8x8x3:5:16')
  assert 'The images are random (generated data): these accuracies mean nothing.' in text
  assert 'model-index' not in text and 'metrics:' not in text and '| 91.25 % |' in text
  assert 'random' not in card(exported())


def test_a_card_names_layers_of_other_bits():
  text = card(exported(), bits__rules=(('student/stage1/.*', 4, 4),))
  for row in ('weights | 2 bits', 'activations | 2 bits', 'first and last layer | float32'):
    assert f'| {row}, but for layers of `bits.rules` |' in text
  assert '# `resnet8`, weights of 2 bits, activations of 2 bits, but for layers of `bits.rules`, trained on' in text
  assert 'bits.rules`' not in card(exported())
  text = card(exported(), bits__shortcut='full_precision')
  assert '| weights | 2 bits, but for shortcuts in full precision |' in text
  assert '| first and last layer | float32 |' in text
  text = card(exported(), bits__shortcut='full_precision', bits__rules=(('student/stage1/.*', 4, 4),))
  assert '| weights | 2 bits, but for shortcuts in full precision and layers of `bits.rules` |' in text
  assert '| activations | 2 bits, but for layers of `bits.rules` |' in text


def test_a_card_claims_no_figures_of_rounded_training():
  """The file computes in float32; the run was evaluated in bfloat16."""
  text = card(exported(), dtype='bfloat16')
  assert 'The run computed in bfloat16, and this network computes in float32' in text
  assert 'model-index' not in text and 'metrics:' not in text and '| 91.25 % |' in text
  assert 'bfloat16' not in card(exported())


def test_class_names_that_look_like_paths_stay(tmp_path):
  names = ['/m/01abc', '/', '~/x', 'a=/b', 'gs://bucket/c']
  folder = export.write(exported(classes=names), tmp_path / 'a', ['hub'])['hub']
  assert export.open_network(folder)[1]['classes'] == names
  found = export.from_graph(graph())  # no configuration
  folder = export.write(found._replace(about=found.about | {'classes': names}), tmp_path / 'b', ['hub'])['hub']
  assert export.open_network(folder)[1]['classes'] == names


def test_public_by_hand():
  for private, shown in (
    ('folder:/home/me/flowers', 'folder:flowers'),
    ('/data/tfds/', 'tfds'),
    ('~/runs/a', 'a'),
    ('gs://bucket/me/a', 'a'),
    ('npy:~/x', 'npy:x'),
    ('~me/runs/a', 'a'),
    ('student=~/runs/a', 'student=a'),
    ('student=/home/me/secret/fp,teacher1_4bit=/home/me/secret/t4', 'student=fp,teacher1_4bit=t4'),
    ('generated:8x8x1:4:16', 'generated:8x8x1:4:16'),
    ('student/stage2.*', 'student/stage2.*'),
    ('runs/a', 'runs/a'),
    ('', ''),
  ):
    assert public_config.shorten_paths({'a': (private, 1)}) == {'a': [shown, 1]}


@pytest.mark.parametrize(
  'field, private, shown',
  [
    ('data.name', 'folder:../clients/acme/photos', 'folder:photos'),
    ('data.name', 'npy:data/secret/x/', 'npy:x'),
    ('data.name', r'folder:C:\Users\me\x', 'folder:x'),
    ('data.name', 'imagenet_resized/32x32:0.1.0', 'imagenet_resized/32x32:0.1.0'),  # of TensorFlow Datasets
    ('data.name', 'generated:8x8x1:4:16', 'generated:8x8x1:4:16'),
    ('data.name', 'digits', 'digits'),
    ('data.name', 'csv:/private/acme/x.csv', 'csv:x.csv'),
    ('data.name', 'cifar100:3.0.2', 'cifar100:3.0.2'),
    ('data.dir', '../clients/acme', 'acme'),
    ('data.dir', r'C:\Users\me\x', 'x'),
    ('data.dir', '/home/me/a,b=c:d/e', 'e'),
    ('data.dir', '', ''),
    ('init_from', 'clients/acme/a', 'a'),
    ('init_from', 'clients/lr=0.1/a.npz', 'a.npz'),
    ('init_from', r'student=clients/acme/a,teacher1_4bit=..\acme\b', 'student=a,teacher1_4bit=b'),
    ('init_from', '{teacher}', '{teacher}'),
    ('prerequisites.teacher.init_from', 'clients/acme/a', 'a'),
    ('prerequisites.teacher.data.dir', 'clients/acme', 'acme'),
    ('init_from_ignore', 'student/head/.*', 'student/head/.*'),
    ('optimizer.name', 'sgd', 'sgd'),
  ],
)
def test_paths_by_hand(field, private, shown):
  nested, flat = private, {field: shown}
  for name in reversed(field.split('.')):
    nested = {name: nested}
  assert config_lib.flat(public_config.shorten_paths(nested)) == flat


def test_paths_of_teachers_by_hand():
  private = {'teacher_workdirs': ('clients/acme/t4', r'C:\me\t8', '{teacher}')}
  assert public_config.shorten_paths(private) == {'teacher_workdirs': ['t4', 't8', '{teacher}']}


def changed(path, change):
  """Writes a `config.json` anew, with the digest of its entries."""
  found = json.loads(path.read_text())
  change(found)
  found.pop('digest')
  path.write_text(json.dumps(found | {'digest': hub._digest(found)}))


DAMAGE = {  # (file, its bytes -> others, words)
  'truncated weights': (hub.WEIGHTS, lambda data: data[: len(data) // 2], 'digest'),
  'a flipped bit': (hub.WEIGHTS, lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], 'digest'),
  'empty configuration': (hub.CONFIG, lambda data: b'', 'its JSON cannot be read'),
  'a name twice': (hub.CONFIG, lambda data: b'{"a": 1, "a": 2}', "has the name 'a' twice"),
  'nested without end': (hub.CONFIG, lambda data: b'[' * 10**5, 'nested too deeply'),
  'a stride': (hub.CONFIG, lambda data: data.replace(b'"stride": 2', b'"stride": 1'), 'the digest that it says'),
  'another shortest edge': (hub.PREPROCESSOR, lambda data: data.replace(b'10', b'99'), 'digest'),
}


@pytest.mark.parametrize('file, change, words', DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders(copy, file, change, words):
  path = copy / file
  path.write_bytes(change(path.read_bytes()))
  text = line(export.open_network, copy)
  assert text.startswith(f'{path} is damaged (') and words in text and text.endswith("in the format 'hub'")


def test_files_that_are_missing_or_no_files(copy, in_time):
  import os

  (copy / hub.CARD).unlink()  # nobody needs it
  export.open_network(copy)
  for name in (hub.WEIGHTS, hub.PREPROCESSOR, hub.CONFIG):
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    assert line(export.open_network, copy).startswith(f'{copy / name} does not exist; export the network again')
    os.mkfifo(copy / name)
    assert 'it is a pipe' in line(export.open_network, copy)
    assert f'{copy / name} is a pipe' in line(hub.write, copy, *exported())
    (copy / name).unlink()
    (copy / name).write_bytes(data)


def forged(change):
  """A change of `config.json` and of the weights whose digests are right."""

  def apply(folder):
    arrays = safetensors.load_file(folder / hub.WEIGHTS)
    found = json.loads((folder / hub.CONFIG).read_text())
    change(found, arrays)
    data = arrays if isinstance(arrays.get('raw'), bytes) else safetensors.save(arrays)
    data = arrays['raw'] if data is arrays else data
    (folder / hub.WEIGHTS).write_bytes(data)
    found['files'][hub.WEIGHTS] = hub.hashlib.sha256(data).hexdigest()
    (folder / hub.CONFIG).write_text(json.dumps(found))
    changed(folder / hub.CONFIG, lambda found: None)

  return apply


def raw(header, data=b''):
  text = json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def put(name, value):
  return forged(lambda found, arrays: arrays.__setitem__(name, value))


def entry(output, **changes):
  def change(found, arrays):
    next(node for node in found['nodes'] if node['output'] == output)['attributes'].update(changes)

  return forged(change)


HUGE = {'a': {'dtype': 'U8', 'shape': [2**40], 'data_offsets': [0, 2**40]}}
FORGED = {
  'no header': (put('raw', b'hello'), hub.WEIGHTS, ''),
  'a huge header': (put('raw', struct.pack('<Q', 2**60) + b'{}'), hub.WEIGHTS, ''),
  'a huge array': (put('raw', raw(HUGE)), hub.WEIGHTS, ''),
  'doubles': (put('a0/bias', np.zeros(4)), hub.WEIGHTS, "'a0/bias' is 'F64', not U8 or F32"),
  'a member too many': (put('more', np.zeros(4, np.float32)), hub.CONFIG, 'no operation has its member more'),
  'a scale too short': (put('a1/scale', np.ones(3, np.float32)), hub.CONFIG, 'a1/scale has the shape [3]'),
  'a bias that is NaN': (put('a1/bias', np.full(4, np.nan, np.float32)), hub.CONFIG, 'a1/bias'),
  'codes too short': (put('s1/codes', np.zeros(35, np.uint8)), hub.CONFIG, 's1/codes'),
  'a huge shape': (entry('s1', shape=[10**9] * 4), hub.CONFIG, 's1.shape[0] is 1000000000'),
  '9 bits': (entry('s1', bits=9), hub.CONFIG, 's1.bits is 9'),
  'a class too few': (forged(lambda found, _: found['id2label'].pop('4')), hub.CONFIG, 'has 4 names'),
  'classes out of order': (
    forged(lambda found, _: found.update(id2label={'1': 'a', '0': 'b'})),
    hub.CONFIG,
    'id2label does not name the classes 0, 1, ..',
  ),
  'a class that cannot be shown': (
    forged(lambda found, _: found['id2label'].update({'4': 'e\x1b[2J'})),
    hub.CONFIG,
    'control character',
  ),
  'an unknown entry': (forged(lambda found, _: found.update(auto_map='x.py')), hub.CONFIG, "unknown field 'auto_map'"),
  'classes twice': (forged(lambda found, _: found['about'].update(more=1)), hub.CONFIG, "unknown field 'more'"),
}


@pytest.mark.parametrize('change, file, words', FORGED.values(), ids=FORGED)
def test_forged_folders(copy, change, file, words):
  """Their digests are right, so that only the checks of sizes and of the schema can refuse them."""
  change(copy)
  text = line(export.open_network, copy)
  assert text.startswith(f'{copy / file} is damaged (') and words in text and text.endswith("in the format 'hub'")


def test_folders_of_other_programs_and_of_newer_versions(copy, tmp_path):
  config = copy / hub.CONFIG
  changed(config, lambda found: found.update(version=packed.VERSION + 1))
  assert 'update cmtkd_jax' in line(export.open_network, copy)
  config.write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
  said = f"{config} has the model_type 'vit', and not 'cmtkd_jax'; name a folder that was exported in the format 'hub'"
  assert line(export.open_network, copy) == said
  config.write_text('[]')
  assert f'{config} has no model_type' in line(export.open_network, copy)
  (tmp_path / 'run').mkdir()
  assert 'there is no config.json' in line(export.open_network, tmp_path / 'run')


def test_a_folder_is_no_run(whole):
  with pytest.raises(
    UserError,
    match='workdir: .*config.json: this is a folder exported for the hub, not a run; open_network',
  ):
    run_files.read_config(whole[0])


def test_formats_are_named(tmp_path):
  with pytest.raises(UserError, match="no format 'hib'; there are packed.*onnx_qonnx, hub"):
    export.write(exported(), tmp_path, ['hib'])
  assert line(export.write, exported(), tmp_path, 'hub') == "formats='hub' is one name; give a list of names: ['hub']"
  (tmp_path / 'hub').write_text('')
  assert 'cannot be a folder' in line(export.write, exported(), tmp_path, ['hub'])
  assert 'is not written: about.classes has 1 names' in line(
    export.write, exported(classes=['a']), tmp_path / 'new', ['hub']
  )
  assert not (tmp_path / 'new' / 'hub').exists()
  assert local_file.not_a_file(tmp_path / 'hub') == ''


@pytest.mark.parametrize('name, package', [('hub', 'safetensors'), ('stablehlo', 'flatbuffers')])
def test_a_package_that_is_missing_is_named(name, package, whole, tmp_path, monkeypatch):
  read = {**export.FORMATS, **export.FOLDERS}[name].read
  path = whole[0] if name == 'hub' else export.write(whole[1], tmp_path, [name])[name]
  for module in (package, f'{package}.numpy'):
    monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError, match=f'needs the package {package} .*; pip install {package}$'):
    export.write(whole[1], tmp_path / 'other', [name])
  with pytest.raises(UserError, match=f'{path.name}.* needs the package {package}' if name != 'hub' else package):
    read(path)


def test_images_are_resized_as_the_folder_says(whole, tmp_path):
  from PIL import Image

  Image.fromarray(images()[0].repeat(3, 0).repeat(2, 1)).save(tmp_path / 'large.png')
  (found,) = predict.predict(whole[0], [str(tmp_path / 'large.png')])
  assert not found.error and {name for name, _ in found.classes} == set(CLASSES)


# Other programs.


def commands():
  """{format: code of the `python -c` command that the documentation gives for it}."""
  section = README.read_text().split('\n## Who reads the files\n')[1].split('\n## ')[0]
  found = re.findall(r'^# `?(\w+)`?: .*\n(python .*)$', section, re.MULTILINE)
  return {name: shlex.split(command)[2] for name, command in found}


PACKAGES = {'onnx_qdq': ['onnxruntime'], 'onnx_qlinear': ['onnxruntime'], 'onnx_qonnx': ['onnx', 'qonnx']}


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
  """A folder with every format that is installed, of one network."""
  folder = tmp_path_factory.mktemp('everything')
  export.write(export.from_graph(graph()), folder, [*INSTALLED, 'hub'])
  if 'onnx_qdq' in INSTALLED:
    export.write(export.from_graph(graph()), folder, ['onnx_qlinear'], images(8))
  return folder


def test_every_format_has_a_command():
  assert commands().keys() == (export.FORMATS | export.FOLDERS).keys() | {'open_network'}


@pytest.mark.filterwarnings('ignore')  # of the packages
@pytest.mark.parametrize('name', [*export.FORMATS, *export.FOLDERS, 'open_network'])
def test_commands_of_the_documentation_run(everything, name, monkeypatch, capsys):
  """With the shape of the network that is there; each prints what the text says."""
  for package in PACKAGES.get(name, []):
    pytest.importorskip(package)
  monkeypatch.chdir(everything)
  code = commands()[name]
  assert ('1, 8, 8, 1' in code) == (name not in ('packed', 'hub'))
  exec(code.replace('1, 8, 8, 1', '1, 8, 8, 3'), {})
  out = capsys.readouterr().out
  if name in ('packed', 'hub'):
    assert 's1/codes' in out and 'uint8' in out
  else:
    numbers = np.array(re.findall(r'-?\d+\.\d*(?:e[-+]\d+)?', out), np.float32)
    expected = np.asarray(interpreter.Network(graph())(np.zeros((1, 8, 8, 3), np.uint8)))[0]
    np.testing.assert_allclose(numbers, expected, rtol=1e-4, atol=1e-4 if name != 'onnx_qlinear' else 0.5)
