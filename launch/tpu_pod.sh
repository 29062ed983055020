#!/usr/bin/env bash
# Trains on all hosts of a TPU slice: the same command everywhere, the hosts find each other.
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/imagenet_resnet18.py --workdir=gs://BUCKET/runs/a \
#     --config.data.dir=gs://BUCKET/tensorflow_datasets
#
# Copies the files of this checkout that git tracks to every host, as they are now (a new file: git add it first),
# installs what is missing, and starts. Work and data directories must be in a bucket, which all hosts see. Started again
# after a preemption, it goes on from the last checkpoint.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac
name="${1:?name of the TPU}"
zone="${2:?zone of the TPU}"
shift 2
cd "$(dirname "$0")/.."
archive="$(mktemp -d)/cmtkd_jax.tar.gz"
# A commit of what has changed since the last one, which git keeps nowhere; nothing where nothing has.
changed="$(git -c user.name=tpu_pod -c user.email=tpu_pod stash create)"
git archive --format=tar.gz --output="$archive" "${changed:-HEAD}"
gcloud compute tpus tpu-vm scp "$archive" "$name:cmtkd_jax.tar.gz" --zone="$zone" --worker=all
# The package is removed first: a file that is gone here would stay there.
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  set -e
  rm -rf cmtkd_jax/cmtkd_jax && mkdir -p cmtkd_jax && tar -xzf cmtkd_jax.tar.gz -C cmtkd_jax && cd cmtkd_jax
  [ -d .venv ] || python3 -m venv .venv
  .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'
  .venv/bin/python -m cmtkd_jax.main $(printf '%q ' "$@")"
