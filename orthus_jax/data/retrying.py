"""A file system that fails for a moment is asked again."""

from __future__ import annotations

from collections.abc import Callable
import logging
import time
from typing import TypeVar

_log = logging.getLogger(__name__)
_WAITS = (0.5, 2.0, 8.0)  # seconds before each further try: a file server that restarts is back by then

T = TypeVar("T")


def retry(what: str, do: Callable[[], T]) -> T:
  """`do()`, tried again a few times where the file system fails; the last error is raised."""
  for wait in _WAITS:
    try:
      return do()
    except OSError as e:
      _log.warning("%s can't be reached (%s); trying again in %g s", what, e.strerror or e, wait)
      time.sleep(wait)
  return do()
