"""Ends a process whose step hangs, with the stacks of all its threads, rather than waiting for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time

from orthus_jax import errors, lock

_log = logging.getLogger(__name__)
_GRACE = 60.0  # seconds in which Python may write the message, before the C library's timer ends the process without


class Watchdog:
  """A clock that `beat` sets back; when it runs out, the process ends.

  Args:
    seconds: until then; 0 never.
    last_good: what to name: the newest checkpoint's step.
    when_lost: the exit status, and what else to say.
  """

  def __init__(
      self, seconds: float, last_good: Callable[[], int | None],
      when_lost: Callable[[], tuple[int, str]] = lambda: (errors.LOST, ""),
  ):  # fmt: skip
    self._seconds, self._last_good, self._when_lost = seconds, last_good, when_lost
    self._deadline = float("inf")
    self._step = 0
    self._over = threading.Event()
    if seconds:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def beat(self, step: int) -> None:
    """A step was done, or another piece of work begins that shouldn't take longer."""
    self._step = step
    if self._seconds:
      self._deadline = time.monotonic() + self._seconds
      # For a call that keeps Python's own lock, so that the thread below can't run.
      faulthandler.dump_traceback_later(self._seconds + _GRACE, exit=True, file=_real_stderr())

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """A block that may take as long as it wants: samples, say."""
    self._rest()
    yield
    self.beat(self._step)

  def close(self) -> None:
    self._rest()
    self._over.set()

  def _rest(self) -> None:
    self._deadline = float("inf")
    faulthandler.cancel_dump_traceback_later()

  def _watch(self) -> None:
    while not self._over.wait(min(self._seconds / 10, 1.0)):
      if time.monotonic() > self._deadline:
        step = self._last_good()
        status, more = self._when_lost()
        _log.error(
            "nothing has happened for %g s after step %d: another process may have died. The newest checkpoint is %s.%s Start"
            " again to go on from there, or raise run.hang_timeout. What each thread was doing:",
            self._seconds, self._step, "none" if step is None else f"that of step {step}", f" The last {more}." if more else "",
        )  # fmt: skip
        leave(status)


def leave(status: int, *, stacks: bool = True) -> None:
  """Ends the process as it stands, all threads' stacks on standard error; no thread can hold it up."""
  sys.stdout.flush()
  file = _real_stderr()
  if stacks:
    faulthandler.dump_traceback(file=file, all_threads=True)
  lock.release_all()
  os._exit(status)


def _real_stderr() -> int:
  """Standard error as a file descriptor, whatever a program has put in its place."""
  try:
    sys.stderr.flush()
    return sys.stderr.fileno()
  except (AttributeError, OSError, ValueError):
    return 2
