#!/usr/bin/env bash
# Trains on the GPUs of this machine, one process each; launch/single_host.sh does the same in one process.
#
#   launch/multi_gpu.sh --config=configs/cifar100_resnet18.py --workdir=runs/a
#
# GPUS=4 takes the first four; by default all that nvidia-smi lists.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${GPUS:-}" ] && ! command -v nvidia-smi >/dev/null; then
  echo 'error: there is no nvidia-smi to count the GPUs; set GPUS=N, or use launch/single_host.sh' >&2
  exit 2
fi
gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/cmtkd_jax/compiled}"
exec python launch/local_processes.py --processes="$gpus" --gpus -- "$@"
