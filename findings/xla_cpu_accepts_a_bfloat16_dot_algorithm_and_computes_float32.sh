#!/usr/bin/env bash
# On a CPU, jax.lax.dot accepts the algorithm BF16_BF16_F32 and computes another.
#
# One would guess: `precision="BF16_BF16_F32"` (a jax.lax.DotAlgorithmPreset) computes as its name says, factors rounded to
#   bfloat16, or is refused, as TF32_TF32_F32 is on a CPU. jax' page on precision says that a preset "names the computation exactly".
# What happens: it passes that check, and gives the bits of plain float32 products, at their speed, though the CPU may have
#   instructions for bfloat16 that are several times as fast. So does `jax.default_matmul_precision` with that name.
# Why it matters here: numbers tried out on a CPU say nothing of what the preset does to a model's loss on other devices, and the
#   short way to a CPU's fast bfloat16 products isn't one; models/products.py rounds factors itself.
# Versions: jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-29.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/presets.py" << 'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__, jax.default_backend())
a, b = (jax.random.normal(jax.random.key(i), (256, 256)) for i in range(2))
plain = np.asarray(jax.jit(jnp.dot)(a, b))


def rounded(x):
  return x.astype(jnp.bfloat16).astype(jnp.float32)


print(f"factors rounded by hand: differs from plain float32 by {np.abs(np.asarray(rounded(a) @ rounded(b)) - plain).max():.3f}")
found = np.asarray(jax.jit(lambda a, b: jnp.dot(a, b, precision="BF16_BF16_F32"))(a, b))
print(f"precision=BF16_BF16_F32: differs by {np.abs(found - plain).max():.3f}")
same = np.array_equal(found, plain)
try:
  jax.jit(lambda a, b: jnp.dot(a, b, precision="TF32_TF32_F32"))(a, b)
  refused = False
except ValueError as e:
  refused = True
  print(f"precision=TF32_TF32_F32: {e}")
with jax.default_matmul_precision("BF16_BF16_F32"):
  found = np.asarray(jax.jit(lambda a, b: a @ b)(a, b))
print(f"default_matmul_precision: differs by {np.abs(found - plain).max():.3f}")
sys.exit(not (same and refused and np.array_equal(found, plain)))
PYTHON
if JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/presets.py"; then
  echo "as described: one that a CPU can't do is refused, BF16_BF16_F32 is accepted and changes no bit"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
