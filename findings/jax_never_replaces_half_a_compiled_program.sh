#!/usr/bin/env bash
# An entry of jax's cache of compiled programs that was cut short is warned of, and stays, at every start from then on.
#
# One would guess: where an entry of the persistent compilation cache can't be read, the program is compiled and what comes of it takes
#   the entry's place; entries appear whole, or not at all.
# What happens: an entry is written in place, so a process that is killed meanwhile (a preempted machine, memory) leaves half of one.
#   Whoever reads it warns and compiles; what was compiled isn't written, as a file of that name is there. So it goes at each start.
# Why it matters here: a restart after a preemption is what the cache is for, and a 7B step takes minutes to compile. The commands
#   remove such entries as they are met (orthus_jax/parallel/compiled_programs.py).
# Versions: jax and jaxlib 0.10.2, Python 3.11 or newer. Seen on 2026-11-30, and with jax 0.12.0 too.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
EXPECTED="warned of 3 times, still half"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env" || exit 2
"$work/env/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 || exit 2
cat > "$work/compile.py" << 'PYTHON'
import sys
import warnings

import jax
import jax.numpy as jnp

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def some_program(x):
  return jnp.tanh(x @ x)


with warnings.catch_warnings(record=True) as seen:
  warnings.simplefilter("always")
  jax.jit(some_program)(jnp.ones((8, 8))).block_until_ready()
print(sum("persistent compilation cache" in str(w.message) for w in seen))
PYTHON
export JAX_PLATFORMS=cpu
run() { "$work/env/bin/python" "$work/compile.py" "$work/cache"; }
"$work/env/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
echo "an empty cache: $(run) warnings; again: $(run)"
entry=$(ls "$work"/cache/jit_some_program-*-cache) || exit 2
whole=$(stat -c %s "$entry")
truncate -s $((whole / 2)) "$entry"  # as a kill leaves it
warned=0
for start in 1 2 3; do
  n=$(run)
  echo "start $start with $((whole / 2)) of $whole bytes: $n warning(s), then $(stat -c %s "$entry") bytes"
  warned=$((warned + n))
done
line="warned of $warned times, still $([ "$(stat -c %s "$entry")" = $((whole / 2)) ] && echo half || echo not half)"
if [ "$line" = "$EXPECTED" ]; then
  echo "as described: $line"
else
  echo "CHANGED: $line (expected: $EXPECTED)"
  exit 1
fi
