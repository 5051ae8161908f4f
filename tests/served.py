"""A small model behind HTTP, for tests."""

import asyncio
from collections.abc import Iterator
import contextlib
import socket
import threading
import time

import uvicorn

from orthus_jax.inference.live import Engine, Limits
from orthus_jax.inference.scheduler import Scheduler
from orthus_jax.serving.app import Server, Settings

KEY = "secret"
LIMITS = Limits(rows=3, guides=3, slots=256, positions=8, queue=4, preview_rows=1)


@contextlib.contextmanager
def over_http(model, **settings) -> Iterator[Server]:
  """A server on a free port, with its `url`."""
  engine = Engine(model, LIMITS)
  engine.start()
  server = Server(engine, Settings(name="tiny", api_key=KEY, **settings))
  server.ready = True
  listening = socket.socket()
  listening.bind(("127.0.0.1", 0))
  http = uvicorn.Server(uvicorn.Config(server.app, log_level="warning", lifespan="off"))
  thread = threading.Thread(target=lambda: asyncio.run(http.serve([listening])), daemon=True)
  thread.start()
  server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
  yield server
  http.should_exit = True
  thread.join(10)
  engine.close()


def held(monkeypatch) -> Iterator[threading.Event]:
  """For a fixture: the engine's calls wait until it is set."""
  step, on = Scheduler.step, threading.Event()
  monkeypatch.setattr(Scheduler, "step", lambda *args, **options: on.wait(600) and step(*args, **options))
  yield on
  on.set()


def wait_for(what, seconds=120.0):
  """Until something holds."""
  by = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < by, "it didn't come to that"
    time.sleep(0.02)
