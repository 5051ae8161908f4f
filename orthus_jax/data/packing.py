"""Several documents to a row: a plan over an epoch, made from the documents' sizes alone.

A batch is a function of (seed, step): an epoch's order is drawn from (seed, epoch), its documents are packed into
rows in that order, and rows are dealt to steps. Neither hosts nor history enter.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np

EPOCHS_A_STAGE = 1 << 20  # stages number their epochs apart, so that each draws an order of its own
_OPEN_ROWS = 64  # rows kept open for a better fit; more would mix documents from ever farther apart in the order


@dataclasses.dataclass(frozen=True)
class Capacity:
  """What a row holds: positions, images, and images that are learnt."""

  positions: int
  images: int
  learnt_images: int

  def vector(self) -> np.ndarray:
    return np.asarray([self.positions, self.images, self.learnt_images])


def pack(sizes_D3: np.ndarray, order: np.ndarray, capacity: Capacity) -> list[list[int]]:
  """Packs documents into rows by best fit among a few open rows.

  Args:
    sizes_D3: (positions, images, learnt images) of every document.
    order: the documents to pack, as indices into `sizes_D3`; each must fit an empty row.
    capacity: of a row.

  Returns:
    Rows of indices, each document of `order` exactly once, rows in the order in which they were opened.
  """
  rows: list[list[int]] = []
  open_rows: list[int] = []
  room = np.zeros((_OPEN_ROWS, 3), np.int64)
  for d in order:
    size = sizes_D3[d]
    n = len(open_rows)
    fits = np.flatnonzero((room[:n] >= size).all(axis=1))
    if fits.size:
      best = int(fits[np.argmin(room[fits, 0])])
    else:
      if n == _OPEN_ROWS:  # close the fullest
        drop = int(np.argmin(room[:n, 0]))
        del open_rows[drop]
        room[drop : n - 1] = room[drop + 1 : n]
        n -= 1
      open_rows.append(len(rows))
      rows.append([])
      best = n
      room[best] = capacity.vector()
    rows[open_rows[best]].append(int(d))
    room[best] -= size
  return rows


class Plan:
  """Which documents stand in which row of which step.

  Args:
    sizes: from an epoch to its documents' sizes, [D, 3]; sizes may differ between epochs, as captions are dropped.
    weights_D: how many times a document is drawn per epoch, on average.
    capacity: of a row.
    batch_size: rows per step.
    seed: of the order.
    first_epoch: the number of the first epoch; the order is drawn from (seed, epoch).
  """

  def __init__(
      self,
      sizes: Callable[[int], np.ndarray],
      *,
      weights_D: np.ndarray,
      capacity: Capacity,
      batch_size: int,
      seed: int,
      first_epoch: int = 0,
  ):
    self._sizes = sizes
    self._weights_D = weights_D
    self._capacity = capacity
    self._batch_size = batch_size
    self._seed = seed
    self._first = first_epoch
    self._epochs: list[list[list[int]]] = []
    self._ends = [0]

  def _epoch(self, epoch: int) -> list[list[int]]:
    rng = np.random.default_rng((self._seed, epoch))
    whole = np.floor(self._weights_D).astype(int)
    extra = rng.random(len(whole)) < self._weights_D - whole
    order = rng.permutation(np.repeat(np.arange(len(whole)), whole + extra))
    rows = pack(self._sizes(epoch), order, self._capacity)
    rng.shuffle(rows)  # the last rows to close are the emptiest
    return rows

  def row(self, index: int) -> tuple[int, list[int]]:
    """(epoch, documents) of a row of the endless stream of rows."""
    while index >= self._ends[-1]:
      self._epochs.append(self._epoch(self._first + len(self._epochs)))
      self._ends.append(self._ends[-1] + len(self._epochs[-1]))
    epoch = int(np.searchsorted(self._ends, index, side="right")) - 1
    return self._first + epoch, self._epochs[epoch][index - self._ends[epoch]]

  def batch(self, step: int) -> list[tuple[int, list[int]]]:
    """The rows of a step's global batch."""
    return [self.row(step * self._batch_size + b) for b in range(self._batch_size)]


class StagedPlan:
  """Plans that follow one another: each from its own step on, where it starts at its beginning.

  Args:
    stages: (first step, plan) pairs, steps rising from 0.
  """

  def __init__(self, stages: list[tuple[int, Plan]]):
    self._stages = stages

  def batch(self, step: int) -> list[tuple[int, list[int]]]:
    """The rows of a step's global batch."""
    first, plan = next((first, plan) for first, plan in reversed(self._stages) if step >= first)
    return plan.batch(step - first)
