"""A server's life: listening, compiling ahead, serving, and stopping when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import time

import uvicorn

from orthus_jax import files
from orthus_jax.errors import AT_ONCE, BadRequest
from orthus_jax.inference.live import Engine
from orthus_jax.serving.app import Server

_log = logging.getLogger("orthus_jax.serve")
_STOPS = (signal.SIGTERM, signal.SIGINT)
_HANGING = 10.0  # seconds that a call may take beyond those that answers have to finish; some compile


def listen(host: str, port: int) -> socket.socket:
  """A socket that is bound, so that a port that is taken is told before a model is loaded.

  Raises:
    BadRequest: if it can't be.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listening = socket.socket(family, kind, protocol)
    try:
      listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listening.bind(address)
    except OSError:
      listening.close()
      raise
  except OSError as e:
    raise BadRequest(f"--host={host} --port={port} can't be listened at: {e.strerror or e}; choose others") from e
  return listening


def serve(server: Server, listening: socket.socket, *, compile: Callable[[int, int], None] | None, grace: float) -> int:
  """Serves until SIGTERM or Ctrl-C, a second of which ends at once, or until the engine fails for good.

  Args:
    server: whose engine isn't started.
    listening: from `listen`.
    compile: is told how far compiling ahead has come; None leaves it out.
    grace: seconds that answers may still take.

  Returns:
    The exit status: 1 where the engine has failed, so that a supervisor starts another server.
  """
  files.allow_many_open()  # a connection takes one
  return asyncio.run(_serve(server, listening, compile, grace))


async def _serve(server: Server, listening: socket.socket, compile: Callable[[int, int], None] | None, grace: float) -> int:
  stop = asyncio.Event()
  loop = asyncio.get_running_loop()

  def told() -> None:
    if stop.is_set():
      os._exit(AT_ONCE)
    stop.set()

  for number in _STOPS:
    loop.add_signal_handler(number, told)
  # Nothing of a request is logged; how many there were is a metric.
  http = _Http(uvicorn.Config(
      server.app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=30, limit_concurrency=4096,
      h11_max_incomplete_event_size=64 << 10, timeout_graceful_shutdown=max(int(grace), 1),
  ))  # fmt: skip
  serving = asyncio.create_task(http.serve([listening]))
  host, port = listening.getsockname()[:2]
  server.here = ipaddress.ip_address(host).is_loopback
  url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
  starting = asyncio.create_task(_start(server, compile, url))
  await asyncio.wait({asyncio.create_task(stop.wait()), starting, serving}, return_when=asyncio.FIRST_COMPLETED)
  if not stop.is_set() and not serving.done():
    await starting  # which may have failed
    failing = asyncio.create_task(_failed(server.engine))
    await asyncio.wait({asyncio.create_task(stop.wait()), serving, failing}, return_when=asyncio.FIRST_COMPLETED)
  if server.engine.failed:
    _log.error("%s: the server ends", server.engine.failed)
  else:
    _log.info("stopping: what runs has %.0f s to finish", grace)
  server.ready = False
  if not starting.done():
    os._exit(0)  # a compilation can't be interrupted, and nothing is under way
  ended = await asyncio.to_thread(server.engine.close, seconds=grace, hanging=_HANGING)
  http.should_exit = True
  await serving
  _log.info("stopped" if ended else "stopped, though a call hangs")
  if not ended:
    logging.shutdown()
    os._exit(1 if server.engine.failed else 0)  # the interpreter would wait for the call, or break it off and crash
  return 1 if server.engine.failed else 0


async def _failed(engine: Engine) -> None:
  """Until the engine has failed."""
  while not engine.failed:
    await asyncio.sleep(0.5)


async def _start(server: Server, compile: Callable[[int, int], None] | None, url: str) -> None:
  begin = time.monotonic()
  if compile is not None:
    _log.info("compiling ahead, so that no request waits for it; /health says when that is done")
    await asyncio.to_thread(server.engine.compile, compile)
    _log.info("compiled in %.1f s", time.monotonic() - begin)
  server.engine.start()
  server.ready = True
  _log.info("serving %s at %s/v1", server.settings.name, url)


class _Http(uvicorn.Server):
  """Leaves signals to us."""

  @contextlib.contextmanager
  def capture_signals(self):
    yield
