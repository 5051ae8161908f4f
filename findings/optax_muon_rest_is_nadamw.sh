#!/usr/bin/env bash
# optax.contrib.muon trains what isn't a matrix by NAdamW, not by AdamW.
#
# One would guess: "The non-2D parameters are instead passed through an AdamW optimizer", says its docstring, so that
#   vectors, embeddings and heads get optax.adamw's updates; AdamW's first is the learning rate, whatever the gradient.
# What happens: `nesterov` ("Whether to use Nesterov momentum", True by default) is passed on to that AdamW as well, which
#   makes it NAdamW. The first update is 1.47 times the learning rate (0.9 * 0.1 / 0.19 + 1), and all later ones differ.
#   No argument gives Muon its Nesterov momentum and the rest plain AdamW.
# Why it matters here: `optimizer.name=muon` promised AdamW for the LM head, the embeddings and the image head's outer
#   linears, 269.6M parameters of the 7B model's heads alone, and trained them by another rule than optimizer.name=adamw.
#   training/muon.py takes scale_by_muon alone, and training/optimizer.py optax.adamw for the rest.
# Versions: optax 0.2.8, jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-27.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried. CPU alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" &&
  "$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6; } || exit 2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version
import sys

import jax.numpy as jnp
import optax
import optax.contrib

RATE, EXPECTED = 0.1, 1.4737  # times the rate


def updates(rule):
  """Three updates of a vector by a gradient that stays the same."""
  params, grads = {"bias": jnp.zeros(2)}, {"bias": jnp.array([1.0, -3.0])}
  state, found = rule.init(params), []
  for _ in range(3):
    update, state = rule.update(grads, state, params)
    found.append(float(-update["bias"][0] / RATE))
  return found


for name in ("optax", "jax", "jaxlib", "numpy"):
  print(name, version(name))
adamw = updates(optax.adamw(RATE, weight_decay=0.0))
muon = updates(optax.contrib.muon(RATE))
nadamw = updates(optax.nadamw(RATE, weight_decay=0.0))
plain = updates(optax.contrib.muon(RATE, nesterov=False))
print("updates of a vector, in learning rates")
for name, found in (("adamw", adamw), ("muon", muon), ("nadamw", nadamw), ("muon(nesterov=False)", plain)):
  print(f"  {name:<21}", *(f"{x:.4f}" for x in found))
as_described = abs(muon[0] - EXPECTED) < 1e-3 and muon == nadamw and muon != adamw and plain == adamw
print("as described: muon's vectors are nadamw's" if as_described else "CHANGED: it isn't as described any more")
sys.exit(0 if as_described else 1)
PYTHON
