"""Runs tasks, some at once, each a command or two; what dies is told, and the others go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
import dataclasses
import json
import os
from pathlib import Path
import signal
import sys
import time
from types import FrameType
from typing import Any

from orthus_jax import errors
from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar
from orthus_jax.sweeping import state
from orthus_jax.sweeping.child import Child
from orthus_jax.sweeping.machine import Share
from orthus_jax.training import terminal

_RESTARTS = 3  # of one command that asks to be started again (75, 76), as launch/local.sh does more patiently
_LOOK = 0.1  # seconds between looks at the children
_ASK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_SHOW = 1.0  # and between those at how far they are


@dataclasses.dataclass(frozen=True)
class Task:
  """What is to be done for one run.

  Attributes:
    id: of the run, or another name for attempts and logs.
    parts: (name, verb and options), one after the other.
    steps: that training is to take, from `start` on; 0 where nothing is trained.
    check: raises BadRequest if it can't be started any more.
  """

  id: str
  parts: tuple[tuple[str, tuple[str, ...]], ...]
  start: int = 0
  steps: int = 0
  check: Callable[[], None] = lambda: None


@dataclasses.dataclass
class _Active:
  task: Task
  part: int
  child: Child
  restarts: int = 0


class Signals:
  """SIGINT, SIGTERM and a lost terminal, from here to the end of the block: how often they came, and the first."""

  def __enter__(self) -> Signals:
    self.first, self.count = 0, 0
    self._stderr = terminal.may_be_lost()
    heard = (s for s in _ASK if signal.getsignal(s) != signal.SIG_IGN)  # nohup ignores SIGHUP
    self._old = {s: signal.signal(s, self._came) for s in heard}
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)
    terminal.give_back(self._stderr)

  def _came(self, number: int, frame: FrameType | None) -> None:
    # What schedulers send ahead, and a terminal that is lost, hastens nothing when it comes again.
    self.count += self.count == 0 or number in (signal.SIGINT, signal.SIGTERM)
    self.first = self.first or number

  @property
  def status(self) -> int:
    """The exit status of a command that one of these ended."""
    return errors.INTERRUPTED if self.first == signal.SIGINT else errors.PREEMPTED


class Runner:
  """Tasks of one sweep, each in processes of its own.

  Args:
    folder: the sweep's.
    shares: of the machine, one for each task that runs at once.
    signals: which end it: the children save first; a second one ends them at once.
    quiet: tell nothing.
  """

  def __init__(self, folder: Path, shares: Sequence[Share], signals: Signals, *, quiet: bool = False):
    self._folder, self._shares, self._signals, self._quiet = folder, shares, signals, quiet
    self._failed: dict[str, str] = {}
    self._active: dict[int, _Active] = {}
    self._over = self._of = self._heard = 0

  def run(self, tasks: Sequence[Task]) -> dict[str, str]:
    """Does them, as far as no signal comes; returns why those failed that did."""
    waiting, self._failed = deque(tasks), {}
    self._over, self._of, self._heard = 0, len(tasks), 0
    try:
      self._go(waiting, tasks)
    except BaseException:  # a disk that is full, say: they are in sessions of their own, and would go on
      for active in self._active.values():
        active.child.end(at_once=False)
      raise
    return self._failed

  def _go(self, waiting: deque[Task], tasks: Sequence[Task]) -> None:
    total = sum(t.steps for t in tasks)
    show = bar("steps") if total and not self._quiet else None
    shown, ended = 0.0, 0
    while (waiting and not self._signals.count) or self._active:
      self._pass_signals_on()
      for slot in range(len(self._shares)):
        if slot not in self._active and waiting and not self._signals.count:
          self._begin(slot, waiting.popleft())
      for slot, active in list(self._active.items()):
        status = active.child.status()
        if status is not None and not self._went_on(slot, active, status):
          ended += active.task.steps
      if show and time.monotonic() - shown > _SHOW:
        show(min(ended + sum(_done(self._folder, a.task) for a in self._active.values()), total - 1), total)
        shown = time.monotonic()
      time.sleep(_LOOK)
    if show and not self._signals.count:
      show(total, total)

  def _begin(self, slot: int, task: Task) -> None:
    self._tell(f"begins    {task.id}" + (f", from step {task.start}" if task.start else ""))
    try:
      task.check()
      self._active[slot] = _Active(task, 0, self._child(slot, task, 0))
    except (BadRequest, ValueError) as e:  # ValueError: an argument that no command line can hold
      told = {"part": "start", "began": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": 0.0, "status": None, "error": str(e)}
      state.keep_attempts(self._folder, task.id, [*state.attempts(self._folder, task.id), told])
      self._ended(task, str(e))

  def _child(self, slot: int, task: Task, part: int) -> Child:
    name, argv = task.parts[part]
    child = Child(argv, self._folder / "logs" / f"{task.id}.txt", self._shares[slot])
    told = {"part": name, "began": time.strftime("%Y-%m-%d %H:%M:%S")}
    state.keep_attempts(self._folder, task.id, [*state.attempts(self._folder, task.id), told])
    return child

  def _went_on(self, slot: int, active: _Active, status: int) -> bool:
    """Keeps how a command ended; begins it again, or the next one, if there is to be one."""
    task, error = active.task, active.child.error() if status else ""
    again = status in (errors.PREEMPTED, errors.LOST) and active.restarts < _RESTARTS
    stopped = self._signals.count > 0
    told = state.attempts(self._folder, task.id)
    ended: dict[str, Any] = {"seconds": round(active.child.seconds(), 3), "status": status}
    if error and not stopped and not again:
      ended["error"] = error
    state.keep_attempts(self._folder, task.id, [*told[:-1], *({**t, **ended} for t in told[-1:])])
    del self._active[slot]
    if stopped:
      self._tell(f"stopped   {task.id}")
      return False
    if status and not again:
      self._ended(task, error)
      return False
    if status:
      self._tell(f"again     {task.id}: {error}")
      self._active[slot] = _Active(task, active.part, self._child(slot, task, active.part), active.restarts + 1)
      return True
    if active.part + 1 < len(task.parts):
      self._active[slot] = _Active(task, active.part + 1, self._child(slot, task, active.part + 1))
      return True
    self._ended(task, "")
    return False

  def _ended(self, task: Task, error: str) -> None:
    self._over += 1
    if error:
      self._failed[task.id] = error
    what = "failed" if error else "finished"
    self._tell(f"{what:<9} {task.id} ({self._over} of {self._of})" + (f": {error}" if error else ""))

  def _pass_signals_on(self) -> None:
    while self._heard < self._signals.count:
      self._heard += 1
      if self._heard == 1:
        self._tell(f"{signal.Signals(self._signals.first).name}: the runs under way are saved; once more stops them at once")
      for active in self._active.values():
        active.child.end(at_once=self._heard > 1)

  def _tell(self, text: str) -> None:
    if not self._quiet:
      with errors.above_bars():
        print(errors.one_line(text), file=sys.stderr, flush=True)


def _done(folder: Path, task: Task) -> int:
  """Steps that a run under way has taken, as far as it told."""
  if not task.steps:
    return 0
  try:
    with (folder / "runs" / task.id / "metrics.jsonl").open("rb") as file:
      file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
      step = json.loads(file.read().splitlines()[-1])["step"]
  except (OSError, ValueError, LookupError, TypeError):
    return 0
  return min(max(step - task.start, 0), task.steps)
