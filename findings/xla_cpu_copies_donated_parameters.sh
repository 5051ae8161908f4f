#!/usr/bin/env bash
# A training step on a CPU copies the parameters that it was given for good, and doesn't copy those that it wasn't.
#
# One would guess: a donated state is updated in place, which saves memory and, if anything, time; jax's documentation recommends it
#   for training steps.
# What happens: of four layers' weights, those of three are copied first thing in the step. Their new values don't wait for the last
#   product that reads the old ones, and a CPU's compiler orders the two by a copy and not by its schedule. Without donation there is
#   no copy at all.
# Why it matters here: the quickstart's step (46 MB of state) took 1.1 times as long with its state donated (twenty rounds in turns);
#   `training/step.jit_step` donates small states on accelerators alone.
# Versions: jax and jaxlib 0.10.2 (0.12.0 alike), numpy 2.4.6, Python 3.11 or newer; x86 CPUs. Seen on 2026-11-30.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
EXPECTED="not donated: 0 copies of weights; donated: 3 copies of weights"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/step.py" << 'PYTHON'
import re

import jax
import jax.numpy as jnp


def step(weights, x):
  def loss(weights):
    y = x
    for w in weights:
      y = jnp.tanh(y @ w)
    return jnp.sum(y)

  return [w - 0.1 * g for w, g in zip(weights, jax.grad(loss)(weights))]


weights = [jnp.ones((64, 64)) for _ in range(4)]
found = []
for name, donated in (("not donated", ()), ("donated", (0,))):
  program = jax.jit(step, donate_argnums=donated).lower(weights, jnp.ones((8, 64))).compile().as_text()
  assert ("input_output_alias" in program) == bool(donated)
  copies = len(re.findall(r"f32\[64,64\]\S* copy[(]", program))
  found.append(f"{name}: {copies} copies of weights")
print("; ".join(found))
PYTHON
"$work/venv/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
found=$(JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/step.py")
echo "the compiled step of four layers: $found"
if [ "$found" = "$EXPECTED" ]; then
  echo "as described: what is donated is copied, and what isn't is not"
else
  echo "CHANGED: it isn't as described any more (expected: $EXPECTED)"
  exit 1
fi
