"""Draws pictures with the 7B model, or another config's, for one choice of sampling after the other; `gpu.sh` calls it.

    python benchmarks/gpu_generation.py --batches=1,64 [--config=FILE:ARG] [--steps=100] [--config.some.field=value ...]

The weights are random and made once, as in `generate.py`, whose measure it takes: a first draw, which compiles, then one that
counts. A line of JSON is printed for each choice as soon as it is measured, or has failed, so that a time limit costs only what
is left. jax's word on each compilation goes to standard error: what was going on when the time was up is the last of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import Any

import generate
from gpu_table import row
import jax

from orthus_jax.commands import common
from orthus_jax.training.metrics import device_memory_bytes

_AIMS = {1: 5.0, 64: 0.29}  # seconds a picture
_INT8 = dict(weights="int8", cache="int8")
CHOICES: dict[str, dict[str, Any]] = {  # beside the steps asked for
  "DDIM, bfloat16": {},
  "DDIM, int8 weights and cache": _INT8,
  "20 steps of DPM, int8 weights and cache": dict(_INT8, solver="dpm", steps=20),
}


def measure(model: generate.FeatureModel, batch: int, name: str, bandwidth: float | None) -> dict[str, Any]:
  """The row of one choice."""
  sampling = dataclasses.replace(model.config.sampling, **CHOICES[name])
  what = f"a picture, batch {batch}, {name}"
  aim = f"≤ {_AIMS[batch]:g} s" if batch in _AIMS else ""
  try:
    system = generate.Ours(model, batch, sampling)
    first = generate.timed(system)
    seconds = generate.timed(system)
  except Exception as e:  # a lack of memory above all: the next choice may still fit
    return row(what, failed=f"{type(e).__name__}: {str(e).strip().splitlines()[0]}", aim=aim)
  least = generate.limit(model, batch, bandwidth, sampling) if bandwidth else None
  return row(
      what, measured=f"{seconds / batch:.3f} s", limit=f"{least / batch:.3f} s (memory)" if least else "",
      share=f"{least / seconds:.0%}" if least else "", memory=device_memory_bytes(), aim=aim,
      note=f"{sampling.steps} steps; first draw {first:.0f} s, compiling included",
  )  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batches", default="1,8,64")
  parser.add_argument("--config", default=str(generate._CONFIGS / "orthus_7b.py:post-h200-1"))
  parser.add_argument("--steps", type=int, default=100)
  options, overrides = parser.parse_known_args()
  common.initialize()
  logging.getLogger("jax").setLevel(logging.WARNING)
  jax.config.update("jax_log_compiles", True)
  jax.config.update("jax_enable_compilation_cache", False)  # it would hide what compiling takes
  print("making the weights", flush=True)
  model = generate.build(options, overrides)
  bandwidth = generate.bandwidth_of(jax.devices()[0].device_kind)
  for batch in map(int, options.batches.split(",")):
    for name in CHOICES:
      print(f"batch {batch}, {name}", flush=True)
      print(measure(model, batch, name, bandwidth), flush=True)


if __name__ == "__main__":
  main()
