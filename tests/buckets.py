"""A real S3 server on loopback, which fails as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import logging
import socket
import threading
import time
import urllib.request

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
    "AWS_RETRY_MODE": "standard", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
Fault = Callable[[str, str], str]  # (method, path) → "", "500", "reset" or "slow"


class Server:
  """moto's, with faults ahead of it.

  Attributes:
    url: its endpoint.
    fault: what befalls a request.
    requests: (method, path) of all that came.
  """

  def __init__(self):
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    self.fault: Fault = lambda method, path: ""
    self.requests: list[tuple[str, str]] = []
    self._app = DomainDispatcherApplication(create_backend_app)
    self._server = make_server("127.0.0.1", 0, self, threaded=True)
    self.url = f"http://127.0.0.1:{self._server.server_port}"
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
    return self._app(environ, start_response)

  def make(self, bucket: str) -> None:
    """Makes an empty bucket."""
    urllib.request.urlopen(urllib.request.Request(f"{self.url}/{bucket}", method="PUT")).close()

  def close(self) -> None:
    self._server.shutdown()


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
