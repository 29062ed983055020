"""Classes of image files, from the directory of a run or an exported file."""

import jax
import numpy as np

from cmtkd_jax import export
from cmtkd_jax.data.loading.broken import WrongSizeError
from cmtkd_jax.data.transforms import decode_pil
from cmtkd_jax.errors import UserError
from cmtkd_jax.runtime import local_file, text_table

_MOST = 5  # classes that are named


def predict(path, images):
  """Returns as text the most likely classes of each image file, with their probabilities.

  Args:
    path: directory of a run, or an exported file.
    images: paths of image files; they are resized and cropped as the test images were.

  Raises:
    UserError: the network or an image cannot be read.
  """
  if not images:
    raise UserError('--images is missing; name image files, e.g. --images=a.jpg,b.png')
  network, about = export.open_network(path)
  lines = []
  for file in images:
    probabilities = np.asarray(jax.nn.softmax(np.asarray(network(read_image(file, about)[None]))))[0]
    best = np.argsort(-probabilities)[:_MOST]
    lines.append(
      f'{file}: '
      + ', '.join(f'{text_table.printable(about["classes"][c])} {100 * probabilities[c]:.1f} %' for c in best)
    )
  return '\n'.join(lines)


def read_image(file, about):
  """Returns an image file as uint8 [H, W, C], read as in training (`data.image_file`), resized and cropped.

  Args:
    file: path of an image file.
    about: of the network: 'image_shape' (H, W, C), and 'resize', the shorter side after resizing, 0 for none.

  Raises:
    UserError: it cannot be read, or has another size than the network where nothing is resized.
  """
  height, _, channels = about['image_shape']
  transform = decode_pil.Transform('none', size=height, resize=about['resize'], channels=channels, seed=None)
  try:
    return transform(local_file.read_bytes(file), 0, 0)
  except WrongSizeError as e:
    raise UserError(f'--images: {file} is {e}, the size of the training images; resize it') from None
  except (OSError, ValueError) as e:
    reason = 'there is no such file' if isinstance(e, FileNotFoundError) else e
    raise UserError(f'--images: {file} cannot be read ({reason}); give image files such as .jpg or .png') from None
