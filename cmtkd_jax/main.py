"""Command line: `python -m cmtkd_jax.main --config=configs/digits_resnet8.py [--workdir=DIR] [--mode=evaluate]`."""

import os
import select
import signal
import sys

if __name__ == '__main__' and not __package__:
  print('error: this file is a module of a package; run `python -m cmtkd_jax.main` instead', file=sys.stderr)
  sys.exit(2)

# Until `run` handles Ctrl-C, it ends the program without a stack trace: there is nothing to lose yet. If Ctrl-C is
# ignored, as in a background job, it stays ignored.
if (__name__ == '__main__' or os.path.basename(sys.argv[0]) == 'cmtkd-jax') and (
  signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax

from cmtkd_jax.cli import commands, flags, interrupts, output
from cmtkd_jax.errors import UserError, one_line
from cmtkd_jax.runtime import allocator, distributed, peers, preemption, silencers, standard_error

_READER_LEFT = 141  # as of a program that SIGPIPE ends
_RESUMING = ('train', 'table')


def main(argv):
  """Runs one mode; returns the exit status."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported, if it is
  silencers.install()
  command = None
  try:
    command = flags.parse(argv)
    if command.mode in commands.ON_DEVICES:
      distributed.initialize(command.cluster)
    return commands.MODES[command.mode](command) or 0
  except BrokenPipeError:
    if not _reader_left():
      raise
    return _READER_LEFT
  except UserError as e:
    if isinstance(e, output.NotWrittenError):
      output.close()
    return _end(2, f'error: {e}')
  except preemption.Preempted as e:
    print(e, file=sys.stderr)
    return preemption.EXIT_STATUS
  except KeyboardInterrupt:
    resumes = command is not None and command.mode in _RESUMING
    interrupts.silence()
    hint = '; the same command continues from the last checkpoint, if there is one' if resumes else ''
    return _end(interrupts.EXIT_STATUS, f'interrupted{hint}')
  except jax.errors.JaxRuntimeError as e:
    if not peers.installed():
      raise
    return _end(peers.EXIT_STATUS, f'{peers.LOST} ({one_line(e, 150)})')


def _reader_left():
  """Whether nobody reads standard output any more, as with `| head`; closes it then, or Python would write again."""
  reader = select.poll()
  reader.register(sys.stdout.fileno(), 0)  # errors are always reported
  if not reader.poll(0):
    return False
  output.close()
  return True


def _end(status, line):
  """Prints the last line; with several processes the others may never reach the common end, so this one leaves."""
  print(line, file=sys.stderr)
  if peers.installed():
    peers.leave(status)
  return status


def run():
  """Runs the command line of this process and ends it with the exit status; the command `cmtkd-jax`."""
  output.open_closed()
  sys.stderr = standard_error.Forgiving(sys.stderr)
  output.show_warnings()
  allocator.keep_memory()
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  interrupts.watch()
  sys.exit(main(sys.argv))


if __name__ == '__main__':
  run()
