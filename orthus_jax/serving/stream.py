"""Answers as server-sent events, and work that ends where nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
import contextlib
import json
import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from orthus_jax.serving.errors import ApiError
from orthus_jax.serving.metrics import Metrics

_QUIET = 15.0  # seconds without an event, after which a stream says that it lives
_STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy (nginx's word) passes on what comes at once


async def respond(request: Request, events: AsyncIterator[dict[str, Any]], metrics: Metrics, *, named: bool) -> Response:
  """Server-sent events; what fails before the first one, or within `_QUIET` seconds, is an error as any."""
  path, began = request.url.path, request.state.began
  coming = asyncio.ensure_future(_next(events))
  try:
    await while_connected(request, asyncio.wait({coming}, timeout=_QUIET))
    if coming.done():
      await coming
  except BaseException:
    coming.cancel()
    raise

  async def lines() -> AsyncIterator[str]:
    nonlocal coming
    begun = False
    try:
      while True:
        while not (await asyncio.wait({coming}, timeout=_QUIET))[0]:
          yield ": still at it\n\n"  # a comment, so that no proxy takes the connection for dead
        if (event := coming.result()) is None:
          break
        if not begun and _tells(event):
          begun = True
          metrics.first.labels(path).observe(time.monotonic() - began)
        head = f"event: {event['type']}\n" if named else ""
        yield f"{head}data: {json.dumps(event, ensure_ascii=False)}\n\n"
        coming = asyncio.ensure_future(_next(events))
      if not named:
        yield "data: [DONE]\n\n"
    except ApiError as e:
      metrics.failed(e)
      head = "event: error\n" if named else ""
      yield f"{head}data: {json.dumps(e.to_json())}\n\n"
    except Exception:
      metrics.failures.labels("fault").inc()
      raise
    finally:
      metrics.seconds.labels(path).observe(time.monotonic() - began)
      if coming.done():
        await events.aclose()  # type: ignore[attr-defined]
      else:
        coming.cancel()  # which ends them, too

  return StreamingResponse(lines(), media_type="text/event-stream", headers=_STREAMED)


def _tells(event: Mapping[str, Any]) -> bool:
  """Whether something of an answer is in it, as there is not in a chat's chunk that only opens or ends one."""
  deltas = [c["delta"] for c in event.get("choices", ())]
  return "b64_json" in event or any(d.get(kind) for d in deltas for kind in ("content", "images", "preview"))


async def _next(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
  return await anext(events, None)


async def while_connected(request: Request, work: Any) -> Any:
  """The work's result; it is cancelled when the client goes."""
  task = asyncio.ensure_future(work)

  async def watch() -> None:
    while not await request.is_disconnected():
      await asyncio.sleep(0.2)

  watcher = asyncio.create_task(watch())
  try:
    await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise ClientDisconnect
    return task.result()
  finally:
    for other in (task, watcher):
      other.cancel()
      with contextlib.suppress(asyncio.CancelledError, ApiError):
        await other
