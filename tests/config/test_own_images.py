"""configs/folder.py: what is found in a folder of images, and what is chosen for it."""

import pathlib
import runpy

import numpy as np
import pytest
from PIL import Image

from cmtkd_jax import config as config_lib
from cmtkd_jax.cli import flags
from cmtkd_jax.config import own_images
from cmtkd_jax.config.own_images import Found
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import chips

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = Found(train=400, test=100, classes=5, held_out='a fifth', short=[161, 300, 605], square=False)


def get_config(argument):
  return runpy.run_path(str(ROOT / 'configs' / 'folder.py'))['get_config'](argument)


def chosen(found, accelerator=False):
  return {choice.field: choice.value for choice in own_images.choose(found, accelerator)}


@pytest.fixture
def photos(tmp_path):
  """20 photographs of each of two classes, of which 4 are held out; one training image cannot be read."""
  rng = np.random.default_rng(0)
  for name in ('ant', 'bee'):
    (tmp_path / name).mkdir()
    for i in range(20):
      Image.new('RGB', (int(rng.integers(100, 200)), 90 + i)).save(tmp_path / name / f'{i:02}.jpg')
  (tmp_path / 'bee' / '07.jpg').write_bytes(b'no image')
  return tmp_path


def test_photographs_on_a_cpu():
  """400 images at 64x64: 400 x 0.005 s x 4 = 8 s an epoch, 420 s of training are 52 epochs."""
  found = chosen(PHOTOS)
  assert (found['data.image_size'], found['data.resize'], found['data.augment']) == (64, 72, 'resize_crop_flip')
  assert found['data.cache'] and found['model.name'] == 'resnet8' and found['model.stem'] == 'cifar'
  assert (found['batch_size'], found['duration'], found['eval_every']) == (32, '52 epochs', '5 epochs')
  assert found['optimizer.learning_rate'] == 0.05


def test_many_photographs_on_a_cpu():
  """40,000: 200 s an epoch at 32x32, and ten epochs at least; 40,000 x 36 x 54 x 3 bytes fit into a gigabyte."""
  found = chosen(PHOTOS._replace(train=40_000))
  assert (found['data.image_size'], found['duration'], found['batch_size']) == (32, '10 epochs', 64)
  assert found['data.cache'] and found['optimizer.learning_rate'] == 0.1
  assert 'data.cache' not in chosen(PHOTOS._replace(train=400_000))


def test_small_square_images_are_taken_as_they_are():
  found = chosen(PHOTOS._replace(short=[28, 28], square=True))
  assert (found['data.image_size'], found['data.augment'], found['data.pad']) == (28, 'pad_crop_flip', 3)
  assert 'data.resize' not in found and 'data.cache' not in found
  accelerator = chosen(PHOTOS._replace(short=[32, 32], square=True), True)
  assert (accelerator['model.name'], accelerator['model.stem'], accelerator['data.image_size']) == (
    'resnet18',
    'cifar',
    32,
  )


def test_photographs_on_an_accelerator():
  found = chosen(PHOTOS._replace(train=20_000), True)
  assert (found['data.image_size'], found['data.resize'], found['data.augment']) == (224, 256, 'inception_crop_flip')
  assert (found['model.name'], found['model.stem'], found['batch_size']) == ('resnet18', 'imagenet', 256)
  assert (found['duration'], found['optimizer.learning_rate']) == ('150 epochs', 0.1)


@pytest.mark.parametrize('train', [2, 5, 9, 63, 100, 1501, 10**7])
@pytest.mark.parametrize('short', [[3], [28], [100, 2000]])
@pytest.mark.parametrize('square', [False, True])
@pytest.mark.parametrize('accelerator', [False, True])
def test_every_choice_is_a_valid_configuration(train, short, square, accelerator):
  found = PHOTOS._replace(train=train, short=short, square=square and len(short) == 1)
  config = config_lib.default()
  config.update_from_flattened_dict(chosen(found, accelerator))
  config_lib.check(config)
  assert config.batch_size <= train


