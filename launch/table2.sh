#!/usr/bin/env bash
# Table 2 of the paper, ResNet18 on CIFAR-100, on one GPU or TPU slice: first the step benchmark, then the rows.
#
#   launch/table2.sh --data=npy:DIR --out=DIR [options] [-- flags of cmtkd_jax.main]
#
#   --data=npy:DIR   {train,test}_{images,labels}.npy of CIFAR-100
#   --out=DIR        for the table and each run's summary.json and metrics.jsonl; what is here already is not run again
#   --seeds=3        seeds 0, 1, 2 of every row
#   --epochs=120     the learning rate falls at 5/12 and 10/12 of them
#   --minutes=M      stop before a row that would end later than M minutes from now; by default never
#   --jobs=1         runs at once, of several seeds; three fit a large GPU
#   --rows=a,b,...   some of the rows, each after those that it learns from
#   --workdir=DIR    for checkpoints and logs, by default OUT/runs
#   --benchmark=ARGS of benchmarks/train_step.py; '' for none
#
# A row's time is planned from the first 50 steps of its first run. The same command goes on where it was stopped.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
data='' out='' seeds=3 epochs=120 minutes='' jobs=1 workdir='' benchmark='--preset=cifar100 --dtype=bfloat16'
all=full_precision,single2,cmtkd,kd,single8,single6,single4,average_teacher,without_attention,without_mutual_learning
rows="$all"
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    --) shift; break ;;
    --data=* | --out=* | --seeds=* | --epochs=* | --minutes=* | --jobs=* | --rows=* | --workdir=* | --benchmark=*)
      option="${1%%=*}"; printf -v "${option#--}" '%s' "${1#*=}"; shift ;;
    *) fail "$1 is not an option; see launch/table2.sh --help (flags of cmtkd_jax.main come after --)" ;;
  esac
done
[ -n "$out" ] || fail "--out= is missing; name the folder for the results"
[[ $data == npy:?* ]] || fail "--data=$data is not npy:DIR; name the folder of CIFAR-100 as .npy files"
for file in {train,test}_{images,labels}.npy; do
  [ -f "${data#npy:}/$file" ] || fail "--data=$data: there is no ${data#npy:}/$file; launch/prepare_cifar.py writes it"
done
for name in seeds epochs jobs minutes; do
  [[ ${!name} =~ ^[1-9][0-9]{0,5}$ || $name${!name} == minutes ]] || fail "--$name=${!name} is not from 1 to 999999"
