"""TensorFlow, where it is installed, kept off the accelerators."""

import contextlib
import functools
import os
import sys
import warnings


@functools.cache
def load():
  """Imports TensorFlow without its chatter; it leaves the accelerators' memory to JAX. One thread calls it first.

  Raises:
    ImportError: it is absent, or does not fit what else is installed.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # Before the first import of TensorFlow.
  with silent_stderr(), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      import tensorflow as tf
    except ImportError:
      raise
    except Exception as e:  # what it imports raises many kinds where versions do not fit
      raise ImportError(f'TensorFlow cannot be imported: {e}') from e
    with contextlib.suppress(RuntimeError):  # it has started already; whoever started it chose its devices
      tf.config.set_visible_devices([], 'GPU')
    tf.constant(0)  # starts it here, in silence
    return tf


@contextlib.contextmanager
def silent_stderr():
  """Silences C++ libraries: TensorFlow prints on file descriptor 2 whatever its log level."""
  sys.stderr.flush()
  saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(null)
