"""What is left to do of a sweep, as commands, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
import shlex
import statistics

from orthus_jax.config.command_line import read_config
from orthus_jax.errors import BadRequest
from orthus_jax.sweeping import state
from orthus_jax.sweeping.plan import Planned
from orthus_jax.sweeping.running import Task
from orthus_jax.sweeping.state import State
from orthus_jax.training.checkpoints import agreement


def commands(folder: Path, run: Planned) -> tuple[tuple[str, tuple[str, ...]], ...]:
  """(name, verb and options) of what a run lacks."""
  workdir = folder / "runs" / run.id
  parts: list[tuple[str, tuple[str, ...]]] = []
  trained = state.report(workdir) and state.read(folder, run).step >= run.config.run.steps
  if not trained:
    parts.append(("train", ("train", *run.flags, f"--workdir={workdir}")))
  if run.evaluate is not None and not (trained and state.evaluation(folder, run)):
    out = state.evaluation_folder(folder, run)
    parts.append(("evaluate", ("evaluate", str(workdir), *shlex.split(run.evaluate), f"--out={out}")))
  return tuple(parts)


def unfinished(runs: Sequence[Planned], states: Mapping[str, State]) -> list[Planned]:
  """Those that a cluster is to do: neither finished nor under way."""
  return [r for r in runs if states[r.id].what not in ("finished", "running")]


def task(folder: Path, run: Planned, now: State) -> Task:
  """What a run lacks, to be run here."""
  parts = commands(folder, run)
  steps = run.config.run.steps - now.step if any(name == "train" for name, _ in parts) else 0
  return Task(run.id, parts, now.step, steps, lambda: _check_same(run))


def _check_same(run: Planned) -> None:
  """Sees that the config file still says what it said when the sweep began."""
  now, _ = read_config(run.flags)
  if differing := agreement.differences(run.config, now):
    raise BadRequest(f"{run.spec} has changed since the sweep began ({differing[0]}): start the sweep again")


# --- how long -------------------------------------------------------------------------------------------------------


def seconds_a_step(report: Mapping) -> float | None:
  """Of a finished run."""
  steps, seconds = report.get("trained_steps"), report.get("seconds", {}).get("train")
  return seconds / steps if steps and seconds else None


def estimate(folder: Path, runs: Sequence[Planned], states: Mapping[str, State]) -> dict[str, float | None]:
  """Seconds that each unfinished run may yet take, by finished ones of its group, or of all; None where there is none."""
  known: dict[str, list[tuple[float, float, float]]] = {}
  for run in runs:
    report = state.report(folder / "runs" / run.id)
    if (step := seconds_a_step(report)) is not None:
      rest = max(report["seconds"].get("total", 0.0) - report["seconds"]["train"], 0.0)
      parts = [a for a in state.attempts(folder, run.id) if a.get("part") == "evaluate" and a.get("status") == 0]
      known.setdefault(run.group, []).append((step, rest, parts[-1]["seconds"] if parts else 0.0))
  every = [k for found in known.values() for k in found]
  left: dict[str, float | None] = {}
  for run in runs:
    now = states[run.id]
    if now.what == "finished":
      continue
    step, rest, evaluation = (
        statistics.median(column) for column in zip(*known.get(run.group, every))
    ) if every else (None, 0.0, 0.0)  # fmt: skip
    if step is None:
      left[run.id] = None
    elif now.what == "trained":
      left[run.id] = evaluation
    else:
      left[run.id] = step * (run.config.run.steps - now.step) + rest + (evaluation if run.evaluate is not None else 0.0)
  return left


def in_all(left: Mapping[str, float | None], jobs: int) -> float | None:
  """Seconds that they take, `jobs` at once."""
  known = [v for v in left.values() if v is not None]
  if len(known) < len(left):
    return None
  return max(sum(known) / jobs, max(known)) if known else 0.0
