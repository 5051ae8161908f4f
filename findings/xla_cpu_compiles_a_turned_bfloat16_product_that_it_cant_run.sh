#!/usr/bin/env bash
# The transposition of a bfloat16 product compiles on a CPU, and fails when it runs.
#
# One would guess: if XLA's CPU backend multiplies bfloat16 matrices into a float32 result, it also does so if the result is
#   transposed; and what a backend can't do is told when it compiles.
# What happens: XLA makes one product of the product and the transposition, whose factors both lie the other way round. The CPU
#   backend has none of that kind for bfloat16, compiles it all the same, and raises UNIMPLEMENTED ("Unsupported element type for
#   DotThunk::Execute: BF16 x BF16 = F32") at the first run. The product alone works, and so does the same transposition behind
#   jax.lax.optimization_barrier.
# Why it matters here: Muon turns tall matrices, and turns them back at the end; on a mesh of several CPU devices, as tests and
#   dry runs have it, the quickstart's second step failed so. training/muon.py has the barrier.
# Versions: jax and jaxlib 0.10.2 (0.12.0 alike), numpy 2.4.6, Python 3.11 or newer; an Intel Xeon with AMX. Seen on 2026-12-01.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried (as without instructions for bfloat16).
set -euo pipefail

grep -qwE "amx_bf16|avx512_bf16" /proc/cpuinfo || { echo "this CPU has no instructions for bfloat16"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/turned.py" << 'PYTHON'
import sys

import jax
import jax.numpy as jnp

print("jax", jax.__version__)
a, b = jnp.ones((24, 192), jnp.bfloat16), jnp.ones((192, 512), jnp.bfloat16)


def product(a, b):
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def runs(what, f):
  compiled = jax.jit(f).lower(a, b).compile()
  try:
    value = float(jax.block_until_ready(compiled(a, b))[0, 0])
  except Exception as e:
    print(f"{what}: compiled, then {type(e).__name__}: {str(e)[-80:]}")
    return False
  print(f"{what}: {value:g}")
  return value == 192.0


found = [
    runs("the product", product),
    runs("the product, transposed", lambda a, b: product(a, b).T),
    runs("the product, transposed behind a barrier", lambda a, b: jax.lax.optimization_barrier(product(a, b)).T),
]
sys.exit(found != [True, False, True])
PYTHON
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/turned.py"
