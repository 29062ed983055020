#!/usr/bin/env python3
"""Starts one run as several processes on this machine, and stops them all when one fails.

    python launch/local_processes.py --processes=2 -- --config=configs/digits_resnet8.py --workdir=runs/two

--devices=K gives each process K virtual CPU devices (for trying things out); --gpus gives each process one GPU, in the
order of `CUDA_VISIBLE_DEVICES`, or of the machine where it is not set. Without either, processes see what
`JAX_PLATFORMS` and `CUDA_VISIBLE_DEVICES` say. Paths are those of the folder that you are in. What the first process
prints is shown; the last lines of one that fails, too. The exit status is that of the first process that failed.
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
GRACE_SECONDS = 20  # between SIGTERM and SIGKILL


def free_port():
  """Returns a TCP port that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def gpus_of(processes, environment):
  """Returns the GPU of each process, as CUDA names it; exits where there are fewer."""
  visible = environment.get('CUDA_VISIBLE_DEVICES')
  names = list(map(str, range(processes))) if visible is None else list(filter(None, visible.split(',')))
  if not 0 < processes <= len(names):
    where = 'this machine' if visible is None else f'CUDA_VISIBLE_DEVICES={visible}'
    print(
      f'error: {processes} processes need a GPU each, and {where} has {len(names)}; change --processes, or GPUS of '
      'launch/multi_gpu.sh',
      file=sys.stderr,
    )
    sys.exit(2)
  return names[:processes]


def start(arguments, processes, devices=0, gpus=False, module='cmtkd_jax.main', environment=None):
  """Starts the processes; returns [(Popen, file of what it prints, None for the first)]."""
  address, started = f'127.0.0.1:{free_port()}', []
  environment = dict(os.environ if environment is None else environment)
  environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), environment.get('PYTHONPATH')]))
  names = gpus_of(processes, environment) if gpus else ()
  for k in range(processes):
    own = dict(environment)
    if devices:
      own['JAX_PLATFORMS'] = 'cpu'
      own['XLA_FLAGS'] = f'{own.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    if gpus:
      own['CUDA_VISIBLE_DEVICES'] = names[k]
    output = tempfile.TemporaryFile('w+') if k else None  # noqa: SIM115  read when the process has ended
    command = [
      sys.executable,
      '-m',
      module,
      *arguments,
      f'--coordinator_address={address}',
      f'--num_processes={processes}',
      f'--process_id={k}',
    ]
    started.append((subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT if k else None), output))
  return started


def stop(started):
  """Ends what still runs: politely, and after a while for good."""
  for process, _ in started:
    if process.poll() is None:
      process.terminate()
  limit = time.monotonic() + GRACE_SECONDS
  for process, _ in started:
    try:
      process.wait(max(0, limit - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def wait(started):
  """Waits for all; returns 0, or the status of the first that failed, once the others are stopped."""
  try:
    return _wait(started)
  finally:
    for _, output in started:
      if output is not None:
        output.close()


def _wait(started):
  while True:
    statuses = [process.poll() for process, _ in started]
    failed = next((k for k, status in enumerate(statuses) if status), None)
    if failed is not None:
      stop(started)
      output = started[failed][1]
      if output is not None:
        output.seek(0)
        print(
          f'process {failed} ended with status {statuses[failed]}:',
          *output.readlines()[-10:],
          sep='\n  ',
          file=sys.stderr,
        )
      return statuses[failed]
    if all(status == 0 for status in statuses):
      return 0
    time.sleep(0.1)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument('--devices', type=int, default=0)
  parser.add_argument('--gpus', action='store_true')
  parser.add_argument('arguments', nargs='*', help='after --: what cmtkd_jax.main takes')
  options = parser.parse_args()
  if options.processes < 1 or options.devices < 0:
    parser.error('--processes must be at least 1, and --devices not below 0')
  started = start(options.arguments, options.processes, options.devices, options.gpus)
  forward = lambda number, frame: [process.send_signal(number) for process, _ in started if process.poll() is None]
  signal.signal(signal.SIGTERM, forward)
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, forward)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all of them
  status = wait(started)
  return 128 - status if status < 0 else status


if __name__ == '__main__':
  sys.exit(main())
