"""A real S3 server on loopback, which fails as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import logging
from pathlib import Path
import socket
import threading
import time
import urllib.request

from orthus_jax.storage import bring, bucket as bucket_lib

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
    "AWS_RETRY_MODE": "standard", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
Fault = Callable[[str, str], str]  # (method, path) → "", "500", "reset" before an answer, "cut" within it, or "slow"


class Server:
  """moto's, with faults ahead of it.

  Attributes:
    url: its endpoint.
    fault: what befalls a request.
    requests: (method, path) of all that came.
  """

  def __init__(self):
    from moto.server import DomainDispatcherApplication, create_backend_app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    self.fault: Fault = lambda method, path: ""
    self.requests: list[tuple[str, str]] = []
    self._app = DomainDispatcherApplication(create_backend_app)
    self.listen(0)
    self.url = f"http://127.0.0.1:{self._server.server_port}"

  def listen(self, port: int) -> None:
    """Answers at a port, with all that it has."""
    from werkzeug.serving import make_server

    self._server = make_server("127.0.0.1", port, self, threaded=True)
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def __call__(self, environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    self.requests.append((method, path))
    fault = self.fault(method, path)
    if fault == "500":
      start_response("500 Internal Server Error", [("Content-Type", "text/plain"), ("Content-Length", "0")])
      return [b""]
    if fault == "reset":
      environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
      raise ConnectionResetError
    if fault == "slow":
      time.sleep(0.3)
    answer = self._app(environ, start_response)
    return _cut(b"".join(answer), environ["werkzeug.socket"]) if fault == "cut" else answer

  def make(self, bucket: str) -> None:
    """Makes an empty bucket."""
    urllib.request.urlopen(urllib.request.Request(f"{self.url}/{bucket}", method="PUT")).close()

  @staticmethod
  def objects(folder: str) -> dict[str, bytes]:
    """What lies below a folder of the bucket `mine`, asked of moto itself: a request each would take long."""
    found = _backend().buckets["mine"].keys
    return {k.removeprefix(f"{folder}/"): found[k].value for k in list(found) if k.startswith(f"{folder}/")}

  @staticmethod
  def fill(folder: str, names: Iterable[str]) -> None:
    """Makes small objects, without a request each."""
    for name in names:
      _backend().put_object("mine", f"{folder}/{name}", b"x")

  def close(self) -> None:
    """Answers nothing any more: connections are refused, until it listens again."""
    self._server.shutdown()
    self._server.server_close()


@contextlib.contextmanager
def s3() -> Iterator[Server]:
  """An empty server, which drivers forget when it ends: s3fs keeps connections by its arguments, and an endpoint is none."""
  from s3fs import S3FileSystem

  server = Server()
  urllib.request.urlopen(urllib.request.Request(f"{server.url}/moto-api/reset", method="POST")).close()  # moto's is by process
  S3FileSystem.clear_instance_cache()
  try:
    yield server
  finally:
    server.close()
    S3FileSystem.clear_instance_cache()


def _backend():
  from moto.s3.models import s3_backends

  return s3_backends["123456789012"]["aws"]  # moto's own account


def _cut(body: bytes, connection: socket.socket) -> Iterator[bytes]:
  """Half of an answer, whose length was told."""
  yield body[: len(body) // 2]
  connection.shutdown(socket.SHUT_RDWR)
  raise ConnectionResetError


def use(server: Server, monkeypatch, cache: Path) -> None:
  """Has this process use the server, with an empty bucket `mine`; nothing waits long."""
  import fsspec

  for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(bucket_lib, "_WAITS", (0.01, 0.02, 0.04))
  server.fault = lambda method, path: ""
  elsewhere(monkeypatch, cache)
  files = fsspec.filesystem("s3", use_listings_cache=False, **bucket_lib._options("s3"))
  if not files.exists("mine"):
    files.mkdir("mine")
  if files.find("mine"):
    files.rm("mine/runs", recursive=True)


def elsewhere(monkeypatch, cache: Path) -> None:
  """Another machine: it has none of what was here, nor does it know what a process has asked before."""
  monkeypatch.setenv("ORTHUS_CACHE", str(cache))
  bring._bring.cache_clear()
  bring.only.cache_clear()
  bring._told.clear()


def some(n: int, fault: str) -> Fault:
  """The first n requests that write or read an object fail."""
  lock, left = threading.Lock(), [n]

  def of(method: str, path: str) -> str:
    with lock:
      if left[0] and path.count("/") > 1:
        left[0] -= 1
        return fault
    return ""

  return of
