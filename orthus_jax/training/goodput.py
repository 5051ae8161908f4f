"""Where a run's wall time goes, over all its starts, in WORKDIR/goodput.jsonl.

At any moment the time is one part's, so that the parts sum to the wall time. A thread writes a line now and then, which has
the seconds of this start so far: whatever moment a process is killed at, the last whole line counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import itertools
import json
import logging
import os
from pathlib import Path
import threading
import time
from typing import Any

from orthus_jax import errors
from orthus_jax.progress import duration

FILE = "goodput.jsonl"
# In the order in which they are told. A process knows all but the gap and what was lost, which take the next start.
PARTS = {
    "step": "steps", "data_wait": "waiting for data", "evaluate": "samples and scores", "checkpoint": "saving",
    "startup": "start-up", "compile": "compiling", "lost": "steps done again", "gap": "down between starts", "other": "other",
}  # fmt: skip
_OWN = tuple(p for p in PARTS if p not in ("lost", "gap"))
_EVERY = 5.0  # seconds between lines, and
_SHARE = 1e-3  # of a start's time so far, so that a run of weeks leaves no more than some thousand lines
_IN_VAIN = 3  # starts in a row that get nowhere, after which the cause is no lost process
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Totals:
  """A run's time so far.

  Attributes:
    wall: seconds from its first start to its last sign of life.
    seconds: by part; they sum to `wall`.
    starts: how often it was started.
  """

  wall: float
  seconds: dict[str, float]
  starts: int

  def shares(self) -> dict[str, float]:
    """Of the wall time, by part."""
    return {p: s / max(self.wall, 1e-9) for p, s in self.seconds.items()}

  def told(self) -> str:
    """In a line, the largest share first; what rounds to nothing is left out."""
    shares = sorted(((v, p) for p, v in self.shares().items() if v >= 0.005), key=lambda x: -x[0])
    starts = f", {self.starts} starts" if self.starts > 1 else ""
    return f"{duration(self.wall)}{starts}: " + ", ".join(f"{PARTS[p]} {v:.0%}" for v, p in shares)


class Ledger:
  """The time of one start of a run. It begins in "startup".

  Args:
    begin: time.monotonic() when the command began; now where it isn't said.
    clock, now: for tests: seconds of a clock that never jumps, and of the one that all machines share.
  """

  def __init__(
      self, begin: float | None = None, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
  ):
    self._clock, self._now = clock, now
    self._at = clock() if begin is None else begin
    self._part = "startup"
    self._seconds = dict.fromkeys(_OWN, 0.0)
    self._step: int | None = None
    self._file: Any = None
    self._start = 1
    self._earlier: list[dict[str, Any]] = []
    self._before = Totals(0.0, dict.fromkeys(PARTS, 0.0), 0)
    self.in_vain = 0, -1  # of earlier starts; process 0 knows, and tells the others
    self._from = -1
    self._lock = threading.RLock()  # the thread that writes looks, too
    self._over = threading.Event()

  def enter(self, part: str) -> None:
    """From here on the time is this part's."""
    with self._lock:
      now = self._clock()
      self._seconds[self._part] += now - self._at
      self._at, self._part = now, part

  @contextlib.contextmanager
  def part(self, part: str) -> Iterator[None]:
    """A block whose time is this part's."""
    before = self._part
    self.enter(part)
    try:
      yield
    finally:
      self.enter(before)

  def seconds(self) -> dict[str, float]:
    """Of this start, by part."""
    with self._lock:
      self.enter(self._part)
      return dict(self._seconds)

  def keep(self, workdir: Path, *, newest: int = -1, **more: Any) -> None:
    """Writes to the workdir's file from here on.

    Args:
      workdir: the run's, which this process has to itself.
      newest: the last checkpoint's step; -1 where there is none.
      more: what else the first line is to say.
    """
    self._earlier = read(workdir)
    self._start = max((r["start"] for r in self._earlier), default=0) + 1
    self.in_vain = in_vain(self._earlier, newest)
    try:
      self._file = (workdir / FILE).open("a+b", buffering=0)
      size = self._file.seek(0, os.SEEK_END)
      if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
        self._file.write(b"\n")  # after a line that a kill cut short
    except OSError as e:
      self._give_up(e)
    self.write(newest=newest, **more)
    threading.Thread(target=self._live, name="goodput", daemon=True).start()

  def goes_on_from(self, step: int) -> None:
    """The first step is about to be done: what earlier starts did after this one is lost."""
    self._step = self._from = step
    own = self.seconds()
    whole = totals([*self._earlier, self._line()]).seconds
    before = {p: s if p in ("gap", "lost") else max(0.0, s - own[p]) for p, s in whole.items()}
    self._before = Totals(sum(before.values()), before, self._start - 1)
    self.write()

  def did(self, step: int) -> None:
    """A step was done, counted from 1."""
    self._step = step

  def when_lost(self) -> tuple[int, str]:
    """Exit status of a process that a hung step or an error that nobody foresaw ends, and what is to be said of it.

    It is one that asks for another start, unless starts before it, from the same step, have ended that way, too.
    """
    count, step = self.in_vain
    if count + 1 < _IN_VAIN or (-1 not in (step, self._from) and step != self._from):
      return errors.LOST, ""
    return 1, f"{count + 1} starts in a row have ended without a newer checkpoint: this isn't started again by itself"

  def totals(self) -> Totals:
    """The run's time so far, that of earlier starts included."""
    own, before = self.seconds(), self._before
    seconds = {p: s + own.get(p, 0.0) for p, s in before.seconds.items()}
    return Totals(sum(seconds.values()), seconds, before.starts + 1)

  def write(self, **more: Any) -> None:
    """Writes a line, as after a checkpoint, to which what comes later may be set back."""
    with self._lock:
      if self._file is None:
        return
      try:
        self._file.write((json.dumps(self._line() | more) + "\n").encode())
      except OSError as e:  # a full disk is no reason to lose the run
        self._give_up(e)

  def close(self, end: str) -> None:
    """Says how it ended: "finished", "stopped" as asked, or "failed"."""
    self._over.set()
    self.write(end=end)
    with self._lock:
      if self._file is not None:
        self._file.close()
        self._file = None

  def _live(self) -> None:
    while not self._over.wait(max(_EVERY, _SHARE * sum(self.seconds().values()))):
      self.write()

  def _line(self) -> dict[str, Any]:
    seconds = {p: round(s, 3) for p, s in self.seconds().items()}
    return {"start": self._start, "time": round(self._now(), 3), "step": self._step, "part": self._part, "seconds": seconds}

  def _give_up(self, error: OSError) -> None:
    _log.warning("where the time goes isn't written any more: %s", error.strerror)
    if self._file is not None:
      self._file.close()
    self._file = None


