#!/usr/bin/env bash
# Everything that a GPU must show, in ten minutes at most, as one table.
#
#   benchmarks/gpu.sh [OUT]             the 7B model on one card; OUT (gpu_figures/) gets table.md and each part's log
#   benchmarks/gpu.sh --small [OUT]     all of it at a small size on a CPU, to see that it runs
#
# Parts have a time limit each, and run whatever became of those before; the table says why one has no figures. Exit status: 0 if all
# parts ended well, 1 if not. Needs pip install -e '.[cuda,test]'.
set -uo pipefail
cd "$(dirname "$0")/.."

small=""
if [[ ${1:-} == --small ]]; then
  small=1
  shift
fi
out=${1:-gpu_figures}
mkdir -p "$out" || exit 2
rm -f "$out"/*.log "$out"/*.status
failed=0

# part NAME SECONDS COMMAND...: runs a command for so many seconds at most.
part() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  echo "$name: $*" >&2
  timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2> "$out/$name.err"
  status=$?
  echo "$status $((SECONDS - begin)) $limit" > "$out/$name.status"
  echo "$name: $((SECONDS - begin)) s, exit status $status" >&2
  if [[ $status != 0 ]]; then
    failed=1
  fi
}

if [[ $small ]]; then
  export JAX_PLATFORMS=cpu
  step=(--steps=2 --of=ours)
  draw=(--config=configs/shapes.py --steps=2 --rounds=1 --no-torch)
  few=1 one=1 many=2
  tests=(tests/test_solvers.py)
else
  export JAX_PLATFORMS=cuda,cpu
  step=(--config=configs/orthus_7b.py:post-h200-1 --steps=8)
  draw=(--seven-b --rounds=1 --no-torch)
  few=25 one=1 many=8,64
  tests=(tests/test_gpu.py tests/test_attention.py tests/test_heads.py tests/test_solvers.py)
fi
int8=(--config.sampling.weights=int8 --config.sampling.cache=int8)

# Compiling takes most of the time: on an H100 the first 7B picture wasn't there after two minutes (docs/performance.md), so batches are
# parts of their own, the most telling first.
part step 100 python benchmarks/train_step.py "${step[@]}" --json
part draw 160 python benchmarks/generate.py "${draw[@]}" --markdown --batches="$one"
part draw_many 130 python benchmarks/generate.py "${draw[@]}" --markdown --batches="$many"
part draw_int8 90 python benchmarks/generate.py "${draw[@]}" --markdown --batches="$one" "${int8[@]}"
part draw_few_steps 60 python benchmarks/generate.py "${draw[@]}" --markdown --batches="$one" --steps="$few" --config.sampling.solver=dpm
# Products in full precision, as the tests' tolerances are those of float32.
part tests 60 env JAX_DEFAULT_MATMUL_PRECISION=highest python -m pytest -m "not slow" -p no:cacheprovider "${tests[@]}"

python benchmarks/gpu_table.py "$out" > "$out/table.md" || failed=1
cat "$out/table.md"
exit $failed
