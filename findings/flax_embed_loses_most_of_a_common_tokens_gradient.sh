#!/usr/bin/env bash
# In mixed precision nnx.Embed loses most of the gradient of a token that occurs thousands of times in a batch.
#
# One would guess: `nnx.Embed(param_dtype=float32, dtype=bfloat16)`, flax's mixed precision, gives its float32 table a gradient
#   that is good to bfloat16's rounding, a part in 256, as nnx.Linear's is, whose sums over rows are float32.
# What happens: the table is cast ahead of the lookup, so the lookup's gradient, a scatter-add, has bfloat16 sums: one that
#   has come to 256 times an increment stands still. A token that is there 4,096 times, each with a gradient of 1, gets 256; at the
#   same rows a Linear's bias gets 4,096. Nothing is said, and the loss still falls: the commonest tokens alone learn slowly.
# Why it matters here: rows of a picture's codes, separators and begin-of-image are such tokens; our own lookup did the same
#   (`models/lookup.py` adds up in float32 now).
# Versions: flax 0.12.8, jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer; on a CPU. Seen on 2026-12-01.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
MOST=0.1  # of the right gradient, at most so much comes

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$MOST" << 'PYTHON'
import sys

import flax
from flax import nnx
import jax
import jax.numpy as jnp

TIMES = 4096
rngs = nnx.Rngs(0)
embed = nnx.Embed(4, 2, param_dtype=jnp.float32, dtype=jnp.bfloat16, rngs=rngs)
linear = nnx.Linear(2, 2, param_dtype=jnp.float32, dtype=jnp.bfloat16, rngs=rngs)
ids = jnp.full((TIMES,), 3)


def loss(embed, linear, of):
  x = embed(ids)
  y = linear(jnp.zeros_like(x))
  return (x if of == "embed" else y).astype(jnp.float32).sum()


print("flax", flax.__version__, "jax", jax.__version__)
table = nnx.grad(lambda e: loss(e, linear, "embed"))(embed)["embedding"][...]
bias = nnx.grad(lambda l: loss(embed, l, "linear"))(linear)["bias"][...]
print(f"a token that is there {TIMES} times, gradient 1 each: {float(table[3, 0]):g} in a table of {table.dtype}")
print(f"a bias at the same rows: {float(bias[0]):g}")
right = abs(float(bias[0]) - TIMES) < TIMES / 128
if right and float(table[3, 0]) < float(sys.argv[1]) * TIMES:
  print("as described: the bias gets its whole gradient, and the token hardly any")
else:
  print("CHANGED: it isn't as described any more")
  sys.exit(1)
PYTHON
