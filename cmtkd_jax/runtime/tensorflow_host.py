"""TensorFlow, where it is installed, kept off the accelerators."""

import contextlib
import functools
import os
import warnings

from cmtkd_jax.runtime import silencers


@functools.cache
def load():
  """Imports TensorFlow without its chatter; it leaves the accelerators' memory to JAX. One thread calls it first.

  Raises:
    ImportError: it is absent, or does not fit what else is installed.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # Before the first import of TensorFlow.
  with silencers.silent_stderr(), warnings.catch_warnings():
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
