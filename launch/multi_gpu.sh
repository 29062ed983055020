#!/usr/bin/env bash
# Trains on the GPUs of this machine, one process each; launch/single_host.sh does the same in one process.
#
#   launch/multi_gpu.sh --config=configs/cifar100_resnet18.py --workdir=runs/a
#
# Paths are those of the folder that you are in. By default it takes the GPUs that CUDA_VISIBLE_DEVICES names, which
# schedulers set, or else all that nvidia-smi lists; GPUS=4 takes the first four of them.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
  gpus="${GPUS:-${#visible[@]}}"
elif [ -n "${GPUS:-}" ]; then
  gpus="$GPUS"
elif command -v nvidia-smi >/dev/null; then
  gpus="$(nvidia-smi --list-gpus | wc -l)"
else
  echo 'error: there is no nvidia-smi to count the GPUs; set GPUS=N, or use launch/single_host.sh' >&2
  exit 2
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/cmtkd_jax/compiled}"
exec python "$(dirname "$0")/local_processes.py" --processes="$gpus" --gpus -- "$@"
