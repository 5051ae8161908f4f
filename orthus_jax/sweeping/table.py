"""All runs of a sweep in one table, and what their seeds say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from orthus_jax.sweeping import state, todo
from orthus_jax.sweeping.plan import SEED, Planned
from orthus_jax.sweeping.state import State
from orthus_jax.training.metric_writer import read_metrics

LOSSES = ("loss", "text_loss", "image_loss")
COSTS = ("seconds", "seconds_a_step", "parameters", "peak_memory_bytes")


def rows(folder: Path, runs: Sequence[Planned], states: Mapping[str, State]) -> list[dict[str, Any]]:
  """What there is to say of each run.

  Returns:
    A row a run: id, group, seed, state, step, steps, error, config (FILE:ARGUMENT), fields (what the run itself says), losses
    (means of the last twentieth of what was logged), scores with their intervals and counts, costs, params_digest. What is
    no finite number, as of a run that diverged, is None: JSON has no other way to say it.
  """
  return [_row(folder, run, states[run.id]) for run in runs]


def _row(folder: Path, run: Planned, now: State) -> dict[str, Any]:
  workdir = folder / "runs" / run.id
  report, evaluated = state.report(workdir), {} if run.evaluate is None else state.evaluation(folder, run)
  metrics = read_metrics(workdir)
  scored = evaluated or report
  costs = {
      "seconds": _seconds(folder, run, report), "seconds_a_step": todo.seconds_a_step(report),
      "parameters": report.get("parameters"), "peak_memory_bytes": report.get("peak_memory_bytes"),
  }  # fmt: skip
  return {
      "id": run.id, "group": run.group, "seed": run.config.run.seed, "state": now.what, "step": now.step,
      "steps": run.config.run.steps, "error": now.error, "config": run.spec, "fields": run.fields,
      "losses": {n: _finite(v) for n in LOSSES if (v := _last(metrics, n)) is not None},
      "scores": {n: _finite(v) for n, v in {**scored.get("scores", {}), **scored.get("measures", {})}.items() if _number(v)},
      "intervals": _finite(scored.get("intervals", {})), "counts": scored.get("counts", {}),
      "costs": {n: v for n, v in costs.items() if v is not None}, "params_digest": report.get("params_digest", ""),
  }  # fmt: skip


def _seconds(folder: Path, run: Planned, report: Mapping[str, Any]) -> float | None:
  """Of all attempts that came to something; of runs that weren't started here, what the report says."""
  spent = [a["seconds"] for a in state.attempts(folder, run.id) if "seconds" in a]
  return sum(spent) if spent else report.get("seconds", {}).get("total")


def _last(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
  values = [m[name] for m in metrics if _number(m.get(name))]
  return float(np.mean(values[-max(len(values) // 20, 1):])) if values else None


def _number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
  """The value; None for a number that isn't finite, within lists and objects too."""
  if isinstance(value, dict):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def groups(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Runs that differ in their seed alone, together.

  Args:
    runs: from `rows`.

  Returns:
    A group each, in the runs' order: group, fields, runs (how many), finished, seeds (of finished ones), and for each loss,
    score and cost of finished runs its mean with a 95% t-interval over the seeds that have it: {"mean", "low", "high", "n"},
    the ends None for a single one.
  """
  found: dict[str, list[Mapping[str, Any]]] = {}
  for row in runs:
    found.setdefault(row["group"], []).append(row)
  return [_group(name, members) for name, members in found.items()]


def _group(name: str, members: list[Mapping[str, Any]]) -> dict[str, Any]:
  finished = [m for m in members if m["state"] == "finished"]
  group: dict[str, Any] = {
      "group": name, "fields": {f: v for f, v in members[0]["fields"].items() if f != SEED}, "runs": len(members),
      "finished": len(finished), "seeds": [m["seed"] for m in finished],
  }  # fmt: skip
  for kind in ("losses", "scores", "costs"):
    names = dict.fromkeys(n for m in finished for n, v in m[kind].items() if v is not None)
    group[kind] = {n: interval([m[kind][n] for m in finished if m[kind].get(n) is not None]) for n in names}
  return group


def interval(values: Sequence[float]) -> dict[str, Any]:
  """The mean of independent values with its 95% interval after Student."""
  mean, n = float(np.mean(values)), len(values)
  if n < 2:
    return {"mean": mean, "low": None, "high": None, "n": n}
  half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / n**0.5)
  return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def as_csv(runs: Sequence[Mapping[str, Any]]) -> str:
  """A line a run; a field's column has its dotted name."""
  first = ("id", "group", "seed", "state", "step", "steps")
  columns = list(dict.fromkeys((kind, n) for kind in ("fields", "losses", "scores", "costs") for r in runs for n in r[kind]))
  columns = [c for c in columns if c != ("fields", SEED)]
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow([*first, *(n for _, n in columns), "params_digest", "error"])
  for r in runs:
    writer.writerow([*(r[n] for n in first), *(r[kind].get(n, "") for kind, n in columns), r["params_digest"], r["error"]])
  return out.getvalue()
