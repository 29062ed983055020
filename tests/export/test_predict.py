"""Predictions: which files are meant, what is printed, and files that cannot be read."""

import csv
import errno
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from cmtkd_jax import export
from cmtkd_jax.cli import commands
from cmtkd_jax.cli.flags import Command
from cmtkd_jax.errors import UserError
from cmtkd_jax.export import predict

CLASSES = ('dark', 'a, "light" one')


@pytest.fixture(autouse=True)
def network(monkeypatch):
  """Answers how light an image is; keeps the shapes of the batches that it was asked for."""
  asked = []

  def logits(images):
    asked.append(images.shape)
    light = images.mean(axis=(1, 2, 3)) / 255
    return np.log(np.stack([1 - light, light], axis=1) + 1e-9).astype(np.float32)

  about = dict(image_shape=(4, 4, 1), resize=0, classes=CLASSES)
  monkeypatch.setattr(export, 'open_network', lambda path: (logits, about))
  return asked


def save(path, value, side=4):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((side, side), value, np.uint8)).save(path)
  return str(path)


def test_files_folders_and_patterns(tmp_path):
  b, a, deep = (save(tmp_path / name, 0) for name in ('in/b.png', 'in/a.PNG', 'in/z/deep.jpg'))
  (tmp_path / 'in' / 'notes.txt').write_text('')
  star = save(tmp_path / 'x[1]*.png', 0)  # a name that looks like a pattern
  assert predict.find([str(tmp_path / 'in')]) == [a, b, deep]
  assert predict.find([str(tmp_path / 'in' / '*.png'), star]) == [b, star]
  assert predict.find([str(tmp_path / '**' / '*.jpg')]) == [deep]
  assert predict.find([str(tmp_path / 'i*')]) == [a, b, deep]  # as a shell would have it
  assert sorted(predict.find([str(tmp_path / 'in' / '**')])) == sorted([a, b, deep, str(tmp_path / 'in' / 'notes.txt')])
  assert predict.find(['/absent.png']) == ['/absent.png']


def test_folders_are_read_as_in_training(tmp_path):
  """Links are followed, each folder once, and hidden names are left out."""
  (tmp_path / 'real').mkdir()
  (tmp_path / 'in' / '.hidden').mkdir(parents=True)
  for name in ('real/a.png', 'in/b.png', 'in/._b.png', 'in/.hidden/c.png'):
    (tmp_path / name).touch()
  (tmp_path / 'in' / 'link').symlink_to(tmp_path / 'real')
  (tmp_path / 'real' / 'circle').symlink_to(tmp_path / 'in')
  assert predict.find([str(tmp_path / 'in')]) == [str(tmp_path / 'in' / name) for name in ('b.png', 'link/a.png')]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  save(tmp_path / 'in' / 'open' / 'a.png', 0)
  save(tmp_path / 'in' / 'shut' / 'b.png', 0)
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('shut'):
      raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)  # permissions do not bind the superuser
  with pytest.raises(UserError, match=f'images: {tmp_path}/in/shut cannot be read .Permission denied.; make it'):
    predict.find([str(tmp_path / 'in')])


def test_networks_of_other_channels_than_image_files_have(tmp_path, monkeypatch):
  about = dict(image_shape=(4, 4, 4), resize=0, classes=CLASSES)
  monkeypatch.setattr(export, 'open_network', lambda path: (None, about))
  with pytest.raises(UserError, match='workdir: RUN takes images of 4 channels, which no image file has'):
    list(predict.predict('RUN', [save(tmp_path / 'a.png', 0)]))


def test_batches_of_one_shape(tmp_path, network):
  files = [save(tmp_path / f'{i:03}.png', i) for i in range(130)]
  found = list(predict.predict('', files))
  assert network == [(64, 4, 4, 1)] * 3
  assert [prediction.file for prediction in found] == files
  light = [dict(prediction.classes)[CLASSES[1]] for prediction in found]
  np.testing.assert_allclose(light, np.arange(130) / 255, atol=1e-4)
  assert found[0].classes[0][0] == 'dark'
  assert len(list(predict.predict('', files[:2]))) == 2 and network[-1] == (2, 4, 4, 1)


def test_progress_where_there_are_many(tmp_path, capsys):
  files = [save(tmp_path / f'{i:03}.png', i) for i in range(101)]
  list(predict.predict('', files[:100]))
  assert not capsys.readouterr().err
  list(predict.predict('', files))
  assert 'image 101/101' in capsys.readouterr().err


def run(capsys, *images, output='text'):
  status = commands.run_predict(Command('predict', images=list(images), output=output))
  return status, *capsys.readouterr()


def test_files_that_cannot_be_read_are_a_line_each_and_the_rest_go_on(tmp_path, capsys):
  good, large = save(tmp_path / 'good.png', 51), save(tmp_path / 'large.png', 0, side=9)
  (tmp_path / 'text.png').write_text('no image')
  status, out, err = run(capsys, '/absent.png', str(tmp_path / 'text.png'), good, large)
  assert status == 1
  assert out == f'{good}: dark 80.0 %, {CLASSES[1]} 20.0 %\n'
  absent, text, size = err.splitlines()
  assert absent == (
    'error: images: /absent.png cannot be read (there is no such file); give image files such as .jpg or .png'
  )
  assert f'{tmp_path}/text.png cannot be read' in text and '9x9, not 4x4' in size
  assert run(capsys, good)[0] == 0


def test_csv_and_json(tmp_path, capsys):
  good = save(tmp_path / 'a,b.png', 51)
  _, out, _ = run(capsys, good, '/absent.png', output='csv')
  header, row = csv.reader(io.StringIO(out))
  assert header[:3] == ['file', 'class1', 'probability1'] and len(row) == len(header)
  assert row == [good, 'dark', '0.800000', CLASSES[1], '0.200000', *[''] * 6]
  _, out, _ = run(capsys, good, '/absent.png', output='json')
  first, second = json.loads(out)
  assert first['file'] == good and [found['class'] for found in first['classes']] == list(CLASSES)
  assert second['file'] == '/absent.png' and 'no such file' in second['error']


@pytest.mark.parametrize('between', ['\n', '\r', '\r\n', '"', ','])
def test_csv_reads_back_whatever_is_in_a_name(tmp_path, capsys, between):
  path = save(tmp_path / f'a{between}b.png', 51)
  _, out, _ = run(capsys, path, output='csv')
  assert list(csv.reader(io.StringIO(out, newline='')))[1][0] == path


def test_names_that_are_not_utf8(tmp_path, capsys):
  path = tmp_path / 'a\udcff.png'
  save(path, 51)
  for output, quote in (('text', ''), ('csv', ''), ('json', '"')):
    status, out, err = run(capsys, str(path), output=output)
    assert status == 0 and not err and f'{tmp_path}/a\\udcff.png{quote}' in out


def test_no_images(tmp_path):
  with pytest.raises(UserError, match='images are missing'):
    next(predict.predict('', []))
  with pytest.raises(UserError, match='there are no images'):
    next(predict.predict('', [str(tmp_path)]))
