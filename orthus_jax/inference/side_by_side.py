"""A running batch in some parts, each of which a thread of its own moves ahead.

A CPU's cores share the products of a small model badly: one takes about as long for them as two (docs/performance.md). So each
core gets rows of its own; a part is a `Scheduler`, and all have the same programs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
import concurrent.futures
import dataclasses
import os
from typing import NamedTuple

import jax

from orthus_jax.inference.capacity import MOST_GUIDES, Capacity
from orthus_jax.inference.network import Network
from orthus_jax.inference.requests import Prepared
from orthus_jax.inference.scheduler import Progress, Scheduler
from orthus_jax.parallel import compiler

_ROWS = 4  # of a part, at least
_LARGEST = 1 << 28  # bytes of parameters; above, parts would wait for the memory rather than compute


def parts(network: Network, rows: int) -> int:
  """How many parts a batch is best moved ahead in: 1 but on a CPU."""
  if not network.on_one_cpu or sum(v.nbytes for v in jax.tree.leaves(network.params)) > _LARGEST:
    return 1
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former on Linux
  return next((n for n in range(min(cores, rows // _ROWS), 1, -1) if rows % n == 0), 1)


class _Moving(NamedTuple):
  """A part that is moving.

  Attributes:
    guides: how many each request has that it began with.
    made: what it will have made.
    left: requests that are given up meanwhile.
  """

  guides: dict[int, int]
  made: concurrent.futures.Future[list[Progress]]
  left: set[int]

  def still(self) -> list[int]:
    """Guides of each request that isn't given up."""
    return [n for ticket, n in self.guides.items() if ticket not in self.left]


class SideBySide:
  """What a `Scheduler` does, by several; a request stays in the part that it joined.

  Args:
    network: the model.
    capacity: of all parts together, guides rounded up.
    count: parts; divides the rows.
  """

  def __init__(self, network: Network, capacity: Capacity, count: int):
    size = capacity.size
    guides = max(-(-size.guides // count), min(size.guides, MOST_GUIDES))  # for any request that the capacity takes
    own = dataclasses.replace(size, rows=size.rows // count, guides=guides)
    programs = compiler.Programs()
    self._parts = [
        Scheduler(network, dataclasses.replace(capacity, size=own), programs=programs) for _ in range(count)
    ]
    self._pool = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="orthus-part")
    self._moving: dict[int, _Moving] = {}  # by the part's place
    self._made: list[Progress] = []  # by parts that have been waited for already

  @property
  def busy(self) -> int:
    """As `Scheduler.busy`; a request is on its way until `step` has told of its end."""
    moving = sum(len(m.still()) for m in self._moving.values())
    return moving + sum(p.busy for p in self._still) + sum(m.done for m in self._made)

  @property
  def guides_in_use(self) -> int:
    return sum(sum(m.still()) for m in self._moving.values()) + sum(p.guides_in_use for p in self._still)

  @property
  def _still(self) -> list[Scheduler]:
    return [p for i, p in enumerate(self._parts) if i not in self._moving]

  def join(self, ticket: int, request: Prepared) -> bool:
    """As `Scheduler.join`; parts that are moving take none until they have come back."""
    return any(p.join(ticket, request) for p in sorted(self._still, key=lambda p: p.busy))

  def step(self, *, others: bool = False) -> list[Progress]:
    """Has all move that stand still, and waits for the first of them to come back."""
    for i, part in enumerate(self._parts):
      if i not in self._moving and part.busy:
        # What it has is counted ahead, as the thread changes it.
        self._moving[i] = _Moving(part.guides_of(), self._pool.submit(part.step, others=others), set())
    if not self._made:
      concurrent.futures.wait([m.made for m in self._moving.values()], return_when=concurrent.futures.FIRST_COMPLETED)
      self._collect([i for i, m in self._moving.items() if m.made.done()])
    made, self._made = self._made, []
    return made

  def leave(self, tickets: Collection[int]) -> None:
    """As `Scheduler.leave`; places in a part that is moving are free once it comes back, which isn't waited for."""
    self._made = [m for m in self._made if m.ticket not in tickets]
    for i, part in enumerate(self._parts):
      if i in self._moving:
        self._moving[i].left.update(self._moving[i].guides.keys() & set(tickets))
      else:
        part.leave(tickets)

  def compile(self, told: Callable[[int, int], None] | None = None) -> None:
    """As `Scheduler.compile`."""
    self._parts[0].compile(told)
    for part in self._parts[1:]:  # to which these programs are ready
      part.compile()

  def _collect(self, moving: list[int]) -> None:
    """Takes what these have made, which have come back."""
    for i in moving:
      _, made, left = self._moving.pop(i)
      self._made += [m for m in made.result() if m.ticket not in left]
      self._parts[i].leave(left)
