"""How a run is doing, read from its workdir's files alone, so that any machine that sees the disk can tell."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from pathlib import Path
import time
from typing import Any

from orthus_jax import files, lock
from orthus_jax.training import goodput, metric_writer, remarks
from orthus_jax.training.checkpoints import workdir as checkpoint

_DOING = {
    "startup": "starting", "compile": "compiling", "step": "training", "data_wait": "training", "checkpoint": "saving",
    "evaluate": "drawing samples or scoring", "other": "ending",
}  # fmt: skip
_REMARKS = 4


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A run at one moment.

  Attributes:
    run: its directory.
    state: what it does, in words.
    running, finished: whether a command works in it; whether it came to its end.
    step, steps: done, as far as told, and wanted.
    left: seconds until the last step, as this start has gone so far; None where that can't be told.
    age: seconds since its last sign of life; None where it gave none.
    metrics: the newest value of each, which may be NaN or infinite; under `series` all that are finite.
    spent: where its time went.
    saved: (step, seconds ago) of the newest checkpoint.
    samples: the newest file of samples.
    hosts: machines' names, by process.
    remarks: the last warnings, or where there are none the last lines of its log.
  """

  run: Path
  state: str
  running: bool
  finished: bool
  step: int
  steps: int | None
  left: float | None
  age: float | None
  metrics: dict[str, float]
  series: dict[str, list[float]]
  spent: goodput.Totals
  saved: tuple[int, float] | None
  samples: Path | None
  hosts: list[str]
  remarks: list[str]


class Reader:
  """Reads a run again and again, of growing files what is new alone.

  Args:
    run: its directory.
    now: seconds, for tests.
  """

  def __init__(self, run: Path, *, now: Callable[[], float] = time.time):
    self._run, self._now = run, now
    self._metrics, self._time = _Tail(run / "metrics.jsonl"), _Tail(run / goodput.FILE)

  def read(self) -> Snapshot:
    """The run as it is now."""
    run, now = self._run, self._now()
    rows = {r["step"]: r for r in map(metric_writer.record, self._metrics.lines()) if r is not None}
    lines = [r for r in map(goodput.record, self._time.lines()) if r is not None]
    config, last = files.read_json(run / "config.json").get("run"), lines[-1] if lines else {}
    config = config if isinstance(config, dict) else {}  # as a person or another tool may have left it
    series: dict[str, list[float]] = {}
    newest: dict[str, float] = {}
    for step in sorted(rows):
      for name, value in rows[step].items():
        if name == "step" or not isinstance(value, (int, float, type(None))):
          continue
        newest[name] = math.nan if value is None else float(value)  # as what isn't finite is written
        if math.isfinite(newest[name]):
          series.setdefault(name, []).append(newest[name])
    done = [last.get("step") or 0, *checkpoint.steps(run)[-1:], max(rows, default=0)]
    running = lock.held(run)
    finished = not running and (last.get("end") == "finished" if last else (run / "report.json").is_file())
    signs = [t for t in (_modified(run / n) for n in ("metrics.jsonl", goodput.FILE, lock.NAME)) if t is not None]
    steps = config.get("steps")
    return Snapshot(
        run=run, state=_state(last, running=running, finished=finished, done=max(done)), running=running, finished=finished,
        step=max(done), steps=steps, left=_left(lines, steps, now) if running else None,
        age=max(0.0, now - max(signs)) if signs else None, metrics=newest, series=series,
        spent=goodput.totals(lines), saved=self._saved(now), samples=_newest(run / "samples"),
        hosts=next((r["hosts"] for r in reversed(lines) if "hosts" in r), []),
        remarks=remarks.last(run, _REMARKS, warnings=True) or remarks.last(run, 2),
    )  # fmt: skip

  def _saved(self, now: float) -> tuple[int, float] | None:
    for step in reversed(checkpoint.steps(self._run)):
      at = _modified(self._run / "checkpoints" / str(step))
      if at is not None:
        return step, max(0.0, now - at)
    return None


class _Tail:
  """The whole lines of a file that grows; one that is replaced, as when a run is set back, is read anew."""

  def __init__(self, file: Path):
    self._file, self._at, self._id = file, 0, (0, 0)
    self._lines: list[bytes] = []

  def lines(self) -> list[bytes]:
    try:
      with self._file.open("rb") as file:
        there = self._file.stat()
        if (there.st_dev, there.st_ino) != self._id or there.st_size < self._at:
          self._at, self._id, self._lines = 0, (there.st_dev, there.st_ino), []
        file.seek(self._at)
        new = file.read()
    except OSError:
      return self._lines
    whole = new[: new.rfind(b"\n") + 1]
    self._at += len(whole)
    self._lines += whole.splitlines()
    return self._lines


def _state(last: dict[str, Any], *, running: bool, finished: bool, done: int) -> str:
  if finished:
    return "finished"
  if running:
    if not last and done:
      return "running"  # under a version that doesn't say more
    return _DOING.get(last.get("part", ""), "running") if last and "end" not in last else "starting"
  if last.get("end") in ("stopped", "failed"):
    return str(last["end"])
  return "not running: killed, or lost" if last else "not running"


def _left(lines: list[dict[str, Any]], steps: int | None, now: float) -> float | None:
  """Seconds until the last step, at the pace of this start's later half, samples and checkpoints included."""
  this = [r for r in lines if r["start"] == lines[-1]["start"] and r["step"] is not None] if lines else []
  if not steps or len(this) < 2 or this[-1]["step"] <= this[0]["step"]:
    return None
  this = this[len(this) // 2 if len(this) > 8 else 0 :]  # what is compiled on the way takes its time once
  pace = (this[-1]["time"] - this[0]["time"]) / (this[-1]["step"] - this[0]["step"])
  return max(0.0, (steps - this[-1]["step"]) * pace - (now - this[-1]["time"]))


def _modified(path: Path) -> float | None:
  try:
    return path.stat().st_mtime
  except OSError:
    return None


def _newest(folder: Path) -> Path | None:
  found = sorted(folder.glob("*.png")) or sorted(folder.glob("*.txt"))
  return found[-1] if found else None
