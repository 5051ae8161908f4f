"""A request on its way through an open batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import queue
from typing import Protocol

from orthus_jax.inference.requests import Prepared, Request
from orthus_jax.inference.responses import Event


class _Engine(Protocol):
  """What a ticket needs of the engine that gave it."""

  def cancel(self, ticket: Ticket) -> None:
    """Gives its request up."""


class Ticket:
  """A request on its way.

  Attributes:
    number: in the order in which requests came.
    request: what was asked.
    prompt: positions of its prompt.
    made, most: positions of the response so far, and at most.
    said, most_text: of these, what isn't of pictures that are finished, and text's at most.
    deadline: on time.monotonic()'s clock; None for none.
    previews: whether unfinished pictures are told of.
  """

  def __init__(
      self, engine: _Engine, number: int, request: Request, prepared: Prepared, *, deadline: float | None, previews: bool,
      tell: Callable[[Event | None], None] | None,
  ):  # fmt: skip
    self.number, self.request, self.deadline, self.previews = number, request, deadline, previews
    self.prompt, self.made, self.most = len(prepared.main), 0, prepared.max_new
    self.said, self.most_text, self._picture = 0, prepared.most_text, prepared.patches + 2
    self.calls = 0  # that the engine has made since it joined
    self._engine, self._events = engine, queue.SimpleQueue[Event | None]()
    self.put = tell or self._events.put

  def goes_on(self, positions: int, pictures: int) -> None:
    """Counts what a call has made."""
    self.calls, self.made = self.calls + 1, self.made + positions
    self.said += positions - pictures * self._picture

  @property
  def cut(self) -> bool:
    """Whether a response that has ended would have gone on: it came to its last position, or its text to text's last."""
    return self.made >= self.most or self.said > self.most_text

  def events(self, timeout: float | None = None) -> Iterator[Event]:
    """What comes of the request, its end (`Finished` or `Failed`) last; waits for it.

    Raises:
      queue.Empty: if nothing came for `timeout` seconds.
    """
    while (event := self._events.get(timeout=timeout)) is not None:
      yield event

  def cancel(self) -> None:
    """Gives the request up; its row is free at the next call. Nothing where it has ended."""
    self._engine.cancel(self)
