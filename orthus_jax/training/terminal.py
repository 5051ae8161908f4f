"""A run outlives the terminal, or the `tee`, that its log goes to: Ctrl-C and a lost connection end those too."""

from __future__ import annotations

import errno
import sys
from typing import TextIO, cast

from orthus_jax.output import Surviving


class _Stderr(Surviving):
  """Standard error as it was, but that nobody reading it any more is no error."""

  def _failed(self, error: OSError) -> None:
    if error.errno in (errno.EPIPE, errno.EIO):
      super()._failed(error)


def may_be_lost() -> TextIO:
  """Has standard error outlive its reader; returns what `give_back` takes."""
  before = sys.stderr
  sys.stderr = cast(TextIO, _Stderr(before))
  return before


def give_back(before: TextIO) -> None:
  """Undoes `may_be_lost`."""
  sys.stderr = before
