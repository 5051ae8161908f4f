"""The running batch: requests are added to it and given up, and each of its turns moves all ahead and tells what came of it.

A server's thread (`live.py`) and a list of requests (`stream.py`) drive the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from orthus_jax.data.documents import Document
from orthus_jax.inference import side_by_side
from orthus_jax.inference.capacity import Capacity
from orthus_jax.inference.network import Network
from orthus_jax.inference.requests import Prepared
from orthus_jax.inference.responses import Event
from orthus_jax.inference.scheduler import Scheduler
from orthus_jax.inference.telling import Telling


class Turn(NamedTuple):
  """What a call made.

  Attributes:
    made: positions, by request.
    events: what is told; an event's `index` is the request's number.
  """

  made: dict[int, int]
  events: list[Event]


class RunningBatch:
  """Requests that are answered together.

  Args:
    network: the model.
    capacity: of the batch.
    preview_rows: tell of unfinished pictures every so many rows of patches; 0: never.
  """

  def __init__(self, network: Network, capacity: Capacity, *, preview_rows: int = 0):
    self.capacity, rows = capacity, capacity.size.rows
    # Of no more pictures at once than there are rows, programs are compiled ahead.
    network = network._replace(encode=_by(rows, network.encode), decode=_by(rows, network.decode))
    count = side_by_side.parts(network, rows)
    self._scheduler = Scheduler(network, capacity) if count == 1 else side_by_side.SideBySide(network, capacity, count)
    self._telling = Telling(
        network.tokenizer, patches=network.config.vision_tokenizer.patches, decode=network.decode, preview_rows=preview_rows
    )

  def add(self, number: int, document: Document, prepared: Prepared, *, previews: bool = True) -> bool:
    """Has a request begin with the next turn; False where there is no room for it while others run, or it doesn't fit at all.

    Args:
      number: which no other request has that is on the way.
      document: its prompt.
      prepared: the request, laid out.
      previews: whether its unfinished pictures are told of, if any are.
    """
    if self.capacity.refusal(prepared) or not self._scheduler.join(number, prepared):
      return False
    self._telling.begin(number, document, previews=previews)
    return True

  def cancel(self, numbers: Collection[int]) -> None:
    """Gives requests up: their rows and guides are free for the next turn, and nothing more is told of them."""
    self._scheduler.leave(numbers)
    for number in numbers:
      self._telling.forget(number)

  def turn(self, *, others: bool) -> Turn:
    """Moves all ahead by some positions.

    Args:
      others: whether more wait for a place, or may come: then it ends early, as soon as some rows have.
    """
    made = self._scheduler.step(others=others)
    return Turn({m.ticket: len(m.tokens_N) for m in made}, self._telling.tell(made))

  @property
  def rows(self) -> int:
    """In use."""
    return self._scheduler.busy

  @property
  def guides(self) -> int:
    """In use."""
    return self._scheduler.guides_in_use

  def compile(self, told: Callable[[int, int], None] | None = None) -> None:
    """As `Scheduler.compile`."""
    self._scheduler.compile(told)


def _by(most: int, pictures: Callable[[Sequence[np.ndarray]], np.ndarray]) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
  return lambda x: np.concatenate([pictures(x[i : i + most]) for i in range(0, len(x), most)])
