#!/usr/bin/env bash
# jax looks at jax_enable_compilation_cache at a process's first compilation, and never again.
#
# One would guess: jax.config.update("jax_enable_compilation_cache", …) holds for what is compiled after it, as other options do, so
#   one program, or one test, can be compiled without the cache of compiled programs, and the next with it.
# What happens: the first compilation decides. Switched off later, programs are still written to the cache; switched on later, none
#   is, and nothing says so. compilation_cache.reset_cache() (of jax.experimental) makes it look anew.
# Why it matters here: `orthus plan` compiles without the cache. Called from Python, ahead of anything else, it left the process
#   without one for good: a suite of tests compiled everything anew from there on (tests/conftest.py resets it).
# Versions: jax and jaxlib 0.10.2, Python 3.11 or newer. Seen on 2026-12-01.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
EXPECTED="switched off later: written; switched on later: not written; reset, and on: written"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env" || exit 2
"$work/env/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 || exit 2
cat > "$work/toggle.py" << 'PYTHON'
import os
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np

folder, first, then, reset = sys.argv[1], *(a == "yes" for a in sys.argv[2:])
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def first_program(x):
  return x + 1


def later_program(x):
  return jnp.tanh(x @ x)


x = np.ones((2, 2), np.float32)
jax.config.update("jax_enable_compilation_cache", first)
jax.jit(first_program)(x).block_until_ready()
jax.config.update("jax_enable_compilation_cache", then)
if reset:
  compilation_cache.reset_cache()
jax.jit(later_program)(x).block_until_ready()
entries = os.listdir(folder) if os.path.isdir(folder) else []
print("written" if any("later_program" in e for e in entries) else "not written")
PYTHON
export JAX_PLATFORMS=cpu
run() { "$work/env/bin/python" "$work/toggle.py" "$@"; }
"$work/env/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
line="switched off later: $(run "$work/a" yes no no); switched on later: $(run "$work/b" no yes no)"
line="$line; reset, and on: $(run "$work/c" no yes yes)"
if [ "$line" = "$EXPECTED" ]; then
  echo "as described: $line"
else
  echo "CHANGED: $line (expected: $EXPECTED)"
  exit 1
fi
