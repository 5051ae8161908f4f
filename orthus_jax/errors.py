"""What a user can be told: a request that can't be served, a run that ends early, and the exit status of each."""

from __future__ import annotations

import contextlib
import sys

BAD_REQUEST = 2
PREEMPTED = 75  # sysexits.h's EX_TEMPFAIL: all is saved; start the same command again
LOST = 76  # a step hung, another process died or a bucket stayed away: start the same command again, where all works
INTERRUPTED = 130  # Ctrl-C
PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells tell of it: nobody read all that was printed
AT_ONCE = 143  # a second SIGTERM: nothing was waited for


class BadRequest(Exception):
  """A request that can't be served as it stands; the message says what is wrong and what to do."""


class Stopped(Exception):
  """A run that ends early; the message says why, and what to do.

  Attributes:
    status: the command's exit status.
  """

  def __init__(self, message: str, *, status: int = 1):
    super().__init__(message)
    self.status = status


def one_line(text: str) -> str:
  """The text with what would break a line shown escaped."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_error(why: object) -> None:
  """Prints why the command ends, as one line on standard error; what would break the line is shown escaped."""
  with above_bars():
    print(f"orthus: {one_line(str(why))}", file=sys.stderr, flush=True)


def above_bars() -> contextlib.AbstractContextManager:
  """A block that prints whole lines on standard error: above a progress bar that is drawn there, not in it."""
  bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
  return bars.external_write_mode(file=sys.stderr) if bars else contextlib.nullcontext()
