"""Backbones at their full depth: trained for a step, packed, and evaluated in integers.

Nothing is compiled as a whole, and all stages have maps of few shapes: operations are shared by layers and networks, so
that depth costs little. `benchmarks/backbones.py` does it as users do, with every file, method and pair of bits.
"""

import jax
import numpy as np
import pytest

from cmtkd_jax import config as config_lib
from cmtkd_jax import export
from cmtkd_jax.export import compare, fold, interpreter, trace
from cmtkd_jax.export.formats import packed
from cmtkd_jax.models import MODELS, resnet, wide_resnet
from cmtkd_jax.training import build
from cmtkd_jax.training.teachers import Teacher

# In test_export.py: alexnet, vgg_small (test_folded_network_is_the_trained_one), resnet8 (test_archive_comes_back),
# mobilenet_v2 (test_convolutions_in_groups_in_both_files). The others are these with more features, or resnet20 with
# more blocks.
ELSEWHERE = ('alexnet', 'vgg_small', 'resnet8', 'mobilenet_v2', 'alexnet_torchvision', 'wrn16_2', 'wrn40_2')
ELSEWHERE += ('resnet56', 'resnet110')
METHODS, BITS = ('kd', 'single', 'cmtkd'), ((2, 2), (1, 2), (4, 4))
FEATURES, SIZE = 4, 2
CASES = [
  (name, METHODS[i % 3], BITS[(i + i // 3) % 3])
  for i, name in enumerate(name for name in MODELS if name not in ELSEWHERE)
]


def test_cases_are_spread():
  for place, values in ((1, METHODS), (2, BITS)):
    assert all(sum(case[place] == value for case in CASES) > 1 for value in values)


@pytest.mark.parametrize('name, method, bits', CASES, ids=lambda value: str(value).replace(', ', '-'))
def test_codes_are_those_of_training(name, method, bits, tmp_path, monkeypatch):
  narrow(monkeypatch)
  config = config_lib.default()
  config.method.name, config.model.name, config.model.width = method, name, FEATURES / 16
  config.method.cmtkd.teacher_bits = (4,)
  config.model.bn_momentum = 0.0  # statistics of the one batch
  config.student = dict(weight_bits=bits[0], activation_bits=bits[1])
  teachers = (Teacher('elsewhere', config_lib.derive(config, {})),) if method == 'kd' else ()
  method, shape = build.create_method(config, 4, teachers), (SIZE, SIZE, 1)

  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (4, *shape), dtype=np.uint8)
  images = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
  abstract = jax.eval_shape(lambda x: method.init(jax.random.key(0), x, train=True), images)
  variables = jax.tree_util.tree_map_with_path(lambda path, x: start(rng, jax.tree_util.keystr(path), x), abstract)
  params, state = variables['params'], {name: x for name, x in variables.items() if name != 'params'}

  def loss(params):
    outputs, new = method.apply({'params': params, **state}, images, train=True, mutable=list(state))
    return method.loss(outputs, np.arange(4))[0], new

  gradients, state = jax.device_get(jax.grad(loss, has_aux=True)(params))
  step = lambda x, gradient: x - 0.1 * gradient / max(1, np.abs(gradient).max())
  variables = {'params': jax.tree.map(step, params, gradients), **state}

  logits, codes = jax.device_get(compare._forward_with_codes(method, variables, pixels, (0.5,), (0.5,)))
  graph = fold.fold(trace.trace(method, variables, shape, 'student'), shape, (0.5,), (0.5,))
  path = export.write(export.from_graph(graph), tmp_path, ['packed'])['packed']
  found = jax.device_get(interpreter.run(packed.read(path)[0].by_bytes(), pixels, 'float'))
  codes = {layer: own for layer, own in codes.items() if layer.startswith('student/')}
  assert set(codes) == {node.output for node in graph.nodes if node.op == 'quantize'}
  assert np.std(logits, 0).max() > 0.01  # the images get through
  for layer in codes:
    np.testing.assert_array_equal(found[layer], codes[layer], err_msg=layer)
  np.testing.assert_allclose(found[graph.nodes[-1].output], logits, rtol=1e-4, atol=1e-4)


def narrow(monkeypatch):
  """Gives every stage the same features; shortcuts have their convolutions all the same, where the stride is 2."""
  build_resnet, group = resnet._resnet, wide_resnet.Group
  same = lambda blocks, widths, *rest, width, **settings: build_resnet(
    blocks, (FEATURES,) * len(widths), *rest, width=1.0, **settings
  )
  monkeypatch.setattr(resnet, '_resnet', same)
  monkeypatch.setattr(wide_resnet, 'Group', lambda features, *rest, **names: group(FEATURES, *rest, **names))


def start(rng, path, x):
  """An initial value: what initializers give, without compiling them."""
  if x.ndim > 1:
    return rng.normal(size=x.shape).astype(x.dtype) * np.float32(np.sqrt(2 / np.prod(x.shape[:-1])))
  return np.full(x.shape, 'scale' in path or 'var' in path, x.dtype)
