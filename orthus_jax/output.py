"""Streams that can't show every letter, or that nobody reads to their end."""

from __future__ import annotations

import os
from typing import Any, TextIO

from orthus_jax.errors import PIPE_CLOSED, print_error


class Surviving:
  """A stream that a command writes to for its length: the work goes on, and is kept, whatever becomes of what it prints.

  Letters that the encoding lacks are shown escaped. Once a reader is gone, the rest is dropped.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    try:
      self._stream.write(text)
    except UnicodeEncodeError:
      encoding = self._stream.encoding
      self.write(text.encode(encoding, "backslashreplace").decode(encoding))
    except OSError as e:
      self._failed(e)
    return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except OSError as e:
      self._failed(e)

  def _failed(self, error: OSError) -> None:
    """Has what comes, and what is buffered, go nowhere: Python would make what is left the exit status."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, self._stream.fileno())
    os.close(nothing)


class Output(Surviving):
  """Standard output, of which `status` tells whether all that was printed was taken."""

  def __init__(self, stream: TextIO | None):
    super().__init__(stream if stream is not None else open(os.devnull, "w", encoding="utf-8"))  # `>&-` leaves none
    self._error: OSError | None = None

  def _failed(self, error: OSError) -> None:
    if self._error is not None:
      raise error
    self._error = error
    super()._failed(error)

  def status(self, status: int) -> int:
    """Of the command: its own where that tells of something, else whether all that it printed was taken."""
    self.flush()
    if status or self._error is None:
      return status
    if isinstance(self._error, BrokenPipeError):
      return PIPE_CLOSED
    print_error(f"standard output couldn't be written: {self._error.strerror}")
    return 1
