"""A sweep's directory: what has become of each run, told by what lies there.

    DIR/sweep.json                  marks it
    DIR/runs/ID/                    a run's workdir, as `orthus train` makes it
    DIR/logs/ID.txt                 what its commands printed
    DIR/attempts/ID.json            when they were started, and how they ended
    DIR/requests.jsonl  pictures/   what every group is asked to draw, and drew
    DIR/table.csv  table.json  index.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from orthus_jax import files, lock
from orthus_jax.errors import BadRequest
from orthus_jax.sweeping.plan import Planned
from orthus_jax.training.checkpoints import agreement, workdir as checkpoint

MARK = "sweep.json"
# Of what a run may change when it is started again, what its result would show.
_SHOWN = ("sampling", "run.report", "tokenizer_loss.whiten")
_MAY_DIFFER = tuple(f for f in (*agreement.FREE, *agreement.MOVED) if f not in _SHOWN)


@dataclasses.dataclass(frozen=True)
class State:
  """What has become of a run.

  Attributes:
    what: "trained" is trained and not evaluated; "half" has a checkpoint; "running" elsewhere; "failed" when last started.
    step: of its newest checkpoint, from which it goes on.
    error: why it failed.
  """

  what: Literal["finished", "trained", "half", "missing", "failed", "running"]
  step: int = 0
  error: str = ""


def open_folder(folder: Path, *, spec: str, runs: list[Planned], write: bool) -> list[str]:
  """Makes a sweep's directory, or finds the one that is there.

  Returns:
    What it holds of runs that aren't of the sweep.

  Raises:
    BadRequest: if it is something else's.
  """
  if folder.exists() and not folder.is_dir():
    raise BadRequest(f"--workdir={folder} is a file: choose another place")
  there = {p.name for p in folder.iterdir()} - {lock.NAME} if folder.is_dir() else set()
  if there and MARK not in there:
    what = "is one run's workdir" if "config.json" in there else f"holds other things ({min(there)})"
    raise BadRequest(f"--workdir={folder} {what}, and no sweep: choose an empty or a new directory")
  if write:
    for name in ("runs", "logs", "attempts"):
      (folder / name).mkdir(parents=True, exist_ok=True)
    record = {"config": spec, "runs": [r.id for r in runs]}
    files.write_text(folder / MARK, json.dumps(record, indent=2) + "\n")
  ours = {r.id for r in runs}
  return sorted(p.name for p in (folder / "runs").glob("*") if p.is_dir() and p.name not in ours)


def read(folder: Path, run: Planned) -> State:
  """The state of one run.

  Raises:
    BadRequest: if its directory holds a run of another config.
  """
  workdir = folder / "runs" / run.id
  step = max(checkpoint.steps(workdir), default=0)
  if (workdir / "config.json").is_file():
    try:
      there = checkpoint.load_config(workdir)
    except BadRequest as e:
      return State("failed", step, str(e))
    differing = [d for d in agreement.differences(there, run.config) if not agreement.within(d.field, _MAY_DIFFER)]
    if differing:
      d, more = differing[0], f", and {len(differing) - 1} more fields" if differing[1:] else ""
      raise BadRequest(
          f"{run.id} was begun with another config: {d.field} is {agreement.short(d.old)} there, {agreement.short(d.new)} here"
          f"{more}; choose another --workdir, or remove {workdir} to run it anew"
      )
  if lock.held(workdir):
    return State("running", step)
  if step >= run.config.run.steps and report(workdir):
    if run.evaluate is None or evaluation(folder, run):
      return State("finished", step)
  last = attempts(folder, run.id)[-1:]
  if last and last[0].get("error"):
    return State("failed", step, last[0]["error"])
  if step >= run.config.run.steps and report(workdir):
    return State("trained", step)
  return State("half" if step else "missing", step)


def report(workdir: Path) -> dict[str, Any]:
  """What report.json holds; {} where the run isn't finished."""
  found = load(workdir / "report.json")
  return found if isinstance(found, dict) and "params_digest" in found else {}


def evaluation_folder(folder: Path, run: Planned) -> Path:
  """Where a run's evaluation with its options is: other options have another place."""
  return folder / "runs" / run.id / "evaluations" / f"sweep-{digest(run.evaluate or '')}"


def evaluation(folder: Path, run: Planned) -> dict[str, Any]:
  """What its evaluation.json holds, or score.json of a published benchmark; {} where there is none."""
  kept = (load(evaluation_folder(folder, run) / name) for name in ("evaluation.json", "score.json"))
  return next((found for found in kept if isinstance(found, dict) and found), {})


def attempts(folder: Path, name: str) -> list[dict[str, Any]]:
  """Each time that a run was started here: "began", "part", and once it ended "seconds", "status" and "error"."""
  found = load(folder / "attempts" / f"{name}.json")
  return [a for a in found if isinstance(a, dict)] if isinstance(found, list) else []


def keep_attempts(folder: Path, name: str, told: list[dict[str, Any]]) -> None:
  """Writes what `attempts` reads."""
  files.write_text(folder / "attempts" / f"{name}.json", json.dumps(told, indent=1) + "\n")


def digest(text: str) -> str:
  """Eight letters that stand for a text."""
  return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def load(file: Path) -> Any:
  """A JSON file's value; None where there is none, or none that can be read."""
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
