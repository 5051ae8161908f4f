"""From the engine's thread to one that waits: a request's events as an asynchronous stream, given up when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib
import dataclasses

from orthus_jax.errors import BadRequest
from orthus_jax.inference.live import LATE, Engine, Full
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Event, Failed
from orthus_jax.inference.ticket import Ticket
from orthus_jax.serving.errors import ApiError

_BEHIND = 5.0  # seconds for the engine to say itself that it takes too long; it can't during a call that hangs or compiles


@dataclasses.dataclass(frozen=True)
class Answer:
  """A request on its way.

  Attributes:
    ticket: the engine's.
    events: what comes of it, `Finished` last.
    stopped: whether it was cut at a text that it was to stop at, however far it had come by then.
  """

  ticket: Ticket
  events: AsyncIterator[Event]
  stopped: bool = False

  @property
  def finish_reason(self) -> str:
    """"length" where it went on to its last position, else "stop"."""
    if self.stopped or self.ticket.request.respond == "image":
      return "stop"
    return "length" if self.ticket.cut else "stop"


@contextlib.asynccontextmanager
async def ask(engine: Engine, request: Request, *, seconds: float, previews: bool = False) -> AsyncIterator[Answer]:
  """Asks the engine; on leaving, what hasn't ended is given up.

  Args:
    engine: which answers.
    request: what is asked.
    seconds: how long it may take.
    previews: whether unfinished pictures are wanted.

  Raises:
    ApiError: 400 if it can't be served, 429 if too many wait, 503 if the server is stopping; while events are read, 504 if it
      takes too long, 500 if the engine fails.
  """
  loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
  end = loop.time() + seconds + _BEHIND

  def tell(event: Event | None) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens any more
      loop.call_soon_threadsafe(queue.put_nowait, event)

  # Pictures are scaled and texts are cut into tokens, which others needn't wait for.
  submitting = asyncio.create_task(asyncio.to_thread(engine.submit, request, seconds=seconds, previews=previews, tell=tell))
  try:
    ticket = await asyncio.shield(submitting)
  except asyncio.CancelledError:
    submitting.add_done_callback(_give_up)  # the thread goes on, and its ticket would be nobody's
    raise
  except BadRequest as e:
    raise ApiError(400, str(e)) from e
  except Full:
    raise ApiError(429, "too many requests wait already: ask again in a moment", retry_after=2) from None
  except RuntimeError as e:
    raise ApiError(503, engine.failed or "the server is stopping, or hasn't started", retry_after=5) from e

  async def events() -> AsyncIterator[Event]:
    while (event := await _next(queue, end)) is not None:
      if isinstance(event, Failed):
        raise ApiError(504 if event.reason == LATE else 500, event.reason)
      yield event

  try:
    yield Answer(ticket, events())
  finally:
    ticket.cancel()


async def _next(queue: asyncio.Queue[Event | None], end: float) -> Event | None:
  try:
    async with asyncio.timeout_at(end):
      return await queue.get()
  except TimeoutError:
    raise ApiError(504, LATE) from None


def _give_up(submitted: asyncio.Task[Ticket]) -> None:
  if not submitted.cancelled() and submitted.exception() is None:
    submitted.result().cancel()
