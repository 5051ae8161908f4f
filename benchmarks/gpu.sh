#!/usr/bin/env bash
# All that a GPU has to show, on one card, in ten minutes at most: a table in Markdown.
#
#     benchmarks/gpu.sh [--out=gpu.md] [--config=configs/orthus_7b.py:post-h200-1] [--only=step,checks] [--small]
#
# Parts, the most important first; each has its own time limit, runs whatever became of those ahead, and where it gives no figure
# the table has a row that says why. The parts' logs are kept beside the table, in gpu.md.logs/.
#
#   step         the training step of --config: tokens/s, MFU, memory (train_step.py)
#   generation1  the 7B model's pictures one at a time: in bfloat16, in int8, and with fewer steps (gpu_generation.py)
#   generation   8 and 64 at once, likewise
#   checks       cuDNN's attention beside XLA's, the solver's kernel beside the plain loop, and their times (gpu_checks.py)
#   tests        the fast tests that touch what differs on a GPU: platforms, attention, heads, engine, step, and test_gpu.py
#
# --small runs all of it with tiny shapes on whatever jax finds, a CPU too, to try the commands out. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

out=gpu.md config=configs/orthus_7b.py:post-h200-1 only=step,generation1,generation,checks,tests small="" total=600
for option in "$@"; do
  case $option in
    --out=?*) out=${option#*=} ;;
    --config=?*) config=${option#*=} ;;
    --only=?*) only=${option#*=} ;;
    --small) small=--small ;;
    --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"; exit 0 ;;
    *) echo "gpu.sh: unknown option $option: --out=FILE, --config=FILE:ARG, --only=PARTS, --small, --help" >&2; exit 2 ;;
  esac
done
for part in ${only//,/ }; do
  if [[ " step generation1 generation checks tests " != *" $part "* ]]; then
    echo "gpu.sh: --only=$part: choose of step, generation1, generation, checks, tests" >&2
    exit 2
  fi
done

python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [[ ! $small ]] && ! "$python" -c 'import jax; raise SystemExit(jax.default_backend() != "gpu")' 2> /dev/null; then
  echo "gpu.sh: jax finds no GPU (pip install -e '.[cuda,test]'); --small tries the commands out without one" >&2
  exit 2
fi
logs=$out.logs
mkdir -p "$logs" && : > "$logs/parts" || exit 2

# run NAME LIMIT COMMAND...: in at most LIMIT seconds, or what is left of all; what it prints is shown and kept, what it
# complains of is kept.
run() {
  local name=$1 limit=$2 left=$((total - SECONDS)) begin=$SECONDS status=skipped
  shift 2
  [[ ,$only, == *,$name,* ]] || return 0
  ((limit < left)) || limit=$left
  if ((limit >= 10)); then
    echo "[$SECONDS s] $name, at most $limit s: $*"
    timeout --kill-after=5 "$limit" "$@" 2>> "$logs/$name.log" | tee -a "$logs/$name.log" | sed -u 's/^/    /'
    status=${PIPESTATUS[0]}
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$limit" $((SECONDS - begin)) "$status" >> "$logs/parts"
  echo "[$SECONDS s] $name: status $status after $((SECONDS - begin)) s"
}

for part in ${only//,/ }; do rm -f "$logs/$part.log"; done
shapes=() steps=100 few=1 many=64,8
tests=(tests/test_platforms.py tests/test_attention.py tests/test_heads.py tests/test_gpu.py tests/test_engine.py tests/test_step.py)
if [[ $small ]]; then
  many=2 steps=4 tests=(tests/test_platforms.py)
  t=--config.model.transformer v=--config.model.vision_tokenizer
  shapes=(
    $t.width=64 $t.mlp_width=128 $t.layers=2 $t.heads=2 $t.kv_heads=2 $t.head_dim=32 $t.vocab_size=2048 $t.max_positions=256
    $v.resolution=32 $v.base_channels=16 "$v.channel_multipliers=(1,1,1,1)" $v.res_blocks=1 $v.latent_dim=16 $v.codes=512
    $v.norm_groups=8 --config.model.diffusion.width=32 --config.model.diffusion.blocks=2 --config.data.sequence_length=128
    --config.run.batch_size=2
  )
  # Nothing is measured: compile in haste.
  export JAX_DEFAULT_PRNG_IMPL=unsafe_rbg
  export XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
fi
run step 130 "$python" benchmarks/train_step.py --of=ours --steps=4 --json --config="$config" "${shapes[@]}"
run generation1 180 "$python" benchmarks/gpu_generation.py --batches=$few --steps=$steps "${shapes[@]}"
run generation 170 "$python" benchmarks/gpu_generation.py --batches=$many --steps=$steps "${shapes[@]}"
run checks 80 "$python" benchmarks/gpu_checks.py $small
# Tests compare in float32; a GPU would take TF32. They get their devices as they name them.
run tests 120 env JAX_PLATFORMS="$([[ $small ]] && echo "${JAX_PLATFORMS:-cpu}" || echo cuda,cpu)" \
  JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m pytest -vv -p no:cacheprovider -m "not slow" "${tests[@]}"
"$python" benchmarks/gpu_table.py "$logs" --out="$out" $small || exit 1
echo "[$SECONDS s] written to $out"
