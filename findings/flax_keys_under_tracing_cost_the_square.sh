#!/usr/bin/env bash
# What keys from flax's nnx.Rngs cost under tracing grows with the square of how many there are.
#
# One would guess: a key from `nnx.Rngs` is a fold_in and a count that goes up by one, so the shapes of a model with 800 parameters
#   (`nnx.eval_shape` or `jax.eval_shape`) take four times as long as those of one with 200.
# What happens: sixteen times as long, 22 s in the place of 0.5 s with keys folded in by hand. The count is a Variable; each time it
#   is set, flax looks for its `sharding` with a default of None, which a traced array hasn't got, and jax words the error
#   that goes with it, which names where each value of the trace so far came from; getattr throws it away.
#   With jax 0.12.0.1 and flax 0.12.12 the same 800 keys take 1 s.
# Why it matters here: every command describes its model so, and it was half of that time (`models/params.py`, Keys).
# Versions: flax 0.12.8, jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-29.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
LEAST=8.0  # four times the keys take so many times as long, or more

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$LEAST" << 'PYTHON'
import sys
import time

import flax
from flax import nnx
import jax


def by_nnx(number):
  rngs = nnx.Rngs(params=0)
  return [jax.random.normal(rngs.params(), (4, 4)) for _ in range(number)]


def by_hand(number):
  key = jax.random.key(0)
  return [jax.random.normal(jax.random.fold_in(key, i), (4, 4)) for i in range(number)]


def seconds(draw, number):
  fastest = float("inf")
  for _ in range(3):
    begin = time.perf_counter()
    jax.eval_shape(lambda: draw(number))
    fastest = min(fastest, time.perf_counter() - begin)
  return fastest


print("flax", flax.__version__, "jax", jax.__version__)
few, many = seconds(by_nnx, 200), seconds(by_nnx, 800)
print(f"nnx.Rngs: 200 keys {few:.2f} s, 800 keys {many:.2f} s, {many / few:.1f} times as long")
few_by_hand, many_by_hand = seconds(by_hand, 200), seconds(by_hand, 800)
print(f"by fold_in: 200 keys {few_by_hand:.2f} s, 800 keys {many_by_hand:.2f} s, {many_by_hand / few_by_hand:.1f} times as long")
if many / few > float(sys.argv[1]):
  print(f"as described: four times the keys take more than {sys.argv[1]} times as long")
else:
  print("CHANGED: it isn't as described any more")
  sys.exit(1)
PYTHON
