#!/usr/bin/env bash
# On a CPU with instructions for bfloat16, XLA uses them only if the product's result is asked for in float32.
#
# One would guess: a product of bfloat16 matrices in bfloat16, what a model in bfloat16 consists of, is the fastest that such a CPU
#   has, and one in float32 from the same factors, which writes twice as much, takes no less.
# What happens: with a result in bfloat16 it takes longer than in float32 throughout; with `preferred_element_type=float32`
#   it is several times as fast as either. The gradient of a layer's weights, which sums over the first axis of both
#   factors, is turned into float32 products even then, unless a copy that isn't a transposition stands ahead of it.
# Why it matters here: a model with dtype=bfloat16 trains slower than in float32 on such CPUs; models/products.py rounds the
#   factors alone, and writes the weights' gradient out the long way: the quickstart's step takes 0.7 of the time.
# Versions: jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer; an Intel Xeon with AMX, two cores. Seen on 2026-11-29.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried (as without such instructions).
set -euo pipefail
LEAST=2.0  # how much faster a result in float32 makes the same product, at least

grep -qwE "amx_bf16|avx512_bf16" /proc/cpuinfo || { echo "this CPU has no instructions for bfloat16"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/products.py" << 'PYTHON'
import sys
import time

import jax
import jax.numpy as jnp

print("jax", jax.__version__)
ROWS, D, F = 1280, 192, 512
key = jax.random.key(0)
x, w, g = (jax.random.normal(key, shape).astype(jnp.bfloat16) for shape in ((ROWS, D), (D, F), (ROWS, F)))


def gflops(f, *factors):
  f = jax.jit(f)
  f(*factors).block_until_ready()
  fastest = 9.0
  for _ in range(15):
    begin = time.perf_counter()
    for _ in range(10):
      y = f(*factors)
    y.block_until_ready()
    fastest = min(fastest, (time.perf_counter() - begin) / 10)
  return 2e-9 * ROWS * D * F / fastest


def product(a, b, over, dtype):
  return jax.lax.dot_general(a, b, (over, ((), ())), preferred_element_type=dtype)


found = {
    "x w, all float32": gflops(jnp.dot, x.astype(jnp.float32), w.astype(jnp.float32)),
    "x w, all bfloat16": gflops(lambda a, b: product(a, b, ((1,), (0,)), jnp.bfloat16), x, w),
    "x w, bfloat16 to float32": gflops(lambda a, b: product(a, b, ((1,), (0,)), jnp.float32), x, w),
    "x' g, bfloat16 to float32": gflops(lambda a, b: product(a, b, ((0,), (0,)), jnp.float32), x, g),
    "x' g, the same behind a row of zeros": gflops(
        lambda a, b: product(jnp.pad(a.T, ((0, 1), (0, 0))), b, ((1,), (0,)), jnp.float32)[:-1], x, g
    ),
}
for name, rate in found.items():
  print(f"{name:40s} {rate:6.0f} GFLOP/s")
single, half, mixed, gradient, padded = found.values()
least = float(sys.argv[1])
sys.exit(not (half < single and mixed > least * max(single, half) and padded > least * gradient))
PYTHON
if JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/products.py" "$LEAST"; then
  echo "as described: bfloat16 is slower than float32, and more than $LEAST times as fast with a result in float32"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
