"""POST /v1/images/generations and /v1/images/edits: pictures from a prompt, or from a picture and an instruction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from orthus_jax.config import SamplingConfig
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.inference.live import Engine
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Drawn, Preview, TextPiece
from orthus_jax.serving import fields, pictures
from orthus_jax.serving.answers import ask
from orthus_jax.serving.errors import ApiError

_FIELDS = frozenset({"model", "prompt", "n", "size", "response_format", "stream", "partial_images", "seed"})


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a body asks for.

  Attributes:
    requests: one a picture.
    stream: whether they are told as they come.
    partial: unfinished ones of each at most.
    kind: the events' first name.
  """

  requests: tuple[Request, ...]
  stream: bool
  partial: int
  kind: str


def read(body: Mapping[str, Any], own: SamplingConfig, *, resolution: int, given: Sequence[np.ndarray] = ()) -> Wanted:
  """Reads a body.

  Args:
    body: the request's JSON or form.
    own: the model's sampling.
    resolution: of its pictures.
    given: the pictures to edit, uint8 [R, R, 3] each.

  Raises:
    ApiError: 400, naming the field.
  """
  fields.check_names(body, _FIELDS)
  prompt = fields.value(body, "prompt", str, "").strip()
  if not prompt:
    raise ApiError(400, "prompt must say what to draw", param="prompt")
  size = fields.value(body, "size", str, "auto")
  if size not in ("auto", f"{resolution}x{resolution}"):
    raise ApiError(400, f"size={size!r}: this model draws {resolution}x{resolution} alone (or auto)", param="size")
  if (form := fields.value(body, "response_format", str, "b64_json")) != "b64_json":
    raise ApiError(400, f"response_format={form!r} isn't served: only b64_json is", param="response_format")
  n = fields.value(body, "n", int, 1, low=1, high=16)
  seed = fields.seed(body, n)
  how = fields.sampling(own, body)
  document = Document((*(Image(p) for p in given), Text(prompt)))
  requests = [Request(document, respond="image", seed=seed + i, sampling=how) for i in range(n)]
  return Wanted(
      tuple(requests), fields.value(body, "stream", bool, False), fields.value(body, "partial_images", int, 0, low=0, high=3),
      "image_edit" if given else "image_generation",
  )  # fmt: skip


async def whole(engine: Engine, wanted: Wanted, *, seconds: float) -> dict[str, Any]:
  """All pictures in one piece."""

  async def one(request: Request) -> tuple[dict[str, Any], int, int]:
    plan = ""
    async with ask(engine, request, seconds=seconds) as answer:
      async for event in answer.events:
        if isinstance(event, TextPiece):
          plan += event.text
        elif isinstance(event, Drawn):
          said = {"revised_prompt": plan} if plan else {}
          drawn = {"b64_json": pictures.to_base64(event.pixels), "seed": request.seed, **said}
          return drawn, answer.ticket.prompt, answer.ticket.made
    raise ApiError(500, "no picture came")

  tasks = [asyncio.create_task(one(r)) for r in wanted.requests]
  try:
    found = await asyncio.gather(*tasks)
  finally:
    for task in tasks:
      task.cancel()
  return {"created": int(time.time()), "data": [d for d, *_ in found], "usage": _usage(found[0][1], sum(m for *_, m in found))}


async def stream(engine: Engine, wanted: Wanted, *, seconds: float) -> AsyncIterator[dict[str, Any]]:
  """Each picture with its unfinished ones, spread over its patches. All are drawn at once, and told one after the other."""
  patches = engine.model.config.model.vision_tokenizer.patches
  queues = [asyncio.Queue[Any]() for _ in wanted.requests]

  async def one(request: Request, queue: asyncio.Queue[Any]) -> None:
    try:
      async for event in picture(request):
        queue.put_nowait(event)
    except Exception as e:
      queue.put_nowait(e)
    queue.put_nowait(None)

  async def picture(request: Request) -> AsyncIterator[dict[str, Any]]:
    told = 0
    async with ask(engine, request, seconds=seconds, previews=wanted.partial > 0) as answer:
      async for event in answer.events:
        if isinstance(event, Preview):
          if told < wanted.partial and event.done * (wanted.partial + 1) >= (told + 1) * patches:
            yield {"type": f"{wanted.kind}.partial_image", "partial_image_index": told, **_picture(event.pixels, request)}
            told += 1
        elif isinstance(event, Drawn):
          usage = _usage(answer.ticket.prompt, answer.ticket.made)
          yield {"type": f"{wanted.kind}.completed", **_picture(event.pixels, request), "usage": usage}

  tasks = [asyncio.create_task(one(r, q)) for r, q in zip(wanted.requests, queues, strict=True)]
  try:
    for queue in queues:
      while (event := await queue.get()) is not None:
        if isinstance(event, Exception):
          raise event
        yield event
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _picture(pixels: np.ndarray, request: Request) -> dict[str, Any]:
  return {
      "b64_json": pictures.to_base64(pixels), "created_at": int(time.time()), "size": f"{pixels.shape[1]}x{pixels.shape[0]}",
      "quality": "auto", "background": "opaque", "output_format": "png", "seed": request.seed,
  }  # fmt: skip


def _usage(prompt: int, made: int) -> dict[str, int]:
  return {"input_tokens": prompt, "output_tokens": made, "total_tokens": prompt + made}
