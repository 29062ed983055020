"""Command line: `python -m cmtkd_jax.main --config=configs/digits_resnet8.py [--workdir=DIR] [--mode=evaluate]`."""

import os
import sys

from cmtkd_jax import command_line, distributed, modes, preemption
from cmtkd_jax.errors import UserError

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported, if ever it is


def main(argv):
  """Runs one mode; returns the exit status."""
  try:
    command = command_line.parse(argv)
    if command.mode in modes.ON_DEVICES:
      distributed.initialize()
    modes.MODES[command.mode](command)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except preemption.Stopped as e:
    print(e, file=sys.stderr)
    return preemption.EXIT_STATUS
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
