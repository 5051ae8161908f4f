"""Fits the planner's shares of published rates to the published runs (`orthus_jax/planning/published.py`).

    python benchmarks/fit_plan.py

Compiles each run once, tries every set of shares of a grid, two minutes together, and prints the set whose largest
error is the smallest; then, for each run, its error where the shares are fitted to the other runs alone. The planner uses
`CALIBRATION` in `orthus_jax/planning/estimate.py`. Needs libtpu (`pip install 'orthus_jax[tpu]'`), no TPU.
"""

from __future__ import annotations

import itertools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import numpy as np

from orthus_jax.commands import common
from orthus_jax.planning import child_process, estimate, hardware, hlo, program, published, work

_GRID = {
    "products": np.arange(0.58, 0.761, 0.02), "attention": np.arange(0.25, 0.551, 0.05),
    "bandwidth": np.arange(0.50, 0.901, 0.05), "links": np.arange(0.25, 0.601, 0.05),
}  # fmt: skip


def compiled(run: published.Run):
  """(counted work, mesh, topology, places) of a run; in a process of its own, where the compiler goes on and is killed."""
  common.initialize(devices=False)
  jax.config.update("jax_enable_compilation_cache", False)
  topology = hardware.parse(run.topology, run.slices)
  step = program.compile_step(run.config, hardware.devices(topology), build=published.text, stop_at="schedule")
  mesh = {a: int(n) for a, n in step.mesh.shape.items()}
  places = hardware.places(topology, list(step.mesh.devices.flat))
  return work.count(hlo.parse(step.text)), mesh, topology, places


def main() -> None:
  programs = [child_process.run(compiled, run) for run in published.RUNS]
  sets = [estimate.Calibration(**dict(zip(_GRID, map(float, v))), network=0.5) for v in itertools.product(*_GRID.values())]
  errors = np.empty((len(sets), len(programs)))
  for k, (counted, mesh, topology, places) in enumerate(programs):
    for n, shares in enumerate(sets):
      traffic = estimate.traffic(counted, mesh, topology, places, shares)
      errors[n, k] = estimate.estimate(counted, traffic, topology.chip, shares).calibrated / published.RUNS[k].seconds - 1
    print(f"{published.RUNS[k].name}: {len(sets)} sets of shares tried", flush=True)
  now = [
      estimate.estimate(c, estimate.traffic(c, m, t, p), t.chip).calibrated / r.seconds - 1
      for (c, m, t, p), r in zip(programs, published.RUNS)
  ]  # fmt: skip
  print("the planner's shares:", estimate.CALIBRATION, " errors:", " ".join(f"{e:+.1%}" for e in now))
  largest = np.abs(errors).max(1)
  best = int(largest.argmin())
  print("the best:", sets[best], " errors:", " ".join(f"{e:+.1%}" for e in errors[best]))
  near = [s for s, e in zip(sets, largest) if e <= 0.03]
  for name in _GRID:
    values = [getattr(s, name) for s in near]
    if values:
      print(f"  {name}: {min(values):.2f} to {max(values):.2f} among the {len(near)} sets within 3% of every run")
  for k, run in enumerate(published.RUNS):
    others = np.abs(np.delete(errors, k, 1)).max(1)
    print(f"left out {run.name}: {errors[int(others.argmin()), k]:+.1%} with {sets[int(others.argmin())]}")


if __name__ == "__main__":
  main()
