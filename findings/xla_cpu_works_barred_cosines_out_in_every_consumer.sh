#!/usr/bin/env bash
# An optimization barrier doesn't keep a CPU's compiler from working the same cosines out at every place that uses them.
#
# One would guess: what stands behind jax.lax.optimization_barrier is computed once, as jax's documentation has it keep the compiler
#   from moving operations across; it is what one reaches for where XLA repeats an expensive value in several loops.
# What happens: XLA's CPU backend takes the barrier out before it fuses loops. Four layers that rotate by the same cosines compute
#   them four times, with the barrier and without; a table that is looked up stays one.
# Why it matters here: rotary positions were worked out in float32 for every head and layer, forwards and backwards: 5 layers took
#   1.4 to 1.6 times as long for norm and rotation as with a table, and the barrier changed nothing (`models/attention.looked_up`).
# Versions: jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer; x86 CPUs. Seen on 2026-11-30.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
EXPECTED="none 4, barrier 4, table 0"  # cosines in the compiled program

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/rotations.py" << 'PYTHON'
import re

import jax
import jax.numpy as jnp
import numpy as np

FREQUENCIES = np.float32(100.0) ** (-np.arange(24, dtype=np.float32) / 24)
TABLE = [f(np.arange(64, dtype=np.float32)[:, None] * FREQUENCIES) for f in (np.cos, np.sin)]


def layers(x, position, how):
  if how == "table":
    cos, sin = (jnp.take(jnp.asarray(t), position, axis=0) for t in TABLE)
  else:
    angle = position[:, None].astype(jnp.float32) * FREQUENCIES
    cos, sin = jnp.cos(angle), jnp.sin(angle)
  if how == "barrier":
    cos, sin = jax.lax.optimization_barrier((cos, sin))
  for _ in range(4):
    a, b = jnp.split(jnp.tanh(x), 2, axis=-1)
    x = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1) @ jnp.ones((48, 48))
  return x


found = []
for how in ("none", "barrier", "table"):
  lowered = jax.jit(layers, static_argnums=2).lower(jnp.zeros((2, 64, 48)), jnp.arange(64), how)
  assert ("optimization_barrier" in lowered.as_text()) == (how == "barrier")
  found.append(f"{how} {len(re.findall(r' cosine[(]', lowered.compile().as_text()))}")
print(", ".join(found))
PYTHON
"$work/venv/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
found=$(JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/rotations.py")
echo "cosines in the compiled program of four layers: $found"
if [ "$found" = "$EXPECTED" ]; then
  echo "as described: worked out once per layer in spite of the barrier"
else
  echo "CHANGED: it isn't as described any more (expected: $EXPECTED)"
  exit 1
fi
