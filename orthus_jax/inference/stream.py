"""Requests out of an iterator, answered in one running batch that is filled up as they end."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
import itertools

from orthus_jax.data.documents import Document
from orthus_jax.errors import BadRequest
from orthus_jax.inference import capacity
from orthus_jax.inference.network import Network
from orthus_jax.inference.requests import Prepared, Request
from orthus_jax.inference.responses import Event, Failed
from orthus_jax.inference.running import RunningBatch

_AHEAD = 512  # requests, and so their pictures, that are laid out before there is room for them


def stream(
    requests: Iterable[Request], *, prepare: Callable[[Request], Prepared], network: Callable[[str], Network],
    batch_size: int, positions: int, preview_rows: int, holds: capacity.Capacity | None, strict: bool,
) -> Iterator[Event]:  # fmt: skip
  """As `Model.stream`.

  Args:
    requests: read as there is room; some are laid out ahead, and the batch is as large as these need.
    prepare, network: the model's.
    batch_size, preview_rows, holds, strict: as there.
    positions: that rows move ahead in one call.
  """
  coming = enumerate(requests)
  ahead = None if strict else max(_AHEAD, batch_size)
  waiting: collections.deque[tuple[int, Document, Prepared]] = collections.deque()
  batch: RunningBatch | None = None
  fixed: tuple[str, str, str] | None = None
  while True:
    for index, request in itertools.islice(coming, None if ahead is None else ahead - len(waiting)):
      try:
        prepared = prepare(request)
        fixed = fixed or prepared.fixed
        if prepared.fixed != fixed:
          raise BadRequest(
              f"weights, cache and solver_loop are {prepared.fixed}, but {fixed} in the first request: one choice for all"
          )
        waiting.append((index, request.document, prepared))
      except BadRequest as e:
        if strict:
          raise
        yield Failed(index, str(e))
    while waiting and batch and batch.add(*waiting[0]):
      waiting.popleft()
    if batch and batch.rows:
      yield from batch.turn(others=bool(waiting)).events
    elif waiting:  # at first, and where one comes that is larger than what was laid out by then
      batch = None  # its cache is freed ahead of the next one's
      holds = capacity.for_requests([p for *_, p in waiting], batch_size=batch_size, positions=positions, before=holds)
      batch = RunningBatch(network(holds.fixed[0]), holds, preview_rows=preview_rows)
    else:
      return