def test_the_config_file_looks_into_the_folder_and_says_what_it_chose(photos, capsys, monkeypatch):
  monkeypatch.setattr(chips, 'expects_accelerator', lambda: False)
  config = get_config(str(photos))
  config_lib.check(config)
  assert config.data.name == f'folder:{photos}' and config.data.image_size == 64 and config.dtype == 'float32'
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == (
    f'{photos}: 32 images to train on, 8 to test on (about 20 % of the images of every class, held out of training), '
    '2 classes; shorter side 90 to 108 pixels'  # 109 is held out
  )
  assert lines[1] == 'chosen for a CPU (for a GPU or TPU: --config=configs/folder.py:DIR,accelerator):'
  shown = [line.split('  ')[1] for line in lines[2:-1]]
  assert "--config.duration='300 epochs'" in shown and len(shown) == len(own_images.choose(PHOTOS, False))

  other = get_config(f'{photos},accelerator')
  assert (other.model.name, other.dtype) == ('resnet18', 'bfloat16')
  monkeypatch.setattr(chips, 'expects_accelerator', lambda: True)
  assert get_config(str(photos)).model.name == 'resnet18'
  assert get_config(f'{photos},cpu').model.name == 'resnet8'
  assert get_config('smoke').data.name.startswith('generated:')


def test_test_images_of_another_size_are_seen(tmp_path):
  for split, side in (('train', 32), ('test', 48)):
    for name in ('ant', 'bee'):
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(5):
        Image.new('RGB', (side, side)).save(tmp_path / split / name / f'{i}.png')
  found = own_images.look(str(tmp_path), 0.2)
  assert (found.short, found.square) == ([32] * 10, False)


def test_mistakes(photos):
  for argument, words in (
    ('', 'the folder of images is missing; name it after a colon'),
    (f'{photos},gpu', "'gpu' is not one of cpu, accelerator, smoke, the words after a comma"),
    ('a,b', "'b' is not one of .*; a folder's name cannot have a comma here, so rename it"),
    (f'{photos}/absent', f'there is no folder {photos}/absent'),
    (f'{photos}/ant', f'folder {photos}/ant holds no class folders'),
  ):
    with pytest.raises(UserError, match=words):
      get_config(argument)
  for path in photos.rglob('*.jpg'):
    path.write_bytes(b'no image')
  with pytest.raises(UserError, match='ant/.*jpg cannot be decoded'):
    get_config(str(photos))


def test_the_work_directory_is_called_like_the_folder(monkeypatch, photos):
  monkeypatch.setattr(flags, '_WORKDIR', type('Unset', (), {'value': None}))
  monkeypatch.setattr(flags, '_CONFIG', type('Set', (), {'value': 1}))
  for text, name in (
    ('configs/folder.py:/a/photos', 'runs/folder_photos'),
    ('configs/folder.py:/a/photos/,cpu', 'runs/folder_photos_cpu'),
    ('configs/cifar100_resnet18.py:fitnet,smoke', 'runs/cifar100_resnet18_fitnet_smoke'),
    ('digits_resnet8.py', 'runs/digits_resnet8'),
  ):
    monkeypatch.setattr(flags.config_flags, 'get_config_filename', lambda flag, text=text: text)
    assert flags._default_workdir() == name


@pytest.mark.parametrize(
  'platforms, devices, packages, expected',
  [
    ('', (), ('libtpu',), False),
    ('', ('/dev/nvidia0',), (), False),
    ('', ('/dev/nvidia0',), ('jax_cuda13_plugin',), True),
    ('', ('/dev/vfio/0',), ('libtpu',), True),
    ('cpu', ('/dev/nvidia0',), ('jax_cuda13_plugin',), False),
    ('cuda,cpu', (), (), True),
  ],
)
def test_which_machine_it_is(monkeypatch, platforms, devices, packages, expected):
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  monkeypatch.setattr(chips.glob, 'glob', lambda pattern: [d for d in devices if d.startswith(pattern.split('[')[0])])
  monkeypatch.setattr(chips.importlib.util, 'find_spec', lambda name: name in packages or None)
  assert chips.expects_accelerator() == expected
