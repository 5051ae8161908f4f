"""Watches each step's loss: updates that were skipped, and spikes. It reads a step's numbers a few steps later.

So the devices are never waited for: by then the numbers have come by themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import logging
import math
from typing import Any

import jax

from orthus_jax import errors
from orthus_jax.config import RunConfig

_log = logging.getLogger(__name__)
_LAG = 2  # steps
_SHOWN = 20  # documents
_KEEP = 0.98  # of the running mean and variance, from step to step
_WARM = 50  # steps before they mean anything


class Guard:
  """Counts skipped updates and logs spikes, with the documents that were in the batch.

  Args:
    run: how many skipped updates in a row stop the run; how far a loss must lie above the others to be a spike.
    document_ids: of a step's batch, counted from 0.
    last_good: the newest checkpoint's step.
    log: whether this process tells.

  Attributes:
    skipped: updates skipped so far.
  """

  def __init__(
      self, run: RunConfig, *, document_ids: Callable[[int], list[str]], last_good: Callable[[], int | None],
      log: bool = True,
  ):  # fmt: skip
    self._run, self._ids, self._last_good, self._log = run, document_ids, last_good, log
    self._waiting: deque[tuple[int, Any, Any]] = deque()
    self.skipped = 0
    self._in_a_row = 0
    self._mean = self._variance = 0.0
    self._seen = 0
    self._high = False
    self._sum, self._count = 0.0, 0

  def saw(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step, counted from 1; looks at those of an earlier one.

    Raises:
      Stopped: after too many skipped updates in a row.
    """
    kept = (metrics["loss"], metrics["skipped"])
    for value in kept:
      if isinstance(value, jax.Array):
        value.copy_to_host_async()
    self._waiting.append((step, *kept))
    while len(self._waiting) > _LAG:
      self._look(*self._waiting.popleft())

  def catch_up(self) -> None:
    """Looks at all that is left."""
    while self._waiting:
      self._look(*self._waiting.popleft())

  def mean_loss(self) -> float | None:
    """Of the steps looked at since the last call."""
    mean = self._sum / self._count if self._count else None
    self._sum, self._count = 0.0, 0
    return mean

  def _look(self, step: int, loss: Any, skipped: Any) -> None:
    loss = float(loss)
    if float(skipped):
      self._skip(step, loss)
      return
    self._in_a_row = 0
    self._sum, self._count = self._sum + loss, self._count + 1
    self._judge(step, loss)

  def _skip(self, step: int, loss: float) -> None:
    self.skipped += 1
    self._in_a_row += 1
    what = "the gradient isn't finite" if math.isfinite(loss) else f"the loss is {loss}"
    if self._log:
      _log.warning("skipped the update of step %d, as %s; its documents: %s", step, what, self._documents(step))
    if self._in_a_row >= self._run.max_skipped:
      good = self._last_good()
      raise errors.Stopped(
          f"{self._in_a_row} updates in a row were skipped, the last at step {step}, as {what}: mend the data that the log"
          " names, or lower optimizer.learning_rate. The last good checkpoint is "
          + ("none" if good is None else f"that of step {good}")
      )

  def _judge(self, step: int, loss: float) -> None:
    """Compares a loss with a running mean and deviation, then adds it to them."""
    bound = self._run.spike_deviations
    deviation = math.sqrt(self._variance)
    high = bool(bound) and self._seen >= _WARM and loss > self._mean + bound * deviation
    if high and not self._high and self._log:
      _log.warning(
          "the loss jumped to %.4g at step %d, %.1f deviations above %.4g; its documents: %s",
          loss, step, (loss - self._mean) / max(deviation, 1e-12), self._mean, self._documents(step),
      )  # fmt: skip
    self._high = high
    self._seen += 1
    keep = min(_KEEP, 1 - 1 / self._seen)
    away = loss - self._mean
    self._mean += (1 - keep) * away
    self._variance = keep * (self._variance + (1 - keep) * away**2)

  def _documents(self, step: int) -> str:
    ids = self._ids(step - 1)
    return ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
