"""The server's routes, and what holds for all of them: who may ask, how much, and errors in the API's own form."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
import dataclasses
import hmac
import json
import logging
import re
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orthus_jax.inference.live import Engine
from orthus_jax.serving import chat, drawing, page, pictures, stream
from orthus_jax.serving.errors import ApiError
from orthus_jax.serving.metrics import Metrics

_HERE = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
_log = logging.getLogger("orthus_jax.serve")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of a server.

  Attributes:
    name: the model's.
    api_key: which requests must bring; "" for none.
    max_body: bytes of a request.
    body_seconds: within which a request's body must have come.
    seconds: that an answer may take.
  """

  name: str = "orthus"
  api_key: str = ""
  max_body: int = 32 << 20
  body_seconds: float = 30.0
  seconds: float = 600.0


class Server:
  """Routes over an engine.

  Attributes:
    ready: whether it takes requests.
    here: whether it listens to this machine alone.
  """

  def __init__(self, engine: Engine, settings: Settings = Settings()):
    self.engine, self.settings, self.metrics = engine, settings, Metrics(engine)
    self.ready, self.here, self._created = False, False, int(time.time())
    self.app = Starlette(
        routes=[
            Route("/", self._page), Route("/health", self._health), Route("/metrics", self._metrics),
            Route("/v1/models", self._models), Route("/v1/models/{id:path}", self._model),
            Route("/v1/chat/completions", self._told(self._chat), methods=["POST"]),
            Route("/v1/images/generations", self._told(self._generate), methods=["POST"]),
            Route("/v1/images/edits", self._told(self._edit), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _fault},
    )  # fmt: skip

  # --- routes -------------------------------------------------------------------------------------------------------

  async def _page(self, request: Request) -> Response:
    return page.response()

  async def _health(self, request: Request) -> Response:
    status = "failed" if self.engine.failed else "ok" if self.ready else "starting"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)

  async def _metrics(self, request: Request) -> Response:
    self._check(request)
    return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

  async def _models(self, request: Request) -> Response:
    self._check(request)
    return JSONResponse({"object": "list", "data": [self._entry()]})

  async def _model(self, request: Request) -> Response:
    self._check(request)
    asked, own = request.path_params["id"], self.settings.name
    if asked != own:
      raise ApiError(404, f"there is no model {asked!r}: {own!r} is served", param="model")
    return JSONResponse(self._entry())

  def _entry(self) -> dict[str, Any]:
    model = self.engine.model
    own = page.facts(model.config, draws=not model.no_pictures)
    return {"id": self.settings.name, "object": "model", "created": self._created, "owned_by": "orthus_jax", "orthus": own}

  async def _chat(self, request: Request) -> Response:
    body = await self._json(request)
    # Pictures are decoded, which others needn't wait for.
    asked = await asyncio.to_thread(chat.read, body, self.engine.model.config)
    limit = dict(seconds=self.settings.seconds)
    if asked.stream:
      events = chat.stream(self.engine, asked, self.settings.name, **limit)
      return await stream.respond(request, events, self.metrics, named=False)
    return JSONResponse(await stream.while_connected(request, chat.whole(self.engine, asked, self.settings.name, **limit)))

  async def _generate(self, request: Request) -> Response:
    return await self._draw(request, await self._json(request), [])

  async def _edit(self, request: Request) -> Response:
    await self._body(request)
    try:
      form = await request.form(max_files=4, max_fields=64, max_part_size=self.settings.max_body)
    except HTTPException as e:
      raise ApiError(400, f"the form can't be read: {e.detail}") from e
    body, given, model = {}, [], self.engine.model.config.model
    pictures.check_count(sum(name in ("image", "image[]") for name, _ in form.multi_items()), model, "image")
    for name, value in form.multi_items():
      if name in ("image", "image[]"):
        data = value.encode() if isinstance(value, str) else await value.read()
        given.append(await asyncio.to_thread(pictures.of_bytes, data, "image", model.vision_tokenizer))
      elif isinstance(value, str):
        body[name] = value
      else:
        raise ApiError(400, f"{name} isn't served: give image and prompt", param=name)
    if not given:
      raise ApiError(400, "image must hold the picture to edit", param="image")
    return await self._draw(request, body, given)

  async def _draw(self, request: Request, body: dict[str, Any], given: list) -> Response:
    config = self.engine.model.config
    resolution = config.model.vision_tokenizer.resolution
    wanted = drawing.read(body, config.sampling, resolution=resolution, given=given)
    if wanted.stream:
      events = drawing.stream(self.engine, wanted, seconds=self.settings.seconds)
      return await stream.respond(request, events, self.metrics, named=True)
    work = drawing.whole(self.engine, wanted, seconds=self.settings.seconds)
    return JSONResponse(await stream.while_connected(request, work))

  # --- what holds for all -------------------------------------------------------------------------------------------

  def _told(self, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """A route with its metrics, its guard and its errors."""

    async def call(request: Request) -> Response:
      request.state.began = time.monotonic()
      try:
        self._check(request)
        if not self.ready:
          told = self.engine.failed or "the server is starting or stopping: ask again when /health says ok"
          raise ApiError(503, told, retry_after=5)
        response = await route(request)
      except ApiError as e:
        response = e.response()
        self.metrics.failed(e)
      except ClientDisconnect:
        response = Response(status_code=499)
        self.metrics.failures.labels("client gone").inc()
      except Exception:  # which is answered where all faults are
        self.metrics.failures.labels("fault").inc()
        self.metrics.requests.labels(request.url.path, "500").inc()
        raise
      self.metrics.requests.labels(request.url.path, str(response.status_code)).inc()
      if not isinstance(response, StreamingResponse):
        self.metrics.seconds.labels(request.url.path).observe(time.monotonic() - request.state.began)
      return response

    return call

  def _check(self, request: Request) -> None:
    """Refuses other pages in a browser that reaches the server, and who doesn't have the key."""
    site, origin, host = (request.headers.get(name, "") for name in ("sec-fetch-site", "origin", "host"))
    # A browser that says where the page is from need not be doubted: a proxy may have changed the Host.
    if site not in ("same-origin", "none", "") or (not site and origin and origin.partition("://")[2].lower() != host.lower()):
      raise ApiError(403, "other pages may not use this server: ask from its own page, or from a program")
    if not self.settings.api_key:
      # A name of another page's may lead here (DNS rebinding), and is then of the same origin.
      if self.here and not _HERE.fullmatch(host):
        raise ApiError(403, f"the server is not {host!r}: ask at localhost, or start it with an API key")
      return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), self.settings.api_key.encode()):
      raise ApiError(401, "the API key is missing or wrong: send it as Authorization: Bearer KEY")

  async def _body(self, request: Request) -> bytes:
    """The body, of a bounded size and within a bounded time."""
    most = self.settings.max_body
    large = ApiError(413, f"the request has more than {most >> 20} MiB: send smaller pictures")
    if request.headers.get("content-length", "").isdigit() and int(request.headers["content-length"]) > most:
      raise large
    parts: list[bytes] = []
    try:
      async with asyncio.timeout(self.settings.body_seconds):
        async for chunk in request.stream():
          parts.append(chunk)
          if sum(map(len, parts)) > most:
            raise large
    except TimeoutError:
      raise ApiError(408, f"the request's body didn't come within {self.settings.body_seconds:g} s") from None
    request._body = b"".join(parts)  # as Starlette's own reader leaves it, so that a form is read from it
    return request._body

  async def _json(self, request: Request) -> dict[str, Any]:
    try:
      body = json.loads(await self._body(request))
    except (ValueError, RecursionError) as e:
      raise ApiError(400, f"the body isn't JSON: {e}") from e
    if not isinstance(body, dict):
      raise ApiError(400, "the body must be a JSON object")
    return body


async def _http_error(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  known = "POST /v1/chat/completions, /v1/images/generations and /v1/images/edits, GET /v1/models, /health and /metrics"
  path = request.url.path
  messages = {404: f"there is no {path}: {known}", 405: f"{path} isn't asked by {request.method}: {known}"}
  return ApiError(error.status_code, messages.get(error.status_code, str(error.detail))).response()


async def _api_error(request: Request, error: Exception) -> Response:
  assert isinstance(error, ApiError)
  return error.response()


async def _fault(request: Request, error: Exception) -> Response:
  _log.error("%s failed", request.url.path, exc_info=error)
  return ApiError(500, f"the server failed: {type(error).__name__}").response()
