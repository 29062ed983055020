"""Exported files that were damaged, forged or moved, and images that no network takes: one line each."""

import hashlib
import json

import jax
import numpy as np
import pytest

from cmtkd_jax import export
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import interpreter, manifest, predict
from cmtkd_jax.export.formats import packed
from cmtkd_jax.export.graph import Graph, Node

SIZE, CHANNELS, CLASSES = 8, 3, 5
INSTALLED = [name for name, found in export.FORMATS.items() if not found.missing() and name != 'onnx_qlinear']
READ = [name for name in INSTALLED if export.FORMATS[name].read]


def graph():
  """A convolution in full precision, one of 2 bits, and a dense layer of 4 bits."""
  rng = np.random.default_rng(0)
  codes = lambda bits, *shape: rng.integers(0, 2**bits, shape).astype(np.uint8)
  affine = lambda name, output, scale, out: Node(
    'affine',
    (name,),
    output,
    arrays={'bias': np.float32(rng.uniform(-1, 1, out)), 'scale': np.float32(scale * rng.uniform(0.5, 1, out))},
  )
  grid = lambda bits: {'bits': bits, 'factor': 1, 'shift': 2 ** (bits - 1)}
  return Graph(
    (
      Node('image', ('images',), 'input', arrays={'mean': np.float32([0.5] * 3), 'std': np.float32([0.25] * 3)}),
      Node(
        'convolution',
        ('input',),
        's0',
        {'stride': 2, 'padding': 1, 'bits': 32},
        {'kernel': np.float32(rng.integers(-8, 9, (3, 3, CHANNELS, 4)) / 8)},
      ),
      affine('s0', 'a0', 1, 4),
      Node('quantize', ('a0',), 'q0', {'levels': 4}),
      Node('convolution', ('q0',), 's1', {'stride': 1, 'padding': 1, **grid(2)}, {'codes': codes(2, 3, 3, 4, 4)}),
      affine('s1', 'a1', 0.5, 4),
      Node('quantize', ('a1',), 'q1', {'levels': 4}),
      Node('dense', ('q1',), 's2', grid(4), {'codes': codes(4, 4 * 4 * 4, CLASSES)}),
      affine('s2', 'logits', 0.1, CLASSES),
    ),
    (SIZE, SIZE, CHANNELS),
  )


def images(count=3):
  return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, CHANNELS), np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """All formats of the network."""
  made = tmp_path_factory.mktemp('export')
  export.write(export.from_graph(graph()), made, INSTALLED)
  return made


@pytest.fixture
def copy(folder, tmp_path):
  """The same files, to be damaged; returns the path of a format."""
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return lambda name: tmp_path / export.FORMATS[name].file


def line(function, *arguments):
  """Returns the one line with which a call is refused."""
  with pytest.raises(UserError) as error:
    function(*arguments)
  assert str(error.value).isprintable()
  return str(error.value)