done
for row in ${rows//,/ }; do [[ ,$all, == *,"$row",* ]] || fail "--rows: $row is not one of $all"; done
data="npy:$(realpath "${data#npy:}")"
mkdir -p "$out" 2>/dev/null || fail "--out=$out cannot be made; name a folder that can be written"
out="$(realpath "$out")"
workdir="$(realpath -m "${workdir:-$out/runs}")"
checkout="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}"
recipe="$checkout/configs/table2_resnet18_cifar100.py"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/cmtkd_jax/compiled}"
[ "$jobs" = 1 ] || export XLA_PYTHON_CLIENT_PREALLOCATE=false
decay="$(awk -v e="$epochs" 'BEGIN {printf "%g, %g epochs", e * 5 / 12, e * 10 / 12}')"
flags=(--config.data.name="$data" --config.duration="$epochs epochs" --config.optimizer.decay_at="$decay"
  --config.dtype=bfloat16 --workdir="$workdir" "$@")
arguments="$workdir: ${flags[*]}"
[ ! -f "$out/arguments.txt" ] || [ "$(cat "$out/arguments.txt")" = "$arguments" ] ||
  fail "--out=$out holds a table of other arguments ($out/arguments.txt); repeat these, or give another --out"
mkdir -p "$workdir/logs" 2>/dev/null || fail "--workdir=$workdir cannot be made; name a folder that can be written"
echo "$arguments" >"$out/arguments.txt"
count="$(python -c 'import sys, numpy; print(len(numpy.load(sys.argv[1])))' "${data#npy:}/train_labels.npy")"

pids=()
stop() { [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true; wait; }
trap 'stop; echo "interrupted; the same command goes on" >&2; exit 143' INT TERM HUP
reason() { grep -E '^(not run|error): ' "$1" | tail -n 1 || tail -n 1 "$1"; }  # why the run with this log failed
say() { printf '%4d min  %s\n' $((SECONDS / 60)) "$1"; }
over() { [ -n "$minutes" ] && [ $((SECONDS + $1)) -gt $((60 * minutes)) ]; }
leave() {  # Before row $1, which takes $2 seconds.
  say "stopped at $1: about $(($2 / 60 + 1)) min more would be past --minutes=$minutes; the same command goes on"
  finish; exit
}

finish() {  # Prints the table of what is finished, and writes it.
  local table=(python -m cmtkd_jax.main --mode=summarize --config="$recipe" "${flags[@]}"
    --config.table.seeds="($(seq -s, 0 $((seeds - 1))),)")
  "${table[@]}" --output=markdown >"$out/table.md" && "${table[@]}" --output=json >"$out/table.json" && "${table[@]}"
}

seconds_left() {  # Of a run, from its newest row of metrics since $2; a tenth more for evaluations. Nothing before one.
  [ ! -f "$1/metrics.jsonl" ] || awk -v begin="$2" -v epochs="$epochs" -v count="$count" '/images_per_second/ {
    n = split($0, part, /[",: {}]+/)
    for (i = 1; i < n; i++) row[part[i]] = part[i + 1]
    if (row["time"] > begin) left = int(1.1 * (epochs - row["train/epoch"]) * count / row["perf/images_per_second"]) + 1
  } END { if (left) print left }' "$1/metrics.jsonl"
}

train() {  # The seeds $2... of row $1, at once; sets `took` to the seconds of such a group from beginning to end.
  local row="$1" begin left='' pid seed started=$SECONDS
  begin="$(date +%s)"; shift; pids=()
  for seed in "$@"; do
    python -m cmtkd_jax.main --mode=table --config="$recipe:$row" --config.table.seeds="($seed,)" "${flags[@]}" \
      >"$workdir/logs/${row}_seed$seed.log" 2>&1 & pids+=($!)
  done
  while kill -0 "${pids[@]}" 2>/dev/null; do
    sleep 1
    [ -z "$left" ] || continue
    left="$(seconds_left "$workdir/$row/seed$1" "$begin")" && [ -n "$left" ] || continue
    say "$row, seeds $*: about $((left / 60 + 1)) min by its first steps"
    if over "$left"; then stop; leave "$row" "$left"; fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || true; done
  pids=() took=$((SECONDS - started))
  for seed in "$@"; do
    [ -f "$workdir/$row/seed$seed/summary.json" ] ||
      fail "$row, seed $seed did not end: $(reason "$workdir/logs/${row}_seed$seed.log"); see $workdir/logs"
    mkdir -p "$out/$row/seed$seed" && cp "$workdir/$row/seed$seed"/{summary.json,metrics.jsonl} "$out/$row/seed$seed"
  done
  say "$row, seeds $*: done"
}

if [ -n "$benchmark" ] && [ ! -f "$out/train_step.md" ]; then
  say "benchmarks/train_step.py $benchmark"
  # shellcheck disable=SC2086  # several arguments
  python "$checkout/benchmarks/train_step.py" $benchmark --out="$workdir/train_step.json" >"$workdir/logs/train_step.log" 2>&1 &
  pids=($!)
  wait "${pids[0]}" || fail "benchmark: $(tail -n 1 "$workdir/logs/train_step.log"); --benchmark= leaves it out"
  pids=()
  cp "$workdir"/train_step.{json,md} "$out"
fi
for row in ${rows//,/ }; do
  took=0 missing=()
  for seed in $(seq 0 $((seeds - 1))); do [ -f "$out/$row/seed$seed/summary.json" ] || missing+=("$seed"); done
  for ((i = 0; i < ${#missing[@]}; i += jobs)); do
    if over "$took"; then leave "$row" "$took"; fi
    train "$row" "${missing[@]:i:jobs}"
  done
done
finish
