"""A run outlives the terminal, or the `tee`, that its log goes to: Ctrl-C and a lost connection end those too."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast


class _Stderr:
  """Standard error as it was, but that nobody reading it any more is no error."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except OSError as e:
      self._lost(e)
      return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except OSError as e:
      self._lost(e)

  def _lost(self, error: OSError) -> None:
    if error.errno in (errno.EPIPE, errno.EIO):  # what is left in buffers must go somewhere, or Python makes it the status
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, self._stream.fileno())
      os.close(null)


def may_be_lost() -> TextIO:
  """Has standard error outlive its reader; returns what `give_back` takes."""
  before = sys.stderr
  sys.stderr = cast(TextIO, _Stderr(before))
  return before


def give_back(before: TextIO) -> None:
  """Undoes `may_be_lost`."""
  sys.stderr = before