def digest_again(path):
  """Makes the manifest name the file as it is now."""
  beside = path.parent / manifest.FILE
  found = json.loads(beside.read_text())
  found['files'][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
  beside.write_text(json.dumps(found))


# --- Images.


@pytest.mark.parametrize(
  'make, hint',
  [
    (lambda x: (x / 255).astype(np.float32), 'float32 [3, 8, 8, 3]; pass the raw uint8 pixels 0..255'),
    (lambda x: x.astype(np.int64), 'int64 [3, 8, 8, 3]; if they are pixels 0..255, convert them with images.astype('),
    (lambda x: x[0], 'uint8 [8, 8, 3]; this is a single image: add a batch axis with images[None]'),
    (lambda x: x.transpose(0, 3, 1, 2), 'uint8 [3, 3, 8, 8]; the channels come last: images.transpose(0, 2, 3, 1)'),
    (lambda x: x[0].transpose(2, 0, 1), 'uint8 [3, 8, 8]; this is a single image with the channels first'),
    (lambda x: x[:, ::2, ::2], 'uint8 [3, 4, 4, 3]; resize or crop them to 8x8'),
    (lambda x: x.repeat(2, 1).repeat(2, 2), 'uint8 [3, 16, 16, 3]; resize or crop them to 8x8'),
    (lambda x: x[..., :1], 'uint8 [3, 8, 8, 1]; repeat the gray channel with images.repeat(3, axis=-1)'),
    (lambda x: np.concatenate([x, x[..., :1]], -1), 'leave out the alpha channel with images[..., :3]'),
    (lambda x: x.reshape(3, -1), 'uint8 [3, 192]'),
    (lambda x: x[:0], 'uint8 [0, 8, 8, 3]; there is no image in them'),
    (lambda x: [[1], [2, 3]], 'not a list that NumPy makes no array of'),
  ],
)
@pytest.mark.parametrize('name', READ)
def test_images_that_the_network_does_not_take(folder, name, make, hint):
  network, _ = export.open_network(folder / export.FORMATS[name].file)
  text = line(network, make(images()))
  assert text.startswith('images: the network takes uint8 [batch, 8, 8, 3], not ') and hint in text


@pytest.mark.parametrize(
  'make, hint',
  [(lambda x: x / 255, 'pass the raw uint8 pixels'), (lambda x: x[0], 'images[None]'), (lambda x: x[:0], 'no image')],
)
def test_calibration_images_that_the_network_does_not_take(tmp_path, make, hint):
  text = line(export.write, export.from_graph(graph()), tmp_path / 'new', INSTALLED, make(images()))
  assert text.startswith('calibration: the network takes uint8 [batch, 8, 8, 3], not ') and hint in text
  assert not (tmp_path / 'new').exists()


def test_the_hint_repairs_the_images(folder):
  network, _ = export.open_network(folder / export.FORMATS['packed'].file)
  right = images()
  expected = np.asarray(network(right))
  np.testing.assert_array_equal(network(right.transpose(0, 3, 1, 2).transpose(0, 2, 3, 1)), expected)
  np.testing.assert_array_equal(network(right[0][None]), expected[:1])
  np.testing.assert_array_equal(jax.jit(network)(right), expected)  # tracers pass the check


# --- Damage.


@pytest.mark.parametrize('name', READ)
def test_a_flipped_bit_is_found_before_the_file_is_parsed(copy, name, monkeypatch):
  """A parser of StableHLO or ONNX may crash on it, or read another network."""

  def parsed(*unused):
    raise AssertionError('a damaged file is parsed')

  monkeypatch.setattr(jax.export, 'deserialize', parsed)
  if name.startswith('onnx'):
    monkeypatch.setattr(pytest.importorskip('onnxruntime'), 'InferenceSession', parsed)
  path = copy(name)
  data = path.read_bytes()
  for place in (0, len(data) // 3, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    assert f'{path} is damaged: it is not the file that {path.parent}/manifest.json' in line(export.open_network, path)


def test_stablehlo_needs_its_manifest_and_a_packed_archive_does_not(copy):
  path = copy('stablehlo')
  moved = path.with_name('other.stablehlo')
  moved.write_bytes(path.read_bytes())
  assert 'has no digest of it; keep the name that it was written with' in line(export.open_network, moved)
  (path.parent / manifest.FILE).unlink()
  assert 'manifest.json does not exist; copy it with the exported file, or export' in line(export.open_network, path)
  network, about = export.open_network(copy('packed'))
  np.testing.assert_array_equal(network(images()), interpreter.Network(graph())(images()))
  assert about['classes'] == list('01234')


def test_a_file_that_an_earlier_export_left_is_not_read(tmp_path):
  exported = export.from_graph(graph())
  step = lambda number: exported._replace(about=exported.about | {'step': number})
  export.write(step(1), tmp_path, READ)
  export.write(step(2), tmp_path, READ[:1])
  assert export.open_network(tmp_path / export.FORMATS[READ[0]].file)[1]['step'] == 2
  (tmp_path / 'renamed.npz').write_bytes((tmp_path / 'student.npz').read_bytes())
  left = ['renamed.npz', *(export.FORMATS[name].file for name in READ[1:] if name != 'stablehlo')]
  for name in left:
    path = tmp_path / name
    assert line(export.open_network, path) == (
      f'{path} is of another export than {tmp_path}/manifest.json, which does not name it; export it again, or move it '
      'into a folder of its own'
    )
    (tmp_path / 'own').mkdir(exist_ok=True)
    path.replace(tmp_path / 'own' / name)
    assert export.open_network(tmp_path / 'own' / name)[1]['step'] == (2 if name == 'renamed.npz' else 1)


def test_a_newer_version_of_the_manifest(copy):
  path = copy('packed')
  beside = path.parent / manifest.FILE
  beside.write_text(json.dumps(json.loads(beside.read_text()) | {'version': manifest.VERSION + 1}))
  assert line(export.open_network, path) == (
    f'{beside} has version 2 of the format, but this cmtkd_jax reads versions up to 1; update cmtkd_jax'
  )


def test_files_that_cannot_be_read_here_name_those_that_can(copy, tmp_path):
  path = tmp_path / export.FORMATS['onnx_qonnx'].file
  assert line(export.open_network, path) == (
    f'{path} is a QONNX file, which ONNX Runtime does not read; name student.npz or student.onnx of the same export'
  )
  text = line(export.open_network, tmp_path / 'a.bin')
  assert text.endswith(
    'that can be read; name one of these: student.npz, student.stablehlo, student.onnx, student.qlinear.onnx, hub'
  )
  assert line(export.open_network, tmp_path) == (
    f'{tmp_path} is a folder of exported files; name one of them, such as {tmp_path}/student.npz'
  )


@pytest.mark.parametrize(
  'content, words',
  [
    ('', 'its JSON cannot be read'),
    ('[' * 10**5, 'nested too deeply'),
    ('[]', 'is [], not an object'),
    ('{"format": "x"}', 'has no field version'),
    ('{"a": 1, "a": 2}', "has the name 'a' twice"),
    ('{"a": NaN}', 'not finite'),
    ('{"a": 1e999}', 'not finite'),
    ('{"a": %s}' % ('9' * 5000), 'its JSON cannot be read'),
    (b'\xff\xfe', 'its JSON cannot be read'),
  ],
)
def test_damaged_manifests(copy, content, words):
  path = copy('stablehlo')
  beside = path.parent / manifest.FILE
  beside.write_bytes(content if isinstance(content, bytes) else content.encode())
  text = line(export.open_network, path)
  assert text.startswith(f'{beside} is damaged or not a manifest') and words in text


def test_manifest_of_an_earlier_version(copy):
  """It was `about` alone, without digests."""
  path = copy('stablehlo')
  beside = path.parent / manifest.FILE
  beside.write_text(json.dumps(json.loads(beside.read_text())['about']))
  assert line(export.open_network, path) == (
    f'{beside} was written by an earlier version of cmtkd_jax and has no digests; export the network again'
  )


ABOUT = [  # (changes, words) of `about`
  ({'classes': ['a'] * 4}, 'about.classes has 4 names, but the network returns 5 logits'),
  ({'classes': [*'abcd', 'e\x1b[2J']}, 'which has the control character'),
  ({'classes': [*'abcd', 3]}, 'about.classes[4] is 3, not a text'),
  ({'classes': 'abcde'}, "about.classes is 'abcde', not a list"),
  ({'image_shape': [8, 8, 10**30]}, 'about.image_shape[2] is 1000'),
  ({'image_shape': [8, 8]}, 'about.image_shape is [8, 8], not a list of 3..3 values'),
  ({'resize': -1}, 'about.resize is -1, not an integer'),
  ({'resize': 10**9}, 'about.resize is 1000000000, not an integer'),
  ({'resize': True}, 'about.resize is True, not an integer'),
  ({'more': 1}, "about has the unknown field 'more'"),
]


@pytest.mark.parametrize('changes, words', ABOUT)
@pytest.mark.parametrize('name', READ)
def test_what_a_file_says_of_its_network_is_checked(copy, name, changes, words):
  """In the manifest, and in the file itself with a digest that was written anew."""
  path = copy(name)
  if name == 'packed':
    members = dict(np.load(path))
    head = json.loads(bytes(members['manifest']))
    head['about'] |= changes
    members['manifest'] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez(path, **members)
    digest_again(path)
  elif name == 'stablehlo':
    beside = path.parent / manifest.FILE
    found = json.loads(beside.read_text())
    found['about'] |= changes
    beside.write_text(json.dumps(found))
    if 'logits' in words:
      words = 'is not StableHLO that this JAX reads'
  else:
    onnx = pytest.importorskip('onnx')
    model = onnx.load(path)
    model.metadata_props[0].value = json.dumps(json.loads(model.metadata_props[0].value) | changes)
    onnx.save(model, path)
    digest_again(path)
  text = line(export.open_network, path)
  assert words[:60] in text and text.endswith(('export it again', 'export the network again'))


def node_change(output, **attributes):
  def change(head, members):
    node = next(node for node in head['nodes'] if node['output'] == output)
    node['attributes'] |= attributes

  return change


def entry_change(name, **entries):
  def change(head, members):
    next(node for node in head['nodes'] if node['output'] == name).update(entries)

  return change


def array_change(name, make):
  def change(head, members):
    members[name] = make(members[name])

  return change


GRAPHS = {
  'stride 0': (node_change('s0', stride=0), 's0.stride is 0'),
  'a stride that is not an integer': (node_change('s0', stride=1.5), 's0.stride is 1.5'),
  'padding as large as the window': (node_change('s0', padding=3), 'with padding 3 does not fit'),
  'a huge padding': (node_change('s0', padding=10**9), 's0.padding is 1000000000'),
  '9 bits': (node_change('s1', bits=9), 's1.bits is 9'),
  'an attribute that nobody knows': (node_change('s1', x=1), "unknown field 'x'"),
  'a huge shape': (node_change('s1', shape=[10**9] * 4), 's1.shape[0] is 1000000000'),
  'levels without end': (node_change('q0', levels=10**9), 'q0.levels is 1000000000'),
  'an operation that nobody knows': (entry_change('a0', op='system'), "is 'system', not one of"),
  'an input that does not exist yet': (entry_change('a0', inputs=['a1']), 'a0 has the inputs'),
  'itself as input': (entry_change('a0', inputs=['a0']), 'a0 has the inputs'),
  'codes of codes': (entry_change('q1', inputs=['q0']), 'q1: quantize does not take codes'),
  'a name that stands twice': (entry_change('a1', output='a0'), 'a0'),
  'infinite scale': (array_change('a1/scale', lambda x: x * np.float32(np.inf)), 'a1/scale'),
  'a bias that is NaN': (array_change('a1/bias', lambda x: x * np.float32(np.nan)), 'a1/bias'),
  'a scale too short': (array_change('a1/scale', lambda x: x[:3]), 'a1/scale has the shape [3]'),
  'a scale of doubles': (array_change('a1/scale', lambda x: x.astype(np.float64)), 'float64'),
  'a standard deviation of 0': (array_change('input/std', lambda x: x * 0), 'input/std'),
  'codes too short': (array_change('s1/codes', lambda x: x[:-1]), 's1/codes'),
}


@pytest.mark.parametrize('change, words', GRAPHS.values(), ids=GRAPHS)
def test_forged_graphs(copy, change, words):
  """Their digests are right, so that only the schema can refuse them."""
  path = copy('packed')
  members = dict(np.load(path))
  head = json.loads(bytes(members['manifest']))
  change(head, members)
  members['manifest'] = np.frombuffer(json.dumps(head).encode(), np.uint8)
  np.savez(path, **members)
  digest_again(path)
  text = line(packed.read, path)
  assert text.startswith(f'{path} is damaged or not a packed network') and words in text


def test_what_does_not_fit_the_schema_is_not_written(tmp_path):
  exported = export.from_graph(graph())
  exported.about['classes'] = ['a'] * 4
  assert 'student.npz is not written: about.classes has 4 names' in line(
    packed.write, tmp_path / 'student.npz', exported.graph, exported.about
  )
  assert not (tmp_path / 'student.npz').exists()


# --- ONNX.


def test_a_session_that_fails_is_one_line(folder, monkeypatch):
  runtime = pytest.importorskip('onnxruntime')
  pytest.importorskip('onnx')
  network, _ = export.open_network(folder / 'student.onnx')

  def fails(*unused):
    raise RuntimeError('[ONNXRuntimeError] : 2 :\nNOT_IMPLEMENTED')

  monkeypatch.setattr(runtime.InferenceSession, 'run', fails)
  assert 'student.onnx cannot be run by ONNX Runtime (RuntimeError: [ONNXRuntimeError] : 2 : NOT_IMPLEMENTED)' in line(
    network, images()
  )


@pytest.mark.filterwarnings('ignore')  # of the package
def test_qonnx_runs_the_circuit_form(folder):
  """The executor of the package qonnx, which takes no symbolic batch, answers as the integer network."""
  pytest.importorskip('onnx')
  pytest.importorskip('qonnx')
  from qonnx.core.modelwrapper import ModelWrapper
  from qonnx.core.onnx_exec import execute_onnx
  from qonnx.transformation.infer_shapes import InferShapes

  model = ModelWrapper(str(folder / 'student.qonnx.onnx')).transform(InferShapes())
  assert model.get_tensor_shape('images') == [1, SIZE, SIZE, CHANNELS]
  found = np.concatenate([execute_onnx(model, {'images': image[None]})['logits'] for image in images()])
  np.testing.assert_allclose(found, interpreter.Network(graph())(images()), rtol=2e-6, atol=2e-6)


def test_an_image_that_is_not_of_the_networks_size(folder, tmp_path):
  from PIL import Image

  Image.fromarray(images()[0].repeat(2, 0).repeat(2, 1)).save(tmp_path / 'large.png')
  (found,) = predict.predict(folder / 'student.npz', [str(tmp_path / 'large.png')])
  assert 'large.png' in found.error
