"""Names a process that holds the others up: whose data come late, or whose host has more to do between two steps.

Devices wait for each other in every step, so a step takes all processes the same time, and none can tell by its clock that its
own devices are slow. What differs is the time in which a process doesn't wait for devices: for data, and for its own work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
import contextlib
import logging
import time

import numpy as np

from orthus_jax.training import hosts
from orthus_jax.training.goodput import Ledger

KINDS = ("its data take", "its own work takes")
_WINDOW = 3  # log records: one that is slow but once is nobody's fault
_FACTOR = 1.5  # times the others' median, and
_NOTICED = 0.05  # of a step more than that: what is shorter holds nobody up
_log = logging.getLogger(__name__)


def judge(seconds: np.ndarray, step: float) -> list[tuple[int, int, float, float]]:
  """Which processes are slow.

  Args:
    seconds: [log records, processes, kinds], each process's time for a step.
    step: seconds that a step takes in all.

  Returns:
    (process, kind, its mean, the median of the others' means), the one that exceeds the others' most first.
  """
  found = []
  mean = seconds.mean(axis=0)
  for process, kind in np.ndindex(*mean.shape):
    own, others = float(mean[process, kind]), float(np.median(np.delete(mean[:, kind], process)))
    if own > _FACTOR * others and own - others > _NOTICED * step:
      found.append((process, kind, own, others))
  return sorted(found, key=lambda f: f[3] - f[2])


class Stragglers:
  """Gathers all processes' times at log records; nothing where there is one process alone.

  Args:
    ledger: of this process.
  """

  def __init__(self, ledger: Ledger):
    self._ledger = ledger
    self._window: deque[np.ndarray] = deque(maxlen=_WINDOW)
    self._named: set[tuple[int, int]] = set()
    self._waited, self._steps = 0.0, 0
    self._last = ledger.seconds()
    self._names = hosts.names()

  @contextlib.contextmanager
  def devices(self) -> Iterator[None]:
    """A block in which this process may wait for devices."""
    at = time.monotonic()
    yield
    self._waited += time.monotonic() - at

  def step(self) -> None:
    """One step done."""
    self._steps += 1

  def record(self) -> dict[str, float]:
    """Metrics since the last call, which all processes make together: the number of the one that is slow, or -1."""
    if len(self._names) < 2:
      return {}
    now = self._ledger.seconds()
    spent = {p: now[p] - self._last[p] for p in ("data_wait", "step")}
    steps = max(self._steps, 1)
    own = [spent["data_wait"] / steps, max(0.0, spent["step"] - self._waited) / steps]
    self._window.append(hosts.gather(np.asarray(own, np.float32)))
    self._last, self._waited, self._steps = self._ledger.seconds(), 0.0, 0
    found = judge(np.stack(self._window), sum(spent.values()) / steps) if len(self._window) == _WINDOW else []
    for process, kind, its, others in found:
      if (process, kind) not in self._named:
        _log.warning(
            "process %d on %s holds the others up: %s %.3g s a step, the others' %.3g s",
            process, self._names[process], KINDS[kind], its, others,
        )  # fmt: skip
    self._named = {(process, kind) for process, kind, _, _ in found}
    worst = found[0] if found else (-1, 0, 0.0, 0.0)
    return {"straggler": float(worst[0]), "straggler_seconds": worst[2] - worst[3]}
