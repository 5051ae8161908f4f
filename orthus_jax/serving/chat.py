"""POST /v1/chat/completions: a conversation of texts and pictures, answered whole or as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
import dataclasses
import time
from typing import Any
import uuid

from orthus_jax.config import Config
from orthus_jax.data.documents import Document, Image, Segment, Text
from orthus_jax.inference.live import Engine
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Drawn, Finished, Preview, TextPiece
from orthus_jax.serving import fields, pictures
from orthus_jax.serving.answers import Answer, ask
from orthus_jax.serving.errors import ApiError

_FIELDS = frozenset({
    "model", "messages", "stream", "n", "stop", "seed", "max_tokens", "max_completion_tokens", "max_images", "respond",
    "previews",
})  # fmt: skip
_ROLES = {"user": False, "system": False, "developer": False, "assistant": True}


@dataclasses.dataclass(frozen=True)
class Chat:
  """What a body asks for.

  Attributes:
    requests: one a choice.
    stop: texts that end an answer, and aren't part of it.
    stream: whether it is told as it comes, with a last chunk of `usage` if that is asked for, and unfinished pictures.
  """

  requests: tuple[Request, ...]
  stop: tuple[str, ...]
  stream: bool
  usage: bool
  previews: bool


def read(body: Mapping[str, Any], config: Config) -> Chat:
  """Reads a body.

  Args:
    body: the request's JSON.
    config: the model's.

  Raises:
    ApiError: 400, naming the field.
  """
  fields.check_names(body, _FIELDS)
  n = fields.value(body, "n", int, 1, low=1, high=16)
  seed = fields.seed(body, n)
  respond = fields.value(body, "respond", str, "auto")
  if respond not in ("auto", "image", "text"):
    raise ApiError(400, f"respond={respond!r} must be auto, image or text", param="respond")
  most = fields.value(body, "max_images", int, None, low=0, high=64)
  stop = body.get("stop") or []
  stop = [stop] if isinstance(stop, str) else stop
  if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) and s for s in stop):
    raise ApiError(400, "stop must be a text, or up to four", param="stop")
  document, how = _document(fields.value(body, "messages", list, []), config), fields.sampling(config.sampling, body)
  requests = [Request(document, respond=respond, seed=seed + i, sampling=how, max_images=most) for i in range(n)]
  options = body.get("stream_options") or {}
  return Chat(
      tuple(requests), tuple(stop), fields.value(body, "stream", bool, False),
      usage=bool(isinstance(options, dict) and options.get("include_usage")),
      previews=fields.value(body, "previews", bool, False),
  )  # fmt: skip


def _document(messages: Sequence[Any], config: Config) -> Document:
  if not messages:
    raise ApiError(400, "messages must hold at least one message", param="messages")
  found: list[tuple[Any, bool, str]] = []
  for i, message in enumerate(messages):
    where = f"messages[{i}]"
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
      raise ApiError(400, f"{where} must be an object with a role: {', '.join(_ROLES)}", param=where)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not isinstance(parts, list):
      raise ApiError(400, f"{where}.content must be a text or a list of parts", param=where)
    for name in ("images", "parts"):
      if not isinstance(message.get(name) or [], list):
        raise ApiError(400, f"{where}.{name} must be a list of parts", param=where)
    # A turn of ours may come back as it was told: its parts in order, or its pictures beside its text.
    for j, part in enumerate(message.get("parts") or [*parts, *(message.get("images") or [])]):
      found.append((part, _ROLES[role], f"{where}.content[{j}]"))
  pictures.check_count(sum(_kind(part) == "image_url" for part, *_ in found), config.model, "messages")
  segments: list[Segment] = []
  for segment in (_segment(*part, config) for part in found):
    last = segments[-1] if segments else None
    if isinstance(segment, Text) and not segment.text:
      continue
    if isinstance(segment, Text) and isinstance(last, Text) and not (segment.learn or last.learn):
      segments[-1] = Text(f"{last.text}\n{segment.text}")  # a system's and a user's, say, which would be one word
    else:
      segments.append(segment)
  return Document(tuple(segments))


def _kind(part: Any) -> Any:
  return part.get("type") if isinstance(part, dict) else None


def _segment(part: Any, own: bool, where: str, config: Config) -> Segment:
  kind = _kind(part)
  if kind == "text" and isinstance(part.get("text"), str):
    return Text(part["text"], own)
  if kind == "image_url":
    url = part.get("image_url")
    return Image(pictures.of_url(url.get("url") if isinstance(url, dict) else url, where, config.model.vision_tokenizer), own)
  raise ApiError(400, f"{where} must be a text part or an image_url part", param=where)


class Until:
  """Text up to the first of some stops; what may be the beginning of one is held back."""

  def __init__(self, stops: Sequence[str]):
    self._stops, self._held, self.met = stops, "", False

  def add(self, text: str, *, last: bool = False) -> str:
    """What can be told now."""
    if self.met:
      return ""
    text = self._held + text
    found = [at for s in self._stops if (at := text.find(s)) >= 0]
    if found:
      self.met, self._held = True, ""
      return text[: min(found)]
    held = 0 if last else max((n for s in self._stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    self._held = text[len(text) - held :]
    return text[: len(text) - held]


_Told = tuple[dict[str, Any], Answer | None]


async def choice(engine: Engine, chat: Chat, index: int, *, seconds: float) -> AsyncIterator[_Told]:
  """One choice as it comes: (delta, None), the first once the engine has taken it, and at last ({}, the answer)."""
  request = chat.requests[index]
  async with ask(engine, request, seconds=seconds, previews=chat.previews) as answer:
    yield {"role": "assistant", "content": "", "seed": request.seed}, None
    until = Until(chat.stop)
    async for event in answer.events:
      if isinstance(event, TextPiece):
        if text := until.add(event.text):
          yield {"content": text}, None
        if until.met:
          break
      elif isinstance(event, Preview):
        yield {"preview": {**pictures.part(event.pixels), "picture": event.picture, "done": event.done}}, None
      elif isinstance(event, Drawn):
        if text := until.add("", last=True):  # a stop doesn't reach across a picture
          yield {"content": text}, None
        yield {"images": [pictures.part(event.pixels)]}, None
      elif isinstance(event, Finished):
        if text := until.add("", last=True):
          yield {"content": text}, None
        # Earlier turns of ours are the document's too.
        yield {"parts": _parts(event.document.segments[len(request.document.segments) :])}, None
    yield {}, dataclasses.replace(answer, stopped=until.met)


def _parts(segments: Sequence[Segment]) -> list[dict[str, Any]]:
  return [{"type": "text", "text": s.text} if isinstance(s, Text) else pictures.part(s.pixels) for s in segments]


async def whole(engine: Engine, chat: Chat, model: str, *, seconds: float) -> dict[str, Any]:
  """The answer in one piece."""

  async def one(index: int) -> tuple[dict[str, Any], Answer]:
    message: dict[str, Any] = {"role": "assistant", "content": "", "seed": chat.requests[index].seed}
    async for delta, answer in choice(engine, chat, index, seconds=seconds):
      message["content"] += delta.get("content", "")
      if "images" in delta:
        message["images"] = message.get("images", []) + delta["images"]
      if "parts" in delta and "images" in message:
        message["parts"] = delta["parts"]
      if answer is not None:
        return {"index": index, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}, answer
    raise AssertionError("a choice ends with its answer")

  tasks = [asyncio.create_task(one(i)) for i in range(len(chat.requests))]
  try:
    ended = await asyncio.gather(*tasks)
  finally:
    for task in tasks:
      task.cancel()
  answers = [answer for _, answer in ended]
  return {**_head("chat.completion", model), "choices": [c for c, _ in ended], "usage": _usage(answers)}


async def stream(engine: Engine, chat: Chat, model: str, *, seconds: float) -> AsyncIterator[dict[str, Any]]:
  """The answer's chunks."""
  head, queue, answers = _head("chat.completion.chunk", model), asyncio.Queue[Any](), list[Answer]()
  held, begun = list[dict[str, Any]](), 0

  async def one(index: int) -> None:
    try:
      async for delta, answer in choice(engine, chat, index, seconds=seconds):
        delta.pop("parts", None)  # which have come in that order
        if delta or answer:
          await queue.put((index, delta, answer))
    except Exception as e:
      await queue.put(e)

  tasks = [asyncio.create_task(one(i)) for i in range(len(chat.requests))]
  try:
    while len(answers) < len(tasks):
      found = await queue.get()
      if isinstance(found, Exception):
        raise found
      index, delta, answer = found
      reason = None
      if answer is not None:
        answers.append(answer)
        reason = answer.finish_reason
      held.append({**head, "choices": [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}]})
      begun += "role" in delta
      if begun == len(tasks):  # nothing is told before, so that an engine that doesn't take one is an error as any
        for chunk in held:
          yield chunk
        held.clear()
    if chat.usage:
      yield {**head, "choices": [], "usage": _usage(answers)}
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _head(kind: str, model: str) -> dict[str, Any]:
  return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
  prompt, made = answers[0].ticket.prompt, sum(a.ticket.made for a in answers)
  return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
