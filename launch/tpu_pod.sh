#!/usr/bin/env bash
# Trains on all hosts of a TPU slice: the same command everywhere, the hosts find each other.
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/imagenet_resnet18.py --workdir=gs://BUCKET/runs/a \
#     --config.data.dir=gs://BUCKET/tensorflow_datasets
#
# Copies this checkout to every host, installs what is missing, and starts. Work and data directories must be in a bucket,
# which all hosts see. Started again after a preemption, it goes on from the last checkpoint.
set -euo pipefail
name="${1:?name of the TPU}"
zone="${2:?zone of the TPU}"
shift 2
cd "$(dirname "$0")/.."
archive="$(mktemp -d)/cmtkd_jax.tar.gz"
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:cmtkd_jax.tar.gz" --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  set -e
  mkdir -p cmtkd_jax && tar -xzf cmtkd_jax.tar.gz -C cmtkd_jax && cd cmtkd_jax
  [ -d .venv ] || python3 -m venv .venv
  .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'
  .venv/bin/python -m cmtkd_jax.main $(printf '%q ' "$@")"
