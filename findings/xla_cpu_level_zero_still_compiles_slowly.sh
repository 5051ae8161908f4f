#!/usr/bin/env bash
# XLA's optimization level 0 leaves most of a CPU program's compile time where it was.
#
# One would guess: with --xla_backend_optimization_level=0, which tests ask for to compile quickly, what is left is the work that
#   every compilation needs.
# What happens: three quarters of what is left go into the emitters that lower fusions by MLIR, which the level doesn't turn down.
#   With --xla_cpu_use_fusion_emitters=false the gradient of a small transformer compiles in a quarter of the time at level 0.
#   The switch isn't a free one: a training step of the quickstart's size, at the usual level, took 50 s to compile for 28 (once).
#   jaxlib 0.12 knows neither switch nor older emitters.
# Why it matters here: the tests compile some thousands of small programs (`tests/conftest.py`).
# Versions: jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer; AMD EPYC, two cores. Seen on 2026-11-29.
#
# Both settings take turns in processes of their own; the fastest of three compilations of each, three times, are compared.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
LEAST=2.0  # the ratio below which this is no longer so

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/compile.py" << 'PYTHON'
import time

import jax
import jax.numpy as jnp


def layer(x, w):
  y = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
  q, k, v = (jnp.einsum("btd,dhk->bhtk", y, w[n]) for n in "qkv")
  scores = jnp.where(jnp.tri(q.shape[2], dtype=bool), q @ k.swapaxes(-1, -2), -1e9)
  x = x + jnp.einsum("bhtk,hkd->btd", jax.nn.softmax(scores, -1) @ v, w["o"])
  return x + jax.nn.silu(x @ w["up"]) @ w["down"]


def loss(weights, x):
  return jnp.square(jax.lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0]).sum()


shapes = {"q": (16, 4, 4), "k": (16, 4, 4), "v": (16, 4, 4), "o": (4, 4, 16), "up": (16, 24), "down": (24, 16)}
weights = {n: jnp.ones((3, *s)) for n, s in shapes.items()}
step = jax.jit(jax.value_and_grad(loss))
fastest = 99.0
for _ in range(3):
  jax.clear_caches()
  lowered = step.lower(weights, jnp.ones((2, 10, 16)))
  begin = time.perf_counter()
  lowered.compile()
  fastest = min(fastest, time.perf_counter() - begin)
print(f"{fastest:.3f}")
PYTHON
"$work/venv/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
export JAX_PLATFORMS=cpu
level=--xla_backend_optimization_level=0
for _ in 1 2 3; do
  XLA_FLAGS=$level "$work/venv/bin/python" "$work/compile.py" >> "$work/default"
  XLA_FLAGS="$level --xla_cpu_use_fusion_emitters=false" "$work/venv/bin/python" "$work/compile.py" >> "$work/without"
done
default=$(sort -n "$work/default" | head -1)
without=$(sort -n "$work/without" | head -1)
echo "a transformer's gradient at level 0: $default s by default, $without s without the emitters by MLIR"
if python3 -c 'import sys; default, without, least = map(float, sys.argv[1:]); sys.exit(default / without <= least)' \
  "$default" "$without" "$LEAST"; then
  echo "as described: more than $LEAST times as long by default"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
