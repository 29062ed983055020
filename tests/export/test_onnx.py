"""ONNX files: the exact form to the last code, the fast form, the one for circuits, and what is refused."""

import itertools
import json

import jax
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import export, models, quantizers
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import fold, interpreter, trace
from cmtkd_jax.export.formats import onnx_common, onnx_qdq, onnx_qlinear, onnx_qonnx
from cmtkd_jax.export.graph import Graph, Node
from cmtkd_jax.runs import checkpoint
from cmtkd_jax.training import build, loop
from tests.export.test_export import reference_convolution
from tests.networks import small_mobilenet
from tests.pruned_network import make_pruned

onnx = pytest.importorskip('onnx')
runtime = pytest.importorskip('onnxruntime')

LEVELS = runtime.GraphOptimizationLevel


def about_of(graph):
  return export.from_graph(graph).about | {'metrics': {'top1': 99.5}}


def images_of(shape, count=8):
  # Black and white: with weights of few bits in the first layer, its sums are exact in any order too.
  return np.random.default_rng(1).choice(np.uint8([0, 255]), (count, *shape))


def small_graph(bits, factor, levels=16, channels=6, thresholds=None):
  """Convolutions, a pool and a dense layer on codes; all sums exact. The grid is factor * code - shift."""
  rng = np.random.default_rng(bits)
  shift = 2**bits - 1 if factor == 2 else 2 ** (bits - 1)

  def weights(*shape):
    codes = rng.integers(0, 2**bits, shape).astype(np.uint8)
    codes.flat[:2] = 0, 2**bits - 1
    return {'bits': bits, 'factor': factor, 'shift': shift}, {'codes': codes}

  def affine(name, output, scale, bias=0.0, out=channels):
    return Node(
      'affine',
      (name,),
      output,
      arrays={'bias': np.float32(bias + rng.uniform(-1, 1, out)), 'scale': np.float32(scale * rng.uniform(-1, 1, out))},
    )

  def quantize(name, output):
    arrays = {} if thresholds is None else {'thresholds': np.float32(thresholds)}
    return Node('quantize', (name,), output, {'levels': levels}, arrays)

  (conv, conv_codes), (dense, dense_codes) = weights(3, 3, channels, channels), weights(2 * 2 * channels, 5)
  size, top = 2.0**bits, levels - 1
  return Graph(
    (
      Node('image', ('images',), 'input', arrays={'mean': np.float32([0.5]), 'std': np.float32([0.5])}),
      Node(
        'convolution',
        ('input',),
        's0',
        {'stride': 1, 'padding': 1, 'bits': 32},
        {'kernel': np.float32(rng.integers(-8, 9, (3, 3, 1, channels)) / 8)},
      ),
      affine('s0', 'a0', top),
      quantize('a0', 'q0'),
      Node('convolution', ('q0',), 's1', {'stride': 1, 'padding': 1} | conv, conv_codes),
      # A bias that depends on the position, as padding worth no code needs.
      Node(
        'affine',
        ('s1',),
        'a1',
        arrays={
          'bias': np.float32(rng.uniform(-9, 9, (4, 4, channels))),
          'scale': np.float32(rng.uniform(-1, 1, channels) / size),
        },
      ),
      Node('relu', ('a1',), 'r1'),
      affine('q0', 'i0', 1),
      Node('add', ('r1', 'i0'), 't1'),
      quantize('t1', 'q1'),
      Node('max_pool', ('q1',), 'p1', {'window': 2, 'stride': 2, 'padding': 0}),
      Node('dense', ('p1',), 's2', dense, dense_codes),
      affine('s2', 'logits of it', 1 / size, out=5),
    ),
    (4, 4, 1),
  )


def sessions(path, outputs):
  """The file on ONNX Runtime at every level of optimization, with more outputs."""
  model = onnx.load(path)
  onnx.checker.check_model(model, full_check=True)
  for name in outputs:
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
  for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL):
    for folded in '01':
      options = runtime.SessionOptions()
      options.graph_optimization_level, options.log_severity_level = level, 4
      options.add_session_config_entry('session.disable_quant_qdq', folded)
      yield runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])


