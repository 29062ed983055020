"""TFRecord files and tf.train.Examples, read without TensorFlow."""

import contextlib
import os
import shutil
import struct

import numpy as np
import pytest
from etils import epath

from cmtkd_jax.data.sources import tf_example, tfrecord
from cmtkd_jax.errors import UserError

# What TensorFlow's TFRecordWriter makes of b'abc' and b''.
GOLDEN = bytes.fromhex('0300000000000000 b099490e 616263 6e57f1210000000000000000 29039807 d8ea82a2')


def bitwise_crc32c(data):
  """CRC-32C as the division of polynomials that it is, bit by bit."""
  crc = 0xFFFFFFFF
  for byte in data:
    for bit in range(8):
      top = (crc ^ byte >> bit) & 1
      crc = crc >> 1 ^ (0x82F63B78 if top else 0)
  return crc ^ 0xFFFFFFFF


def frame(data):
  masked = lambda b: struct.pack('<I', (((c := bitwise_crc32c(b)) >> 15 | c << 17) + 0xA282EAD8) % 2**32)
  length = struct.pack('<Q', len(data))
  return length + masked(length) + data + masked(data)


def save(folder, *shards, name='set-train'):
  """Writes shards, lists of bytes; returns their paths."""
  folder.mkdir(exist_ok=True)
  paths = [folder / f'{name}.tfrecord-{i:05}-of-{len(shards):05}' for i in range(len(shards))]
  for path, records in zip(paths, shards):
    path.write_bytes(b''.join(map(frame, records)))
  return paths


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'cmtkd_jax'


SHARDS = [b'one', b'', b'three' * 5000], [], [b'four'], [b'five', b'six']


def open_shards(folder):
  return tfrecord.Files(save(folder, *SHARDS), [3, 0, 1, 2])


# --- Records.


def test_checksums():
  assert tfrecord.crc32c(b'123456789') == bitwise_crc32c(b'123456789') == 0xE3069283  # the check value of its standard
  assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA and tfrecord.crc32c(b'\xff' * 32) == 0x62A8AB43  # RFC 3720, B.4


def test_golden_bytes(tmp_path):
  assert frame(b'abc') + frame(b'') == GOLDEN
  path = tmp_path / 'a.tfrecord'
  path.write_bytes(GOLDEN)
  np.testing.assert_array_equal(tfrecord.scan(epath.Path(path), len(GOLDEN)), [0, 19, 35])
  assert tfrecord.Files([path], [2]).read(np.array([1, 0])) == [b'', b'abc']


def test_records_are_numbered_in_the_order_of_the_files(tmp_path):
  files = open_shards(tmp_path / 'data')
  assert len(files) == 6
  assert files.read(np.array([5, 2, 0, 3, 1, 4])) == [b'six', b'three' * 5000, b'one', b'four', b'', b'five']


def broken(tmp_path, change):
  """Message of the error for shards of which the first is `change`d, a function of its bytes."""
  paths = save(tmp_path / 'data', *SHARDS)
  paths[0].write_bytes(change(paths[0].read_bytes()))
  with pytest.raises(UserError) as e:
    tfrecord.Files(paths, [3, 0, 1, 2]).read(np.arange(6))
  line = str(e.value)
  assert '\n' not in line and f'config.data.name: {paths[0]} ' in line
  return line


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda data: data[:-1], 'ends within record 2'),
    (lambda data: data[:-25000], 'ends within record 2'),
    (lambda data: data[:25], 'ends within record 1'),
    (lambda data: data + frame(b'more'), 'has 4 records, not the 3'),
    (lambda data: b'', 'has 0 records, not the 3'),
    (lambda data: data[:1] + b'\x01' + data[2:], 'damaged at record 0'),  # of the length
    (lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], 'damaged at record 0'),  # of its checksum
    (lambda data: b'PNG' * 100, 'is not a TFRecord file'),
  ],
)
def test_damaged_files_are_named(tmp_path, change, words):
  assert words in broken(tmp_path, change)


def test_damaged_data_are_told_where_a_checksum_is_cheap(tmp_path, monkeypatch):
  monkeypatch.setattr(tfrecord, '_fast_crc32c', bitwise_crc32c)
  assert len(open_shards(tmp_path / 'whole').read(np.arange(6))) == 6
  assert 'is damaged in record 0' in broken(tmp_path, lambda data: data[:13] + b'!' + data[14:])


def test_a_file_that_changes_later_is_told(tmp_path):
  files = open_shards(tmp_path / 'data')
  (path,) = (tmp_path / 'data').glob('*-00002-of-*')
  path.write_bytes(frame(b'fo') + frame(b'ur'))
  with pytest.raises(UserError, match='00002-of-00004 has changed'):
    files.read(np.array([3]))
  path.unlink()
  with pytest.raises(UserError, match='00002-of-00004 cannot be read'):
    files.read(np.array([3]))
  with pytest.raises(UserError, match='00002-of-00004 cannot be read'):
    tfrecord.Files([*sorted((tmp_path / 'data').glob('*-0000[013]*')), path], [3, 0, 2, 1])


# --- The index.


def scanned(monkeypatch):
  """Names of the files that are scanned from now on."""
  names, scan = [], tfrecord.scan
  monkeypatch.setattr(tfrecord, 'scan', lambda path, size: names.append(path.name) or scan(path, size))
  return names


