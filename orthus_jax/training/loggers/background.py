"""A logger in a thread of its own: a service that is slow, hangs or is down costs a step nothing, and the run nothing."""

from __future__ import annotations

from collections.abc import Callable
import functools
import logging
import queue
import threading
import time
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.training.loggers.base import Logger

_HELD = 1000  # records that wait for a service that is away, and
_PATIENCE = 600.0  # seconds that one record is tried for
_PAUSES = (1.0, 60.0)  # seconds between two tries: at first, and at most
_LAST = 15.0  # seconds that a run waits at its end
_log = logging.getLogger(__name__)


class Background:
  """Hands records on; what a service doesn't take is tried again, and counted where that doesn't help.

  Args:
    name: of the logger, to tell of it.
    open_logger: opens it, in the thread.
  """

  def __init__(self, name: str, open_logger: Callable[[], Logger]):
    self._name, self._open = name, open_logger
    self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(_HELD)
    self._closing = threading.Event()
    self._given = self._sent = 0
    self._warned = False
    self._thread = threading.Thread(target=self._run, name=name, daemon=True)
    self._thread.start()

  def scalars(self, step: int, values: dict[str, float]) -> None:
    self._put("scalars", step, dict(values))

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    self._put("image", step, name, pixels)

  def text(self, step: int, name: str, text: str) -> None:
    self._put("text", step, name, text)

  def close(self) -> None:
    """Waits some seconds for what is left, and says how much was dropped."""
    self._closing.set()
    try:
      self._queue.put_nowait(None)
    except queue.Full:
      pass  # the thread looks at `_closing` too
    self._thread.join(_LAST)
    if dropped := self._given - self._sent:
      _log.warning("%s: %d of %d records weren't taken; metrics.jsonl has all numbers", self._name, dropped, self._given)

  def _put(self, *call: Any) -> None:
    self._given += 1
    try:
      self._queue.put_nowait((call[0], call[1:]))
    except queue.Full:
      pass  # counted at the end

  def _run(self) -> None:
    opened = self._try(self._open, patience=float("inf"))
    if not opened:
      return
    (logger,) = opened
    while not (self._closing.is_set() and self._queue.empty()):
      item = self._queue.get()
      if item is None:
        break
      method, arguments = item
      if self._try(functools.partial(getattr(logger, method), *arguments), patience=_PATIENCE):
        self._sent += 1
    self._try(logger.close, patience=0.0)

  def _try(self, do: Callable[[], Any], *, patience: float) -> list[Any]:
    """[what `do` returns]; [] where it failed for so many seconds, or for once where the run ends."""
    end, pause = time.monotonic() + patience, _PAUSES[0]
    while True:
      try:
        return [do()]
      except Exception as e:  # whatever a library raises
        if not self._warned:
          self._warned = True
          _log.warning("%s: %s; the run goes on, and what isn't taken is counted", self._name, files.first_line(e)[:200])
      if time.monotonic() + pause > end or self._closing.wait(pause):
        return []
      pause = min(2 * pause, _PAUSES[1])