def check_exact(path, graph, tolerance=0.0):
  """All codes, and the logits up to `tolerance`, are those of the integer evaluation, however it is optimized."""
  images = images_of(graph.image_shape)
  onnx_qdq.write(path, graph, about_of(graph))
  network = interpreter.Network(graph, 'int8')
  logits, expected = jax.device_get(network.with_codes(images))
  assert len(np.unique(logits.round(3))) > 8  # the network tells its images apart
  for session in sessions(path, expected):
    found = session.run(['logits', *expected], {'images': images})
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=tolerance)
    for (name, codes), value in zip(expected.items(), found[1:], strict=True):
      np.testing.assert_array_equal(np.moveaxis(value, 1, -1), codes, err_msg=name)
      assert len(np.unique(codes)) > 1
  read, about = onnx_common.read(path)
  np.testing.assert_allclose(read(images[:3]), logits[:3], rtol=0, atol=tolerance)
  assert about == about_of(graph)


@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('bits', range(1, 9))
def test_every_width_is_exact_and_in_its_type(bits, factor, tmp_path):
  graph, path = small_graph(bits, factor), tmp_path / 'student.onnx'
  check_exact(path, graph)
  model = onnx.load(path)
  stored = 2 if bits <= 2 else 4 if bits <= 4 else 8
  kinds = {2: onnx.TensorProto.INT2, 4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}
  codes = [x for x in model.graph.initializer if x.name.endswith('/codes')]
  assert len(codes) == 2 and all(x.data_type == kinds[stored] for x in codes)
  assert [len(x.raw_data) for x in codes] == [3 * 3 * 6 * 6 * stored // 8, 24 * 5 * stored // 8]
  assert model.opset_import[0].version == {2: 25, 4: 21, 8: 13}[stored]
  assert json.loads({x.key: x.value for x in model.metadata_props}['about']) == about_of(graph)
  assert model.producer_name == 'cmtkd_jax'


@pytest.mark.parametrize('levels', [2, 4, 256])
def test_numbers_of_codes(levels, tmp_path):
  check_exact(tmp_path / 'student.onnx', small_graph(3, 1, levels))


def test_thresholds(tmp_path):
  check_exact(tmp_path / 'student.onnx', small_graph(2, 1, 4, thresholds=[0, 0.7, 2.5]))


def test_sums_above_2_to_the_24(tmp_path):
  graph, path = small_graph(8, 2, 256, channels=80), tmp_path / 'student.onnx'
  sums = np.abs(graph.nodes[4].weights).sum((0, 1, 2)).max() * 255
  assert sums > 2**24
  check_exact(path, graph)
  convolutions = [node for node in onnx.load(path).graph.node if node.op_type == 'Conv']
  assert len(convolutions) == 2 + sums // 2**24


def in_groups(graph, groups):
  """`graph` with its second convolution in groups, and its kernel cut to them."""
  node = graph.nodes[4]
  codes = node.arrays['codes'][:, :, : node.arrays['codes'].shape[2] // groups]
  grouped = Node(node.op, node.inputs, node.output, {**node.attributes, 'groups': groups}, {'codes': codes})
  return Graph((*graph.nodes[:4], grouped, *graph.nodes[5:]), graph.image_shape)


@pytest.mark.parametrize('bits, factor, groups', [(1, 2, 6), (4, 1, 3), (8, 2, 6)])
def test_convolutions_in_groups(bits, factor, groups, tmp_path):
  graph, path = in_groups(small_graph(bits, factor), groups), tmp_path / 'student.onnx'
  check_exact(path, graph)
  assert [[a.i for a in node.attribute if a.name == 'group'] for node in conv_nodes(path)] == [[], [groups]]
  images = images_of(graph.image_shape)
  expected = np.asarray(interpreter.Network(graph)(images))
  check_circuit_form(path, graph, images, expected)
  if bits < 8:  # whose odd weights int8 does not hold
    onnx_qlinear.write(path, graph, about_of(graph), images)
    error = np.abs(onnx_common.read(path)[0](images) - expected)
    assert error.mean() < 0.02 * expected.std()


def test_sums_in_groups_above_2_to_the_24(tmp_path):
  graph, path = in_groups(small_graph(8, 2, 256, channels=160), 2), tmp_path / 'student.onnx'
  sums = np.abs(graph.nodes[4].weights).sum((0, 1, 2)).max() * 255
  assert sums > 2**24
  check_exact(path, graph)
  assert len(conv_nodes(path)) == 2 + sums // 2**24


def conv_nodes(path):
  return [node for node in onnx.load(path).graph.node if node.op_type == 'Conv']


@pytest.mark.parametrize('bits, order, quantizer', [(2, 'pre', 'hwgq'), (4, 'post', 'lsq')])
def test_depthwise_networks(bits, order, quantizer, tmp_path, monkeypatch):
  monkeypatch.setitem(models.MODELS, 'mobilenet_v2', small_mobilenet)
  widths = {'student.weight_bits': bits, 'student.activation_bits': bits}
  graph = make_graph(
    **{'model.name': 'mobilenet_v2', 'model.block_order': order, 'quantizer.name': quantizer}, **widths
  )
  path = tmp_path / 'student.onnx'
  check_exact(path, graph, 1e-5)
  images = images_of(graph.image_shape, 32)
  expected = np.asarray(interpreter.Network(graph)(images))
  check_circuit_form(path, graph, images[:2], expected[:2])
  onnx_qlinear.write(path, graph, about_of(graph), images)
  depthwise = [
    node
    for node in onnx.load(path).graph.node
    if node.op_type == 'QLinearConv' and any(a.name == 'group' and a.i > 1 for a in node.attribute)
  ]
  assert len(depthwise) == 4
  found = onnx_common.read(path)[0](images)
  assert np.mean(np.abs(found - expected)) < 0.1 * expected.std()


def test_sums_that_need_more_than_a_byte_are_exact(tmp_path):
  """In a session of ONNX Runtime with all its optimizations: every sum is that of the codes before it."""
  changes = {'model.width': 1.0, 'student.weight_bits': 4, 'student.activation_bits': 4, 'model.block_order': 'pre'}
  graph, path = make_graph(**changes), tmp_path / 'student.onnx'
  images = images_of(graph.image_shape, 32)
  onnx_qlinear.write(path, graph, about_of(graph), images)
  model = onnx.load(path)
  kinds = [node.op_type for node in model.graph.node]
  assert kinds.count('MatMulInteger') >= 4 and kinds.count('QLinearConv') >= 2
  summed = [node for node in graph.nodes if f'{node.output}/integers' in [made.name for made in model.graph.node]]
  assert len(summed) == kinds.count('MatMulInteger')
  types = {f'{node.output}/integers': onnx.TensorProto.INT32 for node in summed}
  types |= {node.inputs[0]: onnx.TensorProto.UINT8 for node in summed}
  for name, kind in types.items():
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
  session = runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
  logits, *values = session.run(['logits', *types], {'images': images})
  values = dict(zip(types, values, strict=True))
  for node in summed:
    codes, geometry = (
      np.moveaxis(values[node.inputs[0]], 1, -1),
      (node.attributes['stride'], node.attributes['padding']),
    )
    sums = reference_convolution(codes, node.weights, *geometry)
    np.testing.assert_array_equal(values[f'{node.output}/integers'].reshape(sums.shape), sums)
    assert np.ptp(sums) > 255
  # Reading the sums does not change them.
  plain = runtime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': images})[0]
  np.testing.assert_array_equal(plain, logits)
  # A rounded bias of QLinearConv puts a code in a thousand on the other side of a threshold.
  first = 'student/stage1_activation'
  expected = np.asarray(interpreter.Network(graph).with_codes(images)[1][first])
  assert np.mean(np.moveaxis(values[first], 1, -1) != expected) < 0.01
  for found in (onnx_common.read(path)[0](images), plain):
    assert np.mean(found.argmax(1) == np.asarray(interpreter.Network(graph)(images)).argmax(1)) >= 0.9


def make_graph(move_offsets=0.0, **changes):
  """Graph of a network with random weights; learned offsets of its quantizers are moved."""
  config = config_lib.default()
  config.method.name, config.model.width, config.model.bn_momentum = 'single', 0.25, 0.0
  config.update_from_flattened_dict(changes)
  method, shape = build.create_method(config, 10), (config.data.image_size, config.data.image_size, 1)
  x = images_of(shape).astype(np.float32) / 127.5 - 1
  variables = jax.jit(lambda x: method.init(jax.random.key(0), x, train=True))(x)
  collections = [name for name in variables if name != 'params']
  _, state = jax.jit(lambda x: method.apply(variables, x, train=True, mutable=collections))(x)
  variables = jax.tree_util.tree_map_with_path(
    lambda path, x: x - move_offsets if 'offset' in str(path) else x, {**variables, **state}
  )
  return fold.fold(trace.trace(method, variables, shape, 'student'), shape, config.data.mean, config.data.std)


@pytest.mark.parametrize(
  'changes',
  [
    {'model.block_order': 'pre'},
    {'model.block_order': 'post', 'quantizer.name': 'lsq_plus'},
    {'model.name': 'alexnet', 'data.image_size': 32, 'model.width': 0.05},
  ],
  ids=['pre', 'post', 'alexnet'],
)
def test_networks(changes, tmp_path):
  graph, path = make_graph(**changes), tmp_path / 'student.onnx'
  check_exact(path, graph, 1e-5)  # the last layer is one of float32
  images = images_of(graph.image_shape, 32)
  expected = np.asarray(interpreter.Network(graph)(images))
  onnx_qlinear.write(path, graph, about_of(graph), images)
  operations = [node.op_type for node in onnx.load(path).graph.node]
  kinds = graph.kinds()
  on_codes = [node.op for node in graph.nodes if node.op in ('convolution', 'dense') and kinds[node.output] == 'sums']
  assert operations.count('QLinearConv') == on_codes.count('convolution') >= 4
  assert operations.count('MatMulInteger') == on_codes.count('dense')
  # Sums of so few bits are exact; next to a threshold, a rounded bias may still put one on its other side.
  same = (np.abs(onnx_common.read(path)[0](images) - expected) < 1e-5).all(1)
  assert same.mean() >= 0.75
  if 'post' not in changes.values():
    check_circuit_form(path, graph, images[:4], expected[:4])


def check_circuit_form(path, graph, images, expected):
  """Runs the file with Quant and BipolarQuant as QONNX defines them."""
  from onnx.reference import ReferenceEvaluator, op_run

  class Quant(op_run.OpRun):
    op_domain = onnx_qonnx.DOMAIN

    def _run(self, x, scale, zero_point, bit_width, signed=None, narrow=None, rounding_mode=None):
      assert rounding_mode == 'ROUND'
      if signed and bit_width == 1:  # bipolar, as the package's executor reads it
        return (np.float32(np.where(x / scale >= 0, 1, -1) * scale),)
      half = 2.0 ** (bit_width - 1)
      low, high = (-half + narrow, half - 1) if signed else (0, 2.0**bit_width - 1 - narrow)
      return (np.float32((np.round(np.clip(x / scale + zero_point, low, high)) - zero_point) * scale),)

  class BipolarQuant(op_run.OpRun):
    op_domain = onnx_qonnx.DOMAIN

    def _run(self, x, scale):
      return (np.float32(np.where(x >= 0, 1, -1) * scale),)

  onnx_qonnx.write(path, graph, about_of(graph))
  onnx.checker.check_model(onnx.load(path))
  run = ReferenceEvaluator(str(path), new_ops=[Quant, BipolarQuant]).run
  found = np.concatenate([run(None, {'images': image[None]})[0] for image in images])
  rounding = max(1e-5, 1e-6 * np.abs(expected).max())  # of float32 sums, which cancel in small logits
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=rounding)
  np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(
  'bits, factor, widths', [(1, 2, set()), (1, 1, {2}), (2, 1, {2, 4}), (2, 2, {3, 4}), (4, 2, {5, 4})]
)
def test_bits_in_the_circuit_form(bits, factor, widths, tmp_path):
  graph, path = small_graph(bits, factor), tmp_path / 'student.onnx'
  images = images_of(graph.image_shape)
  check_circuit_form(path, graph, images, np.asarray(interpreter.Network(graph)(images)))
  nodes, constants = onnx.load(path).graph.node, {x.name: x for x in onnx.load(path).graph.initializer}
  named = {int(onnx.numpy_helper.to_array(constants[node.input[3]])) for node in nodes if node.op_type == 'Quant'}
  assert named == widths | {4}  # activations have 16 levels
  assert sum(node.op_type == 'BipolarQuant' for node in nodes) == (2 if (bits, factor) == (1, 2) else 0)


@pytest.mark.parametrize('bits, factor, levels', [(2, 2, 4), (4, 1, 16), (7, 2, 16), (8, 1, 256)])
def test_fast_form_rounds_by_little(bits, factor, levels, tmp_path):
  graph, path = small_graph(bits, factor, levels), tmp_path / 'student.onnx'
  images = images_of(graph.image_shape, 64)
  onnx_qlinear.write(path, graph, about_of(graph), images)
  expected = np.asarray(interpreter.Network(graph)(images))
  error = np.abs(onnx_common.read(path)[0](images) - expected)
  assert error.mean() < 0.02 * expected.std()


def test_fast_form_of_a_trained_network_predicts_the_same(tmp_path):
  config = config_lib.default()
  config.method.name, config.tensorboard, config.model.block_order = 'single', False, 'post'
  config.student = dict(weight_bits=4, activation_bits=4)  # sums that 8 bits do not hold
  config.model.width, config.optimizer.schedule = 0.5, 'cosine'
  config.duration = config.eval_every = config.checkpoint_every = '8 epochs'
  loop.train_and_evaluate(config, tmp_path / 'run')
  method, data = build.create_method(config, 10), build.load_data(config, build.make_mesh())
  variables = checkpoint.load_variables(tmp_path / 'run' / 'checkpoints')[0]
  graph = fold.fold(trace.trace(method, variables, (8, 8, 1), 'student'), (8, 8, 1), config.data.mean, config.data.std)
  seen = [jax.device_get(batch) for batch in itertools.islice(data.train.batches(0), data.train.steps_per_epoch)]
  onnx_qlinear.write(tmp_path / 'fast.onnx', graph, about_of(graph), seen[0]['image'])
  batches = [jax.device_get(batch) for batch in data.evals['test'].batches()]
  test, labels = (np.concatenate([batch[name][batch['mask']] for batch in batches]) for name in ('image', 'label'))
  images = np.concatenate([test, *(batch['image'] for batch in seen)])  # all 1,700: one of 355 says little
  expected = np.asarray(interpreter.Network(graph)(images)).argmax(1)
  found = onnx_common.read(tmp_path / 'fast.onnx')[0](images).argmax(1)
  assert (expected[: len(labels)] == labels).mean() > 0.9  # it has learned something
  assert (found == expected).mean() >= 0.985


@pytest.mark.parametrize('name', quantizers.QUANTIZERS)
def test_pruned_networks_in_the_fast_and_the_circuit_form(name, tmp_path):
  """Scales of 0 and what they divide; a quantizer that a form does not hold is refused by the layer's name."""
  method, variables, images = make_pruned(name, most=4)
  graph = fold.fold(trace.trace(method, variables, (4, 4, 1), 'student'), (4, 4, 1), (0.5,), (0.5,))
  expected = np.asarray(interpreter.Network(graph)(images))
  uneven = any('values' in node.arrays for node in graph.nodes)
  levels = [node for node in graph.nodes if node.op == 'quantize']
  other_levels = any('thresholds' in node.arrays or bin(node.attributes['levels']).count('1') > 1 for node in levels)
  assert bool(levels) == (name != 'twn')  # which has no activations of its own
  path = tmp_path / 'fast.onnx'
  if uneven:
    with pytest.raises(UserError, match='^(act0|conv1/sums): .*packed archive'):
      onnx_qlinear.write(path, graph, about_of(graph), images)
  else:
    onnx_qlinear.write(path, graph, about_of(graph), images)
    np.testing.assert_allclose(onnx_common.read(path)[0](images), expected, rtol=1e-6, atol=1e-5)
  if uneven or other_levels:
    with pytest.raises(UserError, match='^(act[0-3]|conv1/sums): .*packed archive'):
      onnx_qonnx.write(path, graph, about_of(graph))
  else:
    check_circuit_form(path, graph, images, expected)


def test_full_precision_weights_behind_offsets(tmp_path):
  """Padding is worth 0, which no code is: the bias depends on the position, and no Conv can add it."""
  graph = make_graph(0.13, **{'quantizer.name': 'lsq_plus', 'student.weight_bits': 32, 'student.activation_bits': 4})
  assert any(node.arrays['bias'].ndim == 3 for node in graph.nodes if node.op == 'affine')
  check_exact(tmp_path / 'student.onnx', graph, 1e-5)
  images = images_of(graph.image_shape)
  onnx_qlinear.write(tmp_path / 'fast.onnx', graph, about_of(graph), images)
  expected = np.asarray(interpreter.Network(graph)(images))
  found = onnx_common.read(tmp_path / 'fast.onnx')[0](images)
  assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.9


def test_full_precision_is_plain_float32(tmp_path):
  graph, path = make_graph(**{'student.weight_bits': 32, 'student.activation_bits': 32}), tmp_path / 'student.onnx'
  images = images_of(graph.image_shape)
  expected = np.asarray(interpreter.Network(graph)(images))
  for write in (onnx_qdq.write, onnx_qlinear.write):
    write(path, graph, about_of(graph))
    np.testing.assert_allclose(onnx_common.read(path)[0](images), expected, rtol=0, atol=1e-5)
  operations = [node.op_type for node in onnx.load(path).graph.node]
  assert 'Conv' in operations and not {'Clip', 'QuantizeLinear', 'DequantizeLinear'} & set(operations)


def test_what_cannot_be_held_is_refused(tmp_path):
  path, values = tmp_path / 'student.onnx', np.float32([0, 1, 4, 9])
  graph = small_graph(2, 1, 4)
  table = Graph((*graph.nodes[:4], Node('lookup', ('q0',), 'q0/real', arrays={'values': values})), (4, 4, 1))
  own = graph.nodes[4]
  weights = Graph(
    (
      *graph.nodes[:4],
      Node(
        own.op,
        own.inputs,
        own.output,
        {'stride': 1, 'padding': 1, 'bits': 2},
        {'codes': own.arrays['codes'], 'values': values},
      ),
    ),
    (4, 4, 1),
  )
  images = images_of((4, 4, 1))
  for write in (onnx_qdq.write, onnx_qonnx.write, lambda *a: onnx_qlinear.write(*a, images)):
    for bad, layer in ((table, 'q0'), (weights, 'logits|s1')):
      with pytest.raises(UserError, match=f'^({layer}): .*table of levels.* packed archive'):
        write(path, bad, {})
  with pytest.raises(UserError, match='^q0: .*2\\^b levels'):
    onnx_qonnx.write(path, small_graph(2, 1, 4, thresholds=[0, 1, 3]), {})
  with pytest.raises(UserError, match='^s1: its 8-bit weights are the odd numbers up to 255'):
    onnx_qlinear.write(path, small_graph(8, 2), {}, images)
  lowest = small_graph(8, 1)  # its first channel has a weight of -128
  after = [node.output for node in lowest.nodes].index('q1') + 1
  turned = lambda scale: Graph(
    (
      *lowest.nodes[:5],
      Node('affine', ('s1',), 'a1', arrays={'bias': np.zeros(6, np.float32), 'scale': np.full(6, scale, np.float32)}),
      Node('quantize', ('a1',), 'q1', {'levels': 16}),
      *lowest.nodes[after:],
    ),
    (4, 4, 1),
  )
  with pytest.raises(UserError, match='^s1: a channel with a weight of -128 has a negative scale.* 7 bits in'):
    onnx_qlinear.write(path, turned(-1e-3), {}, images)
  onnx_qlinear.write(tmp_path / 'positive.onnx', turned(1e-3), about_of(lowest), images)
  with pytest.raises(UserError, match='images for calibration'):
    onnx_qlinear.write(path, graph, {})
  assert not path.exists()


def test_files_that_cannot_be_read(tmp_path):
  path, foreign = tmp_path / 'student.onnx', tmp_path / 'foreign.onnx'
  with pytest.raises(UserError, match='does not exist'):
    onnx_common.read(path)
  graph = small_graph(2, 1)
  onnx_qdq.write(path, graph, about_of(graph))
  data = path.read_bytes()
  model = onnx.load(path)
  del model.metadata_props[:]
  onnx.save(model, foreign)
  onnx_qonnx.write(path, graph, about_of(graph))  # has operations that ONNX Runtime has not
  for content in (data[: len(data) // 2], b'', b'no model', foreign.read_bytes(), path.read_bytes()):
    path.write_bytes(content)
    with pytest.raises(UserError, match='export it again') as e:
      onnx_common.read(path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['onnx', 'onnxruntime'])
def test_missing_packages_are_named(name, monkeypatch, tmp_path):
  monkeypatch.setitem(__import__('sys').modules, name, None)
  with pytest.raises(UserError, match=f'{name} .*pip install onnx onnxruntime'):
    onnx_common.read(tmp_path / 'x') if name == 'onnxruntime' else onnx_qdq.write(tmp_path / 'x', small_graph(2, 1), {})
