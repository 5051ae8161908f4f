#!/usr/bin/env bash
# A CPU's training step of convolutions takes longer with XLA's default library than without it.
#
# One would guess: the library that XLA chooses by itself on a CPU is at least as fast as the one that it replaced.
# What happens: since XLA hands a CPU's products and convolutions to YNNPACK, the gradient of a small convolutional network
#   takes more than twice as long (1.3 and 1.6 times with 0.12.0.1), above all its kernels' part. What hands them back is a switch
#   with "experimental" in its name and nothing as its value.
# Why it matters here: a VQGAN is trained on CPUs in the small recipe, and `parallel/compiler.py` asks for the older library:
#   loss and gradient of the quickstart's VQGAN take 381 ms for 548.
# Versions: jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer; AMD EPYC with AVX-512, two cores. Seen on 2026-11-28.
#
# Each setting runs in a process of its own, three times in turns; the fastest of each are compared. Other work on the same cores
# narrows the difference: run it on a quiet machine.
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
LEAST=1.5  # the ratio below which this is no longer so

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 || exit 2
cat > "$work/step.py" << 'PYTHON'
import time

import jax
import jax.numpy as jnp


def loss(kernels, x):
  for k in kernels:
    x = jax.nn.silu(jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
  return jnp.mean(x * x)


key = jax.random.key(0)
x = jax.random.normal(key, (32, 16, 16, 32))
kernels = [jax.random.normal(jax.random.fold_in(key, i), (3, 3, 32, 32)) / 17 for i in range(6)]
step = jax.jit(jax.grad(loss))
jax.block_until_ready(step(kernels, x))
fastest = 9.0
for _ in range(12):
  begin = time.perf_counter()
  jax.block_until_ready(step(kernels, x))
  fastest = min(fastest, time.perf_counter() - begin)
print(f"{1e3 * fastest:.2f}")
PYTHON
"$work/venv/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
export JAX_PLATFORMS=cpu
for _ in 1 2 3; do
  "$work/venv/bin/python" "$work/step.py" >> "$work/default"
  XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= "$work/venv/bin/python" "$work/step.py" >> "$work/without"
done
default=$(sort -n "$work/default" | head -1)
without=$(sort -n "$work/without" | head -1)
echo "gradient of six convolutions: $default ms by default, $without ms without YNNPACK"
if python3 -c 'import sys; default, without, least = map(float, sys.argv[1:]); sys.exit(default / without <= least)' \
  "$default" "$without" "$LEAST"; then
  echo "as described: more than $LEAST times as long by default"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
