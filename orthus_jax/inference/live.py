"""A running batch that is always open: requests come at any time, wait in a queue, have deadlines, and may be given up.

One thread moves the batch (`running.py`) ahead. All else happens between two of its turns, each of which is some positions
long.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
import logging
import threading
import time

from orthus_jax.errors import BadRequest
from orthus_jax.inference import capacity
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import Prepared, Request
from orthus_jax.inference.responses import Drawn, Event, Failed, Finished
from orthus_jax.inference.running import RunningBatch
from orthus_jax.inference.ticket import Ticket

_log = logging.getLogger(__name__)
LATE = "it took too long"


class Full(Exception):
  """No more requests may wait."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is fixed when the engine starts, as its programs are compiled for it.

  Attributes:
    rows: requests that are answered at once.
    guides: lanes for what guidance compares them with.
    slots: positions of a lane, prompt and response; 0 for all that the model has.
    positions: that rows move ahead in one call: how long one that comes waits at most for its turn.
    queue: requests that may wait for a row.
    solvers: (name, steps) pairs that requests may ask for; the model's own is among them always.
    preview_rows: unfinished pictures are told of every so many rows of patches; 0: never.
  """

  rows: int = 16
  guides: int = 16
  slots: int = 0
  positions: int = 16
  queue: int = 64
  solvers: tuple[tuple[str, int], ...] = ()
  preview_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Load:
  """How much is on the way.

  Attributes:
    waiting, rows, guides: requests without a row, rows and guides in use.
    positions: that all rows together were moved ahead since the start.
    calls: of the engine.
    pictures: that were finished since the start.
  """

  waiting: int
  rows: int
  guides: int
  positions: int
  calls: int
  pictures: int


class Engine:
  """Answers requests until it is closed.

  Args:
    model: which answers.
    limits: of the batch.

  Attributes:
    failed: why it answers no more, though nobody closed it; "" while it does.
  """

  def __init__(self, model: Model, limits: Limits = Limits()):
    self.model, self.limits = model, limits
    sampling, longest = model.config.sampling, model.config.model.transformer.max_positions
    own = (sampling.solver, sampling.steps), (sampling.solver, sampling.late_steps or sampling.steps)
    self._capacity = capacity.make(
        (sampling.weights, sampling.cache, sampling.solver_loop), rows=limits.rows, guides=limits.guides,
        slots=min(limits.slots or longest, longest), positions=limits.positions, solvers=(*own, *limits.solvers),
    )  # fmt: skip
    self._changed = threading.Condition()
    self._waiting: list[tuple[Ticket, Prepared]] = []
    self._running: dict[int, Ticket] = {}
    self._given_up: set[int] = set()
    self._number = self._positions = self._calls = self._pictures = 0
    self._in_use = 0, 0  # rows and guides after the last call, as the batch is the engine's thread's alone
    self._open, self._closing, self._end_by = False, False, 0.0
    self.failed = ""
    self._thread: threading.Thread | None = None
    self._start_anew()

  def _start_anew(self) -> None:
    network = self.model.network(self._capacity.fixed[0])
    self._batch = RunningBatch(network, self._capacity, preview_rows=self.limits.preview_rows)

  def compile(self, told: Callable[[int, int], None] | None = None) -> None:
    """Compiles ahead, before `start`, so that no request waits for a program.

    Args:
      told: called with (programs done, in all).
    """
    self._batch.compile(told)
    self.model.compile_pictures(self.limits.rows)

  # --- for those who ask, from any thread ---------------------------------------------------------------------------

  def start(self) -> None:
    """Begins to answer."""
    with self._changed:
      if self._thread is None:
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="orthus-engine", daemon=True)
        self._thread.start()

  def submit(
      self, request: Request, *, seconds: float | None = None, previews: bool = True,
      tell: Callable[[Event | None], None] | None = None,
  ) -> Ticket:  # fmt: skip
    """Asks for an answer.

    Args:
      request: to be answered.
      seconds: after which it is given up, wherever it is then.
      previews: whether its unfinished pictures are wanted, if the engine tells of any.
      tell: called on the engine's thread with each event, and with None at the end, in the place of `Ticket.events`.

    Raises:
      BadRequest: if it can't be served.
      Full: if too many wait already.
      RuntimeError: if the engine isn't open.
    """
    prepared = self._prepared(request)
    with self._changed:
      if not self._open:
        raise RuntimeError(self.failed or "the engine takes no requests")
      # Those whose rows are free wait for no more than the next call.
      if len(self._waiting) >= self.limits.queue + max(0, self.limits.rows - self._in_use[0]):
        raise Full
      deadline = None if seconds is None else time.monotonic() + seconds
      ticket = Ticket(self, self._number, request, prepared, deadline=deadline, previews=previews, tell=tell)
      self._number += 1
      self._waiting.append((ticket, prepared))
      self._changed.notify()
      return ticket

  def _prepared(self, request: Request) -> Prepared:
    prepared = self.model.prepare(request)
    # Words end where the slots do, as they do where the model's positions end; pictures that were asked for must fit.
    room = self._capacity.size.slots - len(prepared.main)
    if max(prepared.max_new - prepared.most_text, 1) <= room < prepared.max_new:
      prepared = dataclasses.replace(prepared, max_new=room)
    if refusal := self._capacity.refusal(prepared):
      raise BadRequest(refusal)
    return prepared

  def cancel(self, ticket: Ticket) -> None:
    """As `Ticket.cancel`."""
    with self._changed:
      self._given_up.add(ticket.number)
      self._changed.notify()

  @property
  def load(self) -> Load:
    with self._changed:
      return Load(len(self._waiting), *self._in_use, self._positions, self._calls, self._pictures)

  def close(self, *, seconds: float = 0.0, hanging: float | None = None) -> bool:
    """Takes no more requests, lets those that have come finish for some seconds, and ends.

    Args:
      seconds: after which what is left is failed.
      hanging: that the call under way may take beyond those, as it can't be interrupted; None for all that it takes.

    Returns:
      Whether it has ended; its thread is left behind where a call took longer, and all requests have failed.
    """
    with self._changed:
      self._open, self._closing = False, True
      self._end_by = time.monotonic() + seconds
      self._changed.notify()
    if self._thread is None:
      return True
    self._thread.join(None if hanging is None else seconds + hanging)
    if not self._thread.is_alive():
      return True
    with self._changed:
      self._fail([*[t for t, _ in self._waiting], *self._running.values()], "the server is stopping, and a call hangs")
    return False

  # --- the engine's own thread --------------------------------------------------------------------------------------

  def _serve(self) -> None:
    while True:
      with self._changed:
        while not (self._waiting or self._running or self._closing):
          self._given_up.clear()  # of those that have ended
          self._changed.wait()
        if self._closing and (time.monotonic() >= self._end_by or not (self._waiting or self._running)):
          self._fail([*[t for t, _ in self._waiting], *self._running.values()], "the server is stopping")
          return
      fault = ""
      try:
        self._turn()
      except Exception as e:
        _log.exception("the engine failed")
        fault = f"the engine failed: {type(e).__name__}: {e}"
      if fault and not self._recovers(fault):
        return

  def _recovers(self, fault: str) -> bool:
    """What is on the way is lost, those who wait are served; False where there can be no other batch, and all ends."""
    with self._changed:
      self._fail(list(self._running.values()), fault)
      self._in_use = 0, 0
    del self._batch  # there may be no room for its arrays and the next one's
    try:
      self._start_anew()
    except Exception as e:
      _log.exception("the engine can't begin anew")
      with self._changed:
        self._open, self.failed = False, f"the engine can't begin anew: {type(e).__name__}: {e}"
        self._fail([t for t, _ in self._waiting], self.failed)
      return False
    return True

  def _turn(self) -> None:
    with self._changed:
      self._drop()
      while self._waiting:
        ticket, prepared = self._waiting[0]
        self._running[ticket.number] = ticket  # ahead: where joining fails, so does who joins, and nobody meets it again
        if not self._joins(ticket, prepared):
          del self._running[ticket.number]
          break
        self._waiting.pop(0)
      self._count()
    # A call ends early once some rows have: their answers are told at once, and who asked comes again.
    made, events = self._batch.turn(others=True)
    drawn = collections.Counter(event.index for event in events if isinstance(event, Drawn))
    for number, positions in made.items():
      self._running[number].goes_on(positions, drawn[number])
      self._positions += positions
    for event in events:
      self._pictures += isinstance(event, Drawn)
      ticket = self._running[event.index]
      if isinstance(event, Finished):
        self._end(ticket, event)
      else:
        ticket.put(event)
    self._calls += 1
    self._count()

  def _joins(self, ticket: Ticket, prepared: Prepared) -> bool:
    return self._batch.add(ticket.number, ticket.request.document, prepared, previews=ticket.previews)

  def _count(self) -> None:
    self._in_use = self._batch.rows, self._batch.guides

  def _drop(self) -> None:
    """Gives up what was cancelled or has run out of time."""
    now = time.monotonic()

    def late(ticket: Ticket) -> bool:
      return ticket.deadline is not None and now >= ticket.deadline

    gone = [t for t in self._running.values() if t.number in self._given_up or late(t)]
    self._batch.cancel([t.number for t in gone])
    gone += [t for t, _ in self._waiting if t.number in self._given_up or late(t)]
    self._waiting = [(t, p) for t, p in self._waiting if t not in gone]
    for ticket in gone:
      self._end(ticket, Failed(ticket.number, LATE if late(ticket) else "it was cancelled"))
    self._given_up.clear()

  def _fail(self, tickets: Sequence[Ticket], reason: str) -> None:
    for ticket in tickets:
      self._end(ticket, Failed(ticket.number, reason))
    self._waiting = [(t, p) for t, p in self._waiting if t not in tickets]

  def _end(self, ticket: Ticket, event: Finished | Failed) -> None:
    self._running.pop(ticket.number, None)
    ticket.put(event)
    ticket.put(None)
