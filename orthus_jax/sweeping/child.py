"""A command of a run in a process of its own, whose words go to a log."""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
import time

from orthus_jax import errors
from orthus_jax.sweeping.machine import Share

ORTHUS = (sys.executable, "-m", "orthus_jax.cli")


class Child:
  """`orthus VERB …`, begun.

  It is in a session of its own, so that a terminal's Ctrl-C reaches it through the sweep alone, and once.

  Args:
    argv: the verb and its options.
    log: gets what it prints, after what is there.
    share: of the machine.
  """

  def __init__(self, argv: Sequence[str], log: Path, share: Share):
    self._log = log
    self.began = time.time()
    with log.open("ab") as out:
      out.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} orthus {shlex.join(argv)}\n".encode())
      out.flush()
      self._start = out.tell()
      before = os.sched_getaffinity(0) if share.cores else None
      try:
        if share.cores:
          os.sched_setaffinity(0, share.cores)  # which the child takes over
        self._process = subprocess.Popen(
            [*ORTHUS, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=os.environ | share.environment, start_new_session=True,
        )  # fmt: skip
      finally:
        if before:
          os.sched_setaffinity(0, before)

  def status(self) -> int | None:
    """Its exit status; None while it runs."""
    return self._process.poll()

  def seconds(self) -> float:
    """Since it began."""
    return time.time() - self.began

  def end(self, *, at_once: bool) -> None:
    """Asks it to save and end, or to leave that.

    It asks by SIGUSR1, which hastens nothing where a scheduler sends SIGTERM to all processes beside; what has nothing to save
    ends by it.
    """
    for number in (signal.SIGTERM, signal.SIGTERM) if at_once else (signal.SIGUSR1,):
      if self._process.poll() is None:
        self._process.send_signal(number)
        if at_once:
          time.sleep(0.1)  # two in a moment are one

  def error(self) -> str:
    """Why it ended with another status than 0, in a line."""
    with self._log.open("rb") as file:
      file.seek(self._start)
      said = file.read().decode(errors="replace")
    return why(said, self._process.returncode)


def why(said: str, status: int) -> str:
  """What a command's last words say of its end.

  Args:
    said: all that it printed.
    status: its exit status, below 0 for a signal.
  """
  if status < 0:
    name = signal.Signals(-status).name
    return f"killed by {name}" + (", as where memory runs out" if -status == signal.SIGKILL else "")
  lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
  ours = [line.removeprefix("orthus: ") for line in lines if line.startswith("orthus: ")]
  text = errors.one_line((ours or lines or ["it said nothing"])[-1])
  return text if len(text) <= 400 else f"{text[:400]}…"
