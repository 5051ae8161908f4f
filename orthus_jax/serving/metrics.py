"""What an operator watches, in Prometheus' text."""

from __future__ import annotations

from collections.abc import Iterator
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from orthus_jax.inference.live import Engine
from orthus_jax.serving.errors import ApiError

_REASONS = {
    400: "bad request", 401: "key", 403: "another page", 408: "slow request", 413: "too large", 429: "queue full",
    503: "not ready", 504: "too long",
}  # fmt: skip
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
  """Of one server."""

  def __init__(self, engine: Engine):
    self._engine, self._began = engine, time.monotonic()
    self.registry = CollectorRegistry()
    self.requests = Counter("orthus_requests", "Requests by path and status.", ("path", "status"), registry=self.registry)
    self.seconds = Histogram(
        "orthus_request_seconds", "From a request to its answer's end.", ("path",), buckets=_SECONDS, registry=self.registry
    )
    self.first = Histogram(
        "orthus_first_piece_seconds", "From a request to its answer's first piece.", ("path",), buckets=_SECONDS,
        registry=self.registry,
    )  # fmt: skip
    self.failures = Counter("orthus_failures", "Requests that weren't served, by reason.", ("reason",), registry=self.registry)
    self.registry.register(self)  # type: ignore[arg-type]

  def failed(self, error: ApiError) -> None:
    """Counts it by its reason."""
    self.failures.labels(_REASONS.get(error.status, "engine")).inc()

  def collect(self) -> Iterator[Any]:
    """The engine's own figures, as they are now."""
    load = self._engine.load
    for name, what, value in (
        ("orthus_queue", "Requests that wait for a row.", load.waiting), ("orthus_rows", "Rows in use.", load.rows),
        ("orthus_guides", "Guides in use.", load.guides), ("orthus_rows_limit", "Rows.", self._engine.limits.rows),
        ("orthus_queue_limit", "Requests that may wait.", self._engine.limits.queue),
    ):  # fmt: skip
      yield GaugeMetricFamily(name, what, value=value)
    yield CounterMetricFamily("orthus_positions", "Positions made, text and patches.", value=load.positions)
    yield CounterMetricFamily("orthus_pictures", "Pictures finished.", value=load.pictures)
    yield CounterMetricFamily("orthus_engine_calls", "Calls of the engine.", value=load.calls)

  def text(self) -> bytes:
    return generate_latest(self.registry)
