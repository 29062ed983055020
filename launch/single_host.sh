#!/usr/bin/env bash
# Trains on every accelerator of this machine, in one process, the batch split evenly among them.
#
#   launch/single_host.sh --config=configs/cifar100_resnet18.py --workdir=runs/a
#
# Paths are those of the folder that you are in. CUDA_VISIBLE_DEVICES=0,1 restricts it to some GPUs. Compiled steps are
# cached, so that a restart begins at once.
set -euo pipefail
checkout="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/cmtkd_jax/compiled}"
exec python -m cmtkd_jax.main "$@"
