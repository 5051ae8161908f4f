"""How far the calibrated time is off on the published runs."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import json
from typing import Any

from orthus_jax.planning import hardware, published
from orthus_jax.planning.report import Plan


def errors(plans: list[tuple[published.Run, Plan]]) -> list[dict[str, Any]]:
  """A row for each run: seconds published, at the bound and calibrated, and the calibrated one's relative error."""
  return [
      {
          "run": run.name, "source": run.source, "published": run.seconds, "bound": plan.times["bound"],
          "limit": plan.times["limit"], "calibrated": plan.times["calibrated"],
          "error": plan.times["calibrated"] / run.seconds - 1, "tokens_per_chip": plan.tokens_per_chip["calibrated"],
          "mfu": plan.mfu["calibrated"], "peak_bytes": plan.memory["peak"],
      }
      for run, plan in plans
  ]  # fmt: skip


def show(*, make: Callable[..., Plan], as_json: bool) -> int:
  """Has `make` plan every published run, as `report.make` does, and prints the errors."""
  plans = []
  for run in published.RUNS:
    topology = hardware.parse(run.topology, run.slices)
    plans.append((run, make(run.config, topology, title=run.name, build=published.text)))
  rows = errors(plans)
  if as_json:
    print(json.dumps({"runs": rows, "plans": [dataclasses.asdict(p) for _, p in plans]}, indent=2))
    return 0
  print(
    f"{'run':<24} {'by':<8} {'published':>10} {'bound':>14} {'calibrated':>11} {'error':>7} {'tokens/s/chip':>14} {'MFU':>6}"
  )
  for r in rows:
    bound = f"{r['bound']:.2f} {r['limit']}"
    print(f"{r['run']:<24} {r['source']:<8} {r['published']:>8.2f} s {bound:>14} {r['calibrated']:>9.2f} s {r['error']:>+7.1%}"
          f" {r['tokens_per_chip']:>14,.0f} {r['mfu']:>6.1%}")  # fmt: skip
  return 0
