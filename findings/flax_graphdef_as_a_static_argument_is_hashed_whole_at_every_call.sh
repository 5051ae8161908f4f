#!/usr/bin/env bash
# An nnx.GraphDef given to jax.jit as a static argument is hashed anew, all of it, at each call.
#
# One would guess: a call of a compiled function costs tens of microseconds, whatever the model, as a GraphDef is made to be hashed
#   (it is how nnx.split and jax.jit go together) and never changes, so that its hash is kept, as of a string.
# What happens: each call walks through every node and variable of it in Python, sorts their metadata's keys and hashes these. That
#   is milliseconds for a small model of some dozens of layers, more than many a program takes, and grows with the model.
# Why it matters here: an engine that generates calls a few programs in turns, with the model as a static argument. It took 7 ms of
#   each call; models/params.py keeps the hash beside the GraphDef.
# Versions: flax 0.12.8, jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-30.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/calls.py" << 'PYTHON'
import sys
import time

import flax
from flax import nnx
import jax
import jax.numpy as jnp


class Kept:
  """A GraphDef whose hash is computed once."""

  def __init__(self, graphdef):
    self.graphdef, self.hash = graphdef, hash(graphdef)

  def __hash__(self):
    return self.hash

  def __eq__(self, other):
    return self is other or self.graphdef == other.graphdef


class Model(nnx.Module):
  def __init__(self, layers):
    self.layers = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(layers)])


@jax.jit
def nothing(x):
  return x


static = jax.jit(lambda graphdef, x: x, static_argnums=0)


def per_call(f, *args, calls=50):
  f(*args).block_until_ready()
  best = float("inf")
  for _ in range(5):
    begin = time.perf_counter()
    for _ in range(calls):
      f(*args)
    best = min(best, (time.perf_counter() - begin) / calls)
  return best * 1e6


def python_functions(f, *args):
  """Called by one call of what is compiled already."""
  seen = []
  sys.setprofile(lambda frame, event, _: event == "call" and seen.append(frame.f_code.co_qualname))
  f(*args)
  sys.setprofile(None)
  return sum("__hash__" in name for name in seen)


print("flax", flax.__version__, "jax", jax.__version__, jax.default_backend())
x = jnp.ones(3)
print(f"no model: {per_call(nothing, x):.0f} us a call")
hashes = []
for layers in (10, 40):
  graphdef, _ = nnx.split(Model(layers))
  whole, kept = per_call(static, graphdef, x), per_call(static, Kept(graphdef), x)
  hashes.append(python_functions(static, graphdef, x))
  print(f"{layers} layers: {whole:.0f} us a call, {hashes[-1]} __hash__ in Python; with its hash kept {kept:.0f} us")
sys.exit(not (hashes[0] > 10 and hashes[1] > 3 * hashes[0] and whole > 5 * kept))
PYTHON
if JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/calls.py"; then
  echo "as described: each call hashes every variable, and that is most of its time"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