def read(workdir: Path) -> list[dict[str, Any]]:
  """The lines of a run's file, but for what isn't one."""
  try:
    lines = (workdir / FILE).read_bytes().splitlines()
  except OSError:
    return []
  return [r for r in map(record, lines) if r is not None]


def record(line: bytes) -> dict[str, Any] | None:
  """One line's record; None for what isn't one, as where a process was killed in its midst."""
  try:
    value = json.loads(line)
    numbers = [value["time"], value["start"], *value["seconds"].values()]
    good = all(isinstance(n, (int, float)) for n in numbers) and isinstance(value.get("step"), (int, type(None)))
  except (ValueError, LookupError, TypeError, AttributeError):
    return None
  return value if good else None


def totals(records: Iterable[dict[str, Any]]) -> Totals:
  """Adds up the starts of a run.

  Between one start's last line and the next one's beginning lies a gap, unless the earlier one finished the run. What a start
  did after the step that a later one went on from is "lost", whatever its time was spent on.

  Args:
    records: from `read`.
  """
  starts = [list(lines) for _, lines in itertools.groupby(records, key=lambda r: r["start"])]
  seconds = dict.fromkeys(PARTS, 0.0)
  end: dict[str, Any] | None = None
  for lines in starts:
    if end is not None and end.get("end") != "finished":
      began = lines[-1]["time"] - sum(lines[-1]["seconds"].values())
      seconds["gap"] += max(0.0, began - end["time"])  # clocks of two machines may disagree
    end = lines[-1]
  kept_to: int | None = None
  for lines in reversed(starts):
    last = lines[-1]["seconds"]
    kept = last if kept_to is None else _until(lines, kept_to)
    for part, value in last.items():
      part = part if part in seconds else "other"
      seconds[part] += kept.get(part, 0.0)
      seconds["lost"] += value - kept.get(part, 0.0)
    first = next((r["step"] for r in lines if r["step"] is not None), None)
    kept_to = kept_to if first is None else first if kept_to is None else min(kept_to, first)
  return Totals(sum(seconds.values()), seconds, len(starts))


def in_vain(records: Iterable[dict[str, Any]], newest: int = -1) -> tuple[int, int]:
  """How many starts in a row, to the last, ended unasked and began from one step; the step, -1 where none got that far.

  Args:
    records: from `read`.
    newest: the last checkpoint's step. A start that found an older one was not in vain, whatever came of those after it.
  """
  count, step = 0, -1
  for _, lines in reversed([(n, list(lines)) for n, lines in itertools.groupby(records, key=lambda r: r["start"])]):
    first = next((r["step"] for r in lines if r["step"] is not None), -1)
    if lines[-1].get("end") in ("finished", "stopped") or (-1 not in (first, step) and first != step):
      break
    if next((r["newest"] for r in lines if "newest" in r), newest) != newest:
      break
    count, step = count + 1, max(first, step)
  return count, step


def _until(lines: list[dict[str, Any]], step: int) -> dict[str, float]:
  """A start's seconds, by part, when it had done a step and saved it; between two lines, by the share of steps."""
  reached = [r for r in lines if r["step"] is not None]
  if not reached or reached[-1]["step"] <= step:
    return lines[-1]["seconds"]
  before = next((r for r in reversed(reached) if r["step"] <= step), None)
  if before is None:
    return reached[0]["seconds"]
  after = next(r for r in reached if r["step"] > step)
  share = (step - before["step"]) / (after["step"] - before["step"])
  return {p: s + share * (after["seconds"].get(p, s) - s) for p, s in before["seconds"].items()}