def test_the_index_is_made_once_and_anew_for_other_files(tmp_path, monkeypatch):
  names = scanned(monkeypatch)
  expected = open_shards(tmp_path / 'data').read(np.arange(6))
  paths = sorted((tmp_path / 'data').glob('set-*'))
  (index,) = (tmp_path / 'data').glob('.*')
  assert index.name == '.set-train.cmtkd_index.npz' and len(names) == 4
  names.clear()
  assert tfrecord.Files(paths, [3, 0, 1, 2]).read(np.arange(6)) == expected and not names

  os.utime(paths[0], (1, 1))  # Written again, perhaps with other records.
  tfrecord.Files(paths, [3, 0, 1, 2])
  assert len(names) == 4
  paths[2].write_bytes(frame(b'four, longer'))
  assert tfrecord.Files(paths, [3, 0, 1, 2]).read(np.array([3])) == [b'four, longer'] and len(names) == 8
  assert len(tfrecord.Files(paths[:3], [3, 0, 1])) == 4 and len(names) == 11
  for damaged in (b'', b'no archive', index.read_bytes()[:-40]):
    index.write_bytes(damaged)
    assert len(tfrecord.Files(paths, [3, 0, 1, 2])) == 6
  assert len(names) == 23
  np.savez(tmp_path / 'other.npz', offsets=np.array([{}], object))
  shutil.copy(tmp_path / 'other.npz', index)
  assert len(tfrecord.Files(paths, [3, 0, 1, 2])) == 6


def test_the_index_goes_to_the_cache_where_the_data_cannot_be_written(tmp_path, monkeypatch, home):
  names = scanned(monkeypatch)
  paths = save(tmp_path / 'data', *SHARDS)
  (tmp_path / 'data' / '.set-train.cmtkd_index.npz').mkdir()  # As root, every folder can be written: this cannot.
  for _ in range(2):
    assert len(tfrecord.Files(paths, [3, 0, 1, 2])) == 6
  assert len(names) == 4 and [path.suffix for path in home.iterdir()] == ['.npz']
  (tmp_path / 'data' / '.set-train.cmtkd_index.npz').rmdir()
  assert not list((tmp_path / 'data').glob('.*.tmp'))


# --- Examples.


def field(number, content):
  """A field of bytes shorter than 128."""
  return bytes([number << 3 | 2, len(content)]) + content


def entry(key, feature):
  return field(1, field(1, key) + field(2, feature))


def features(*entries):
  return field(1, b''.join(entries))


def test_example_by_hand():
  data = features(
    entry(b'image', field(1, field(1, b'\x89PNG'))),
    entry(b'score', field(2, field(1, bytes(4)))),
    entry(b'label', field(3, field(1, b'\xac\x02'))),  # 300 = 0b10_0101100
    entry(b'names', field(1, field(1, b'a') + field(1, b''))),
    entry(b'numbers', field(3, field(1, b'\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01') + b'\x08\x05')),  # unpacked
    entry(b'empty', b''),
  )
  names = ('image', 'label', 'names', 'numbers', 'empty', 'missing')
  assert tf_example.parse(data, names) == {
    'image': [b'\x89PNG'],
    'label': [300],
    'names': [b'a', b''],
    'numbers': [1, -1, 5],
    'empty': [],
  }
  assert tf_example.parse(b'', names) == {}
  # Fields that are not known are passed over: a varint, 8 bytes, 4 bytes, a string.
  unknown = b'\x28\x96\x01' + b'\x31' + bytes(8) + b'\x3d' + bytes(4) + field(8, b'new')
  assert tf_example.parse(unknown + data, ('label',)) == {'label': [300]}
  swapped = field(1, field(1, field(2, field(3, field(1, b'\x07'))) + field(1, b'label')))
  assert tf_example.parse(swapped, ('label',)) == {'label': [7]}


def test_examples_cut_anywhere_are_refused_or_shorter():
  data = features(entry(b'image', field(1, field(1, b'pixels'))), entry(b'label', field(3, field(1, b'\x07'))))
  for end in range(1, len(data)):
    with pytest.raises(ValueError, match='are left|does not end'):
      tf_example.parse(data[:end], ('image', 'label'))


@pytest.mark.parametrize(
  'data, message',
  [
    (b'\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01', 'are left'),  # a length of 2**64 - 1
    (b'\x80' * 11, 'does not end'),
    (b'\x0b', 'unknown kind 3'),
    (b'\x0f', 'unknown kind 7'),
    (features(entry(b'label', field(2, field(1, bytes(4))))), 'floats'),
  ],
)
def test_what_is_no_example(data, message):
  with pytest.raises(ValueError, match=message):
    tf_example.parse(data, ('label',))


def test_random_bytes_raise_nothing_else():
  rng = np.random.default_rng(0)
  for _ in range(2000):
    with contextlib.suppress(ValueError):
      tf_example.parse(features(rng.bytes(rng.integers(0, 60))), ('a', 'b'))


def test_what_tensorflow_writes(tmp_path):
  tf = pytest.importorskip('tensorflow')
  rng = np.random.default_rng(0)
  images, labels = [rng.bytes(n) for n in (0, 1, 127, 128, 70000)], [0, 1, 999, -1, 2**63 - 1]
  paths = [tmp_path / f'a.tfrecord-0000{i}-of-00002' for i in range(2)]
  for path, rows in zip(paths, (range(3), range(3, 5))):
    with tf.io.TFRecordWriter(str(path)) as writer:
      for i in rows:
        feature = {
          'label': tf.train.Feature(int64_list=tf.train.Int64List(value=[labels[i]])),
          'image': tf.train.Feature(bytes_list=tf.train.BytesList(value=[images[i]])),
          'box': tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, 1.0])),
        }
        writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
  for record, data in enumerate(tfrecord.Files(paths, [3, 2]).read(np.arange(5))):
    assert tf_example.parse(data, ('image', 'label')) == {'image': [images[record]], 'label': [labels[record]]}
