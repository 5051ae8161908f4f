"""A file of requests, answered in one running batch; each result is written as soon as it is there.

A line of the file is a JSON object: `prompt` and, where they matter, `id`, `images` (files, one for each <image> of the
prompt; before its text, where it has none), `respond`, `seed`, `max_images`, and any field of the sampling config.

DIR/results.jsonl gets a line a request: `id` and either `response`, a list of {"text": …} and {"image": FILE}, or
`error`. What is answered there already isn't answered again; what failed is.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import io
import itertools
import json
import os
from pathlib import Path
import re
import sys
import time
from typing import Any, BinaryIO
import zlib

import tqdm

from orthus_jax.config import SamplingConfig, VisionTokenizerConfig
from orthus_jax.config.sampling import with_fields
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image, Text, interleaved
from orthus_jax.errors import BadRequest
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import Request, fit
from orthus_jax.inference.responses import Event, Failed, Finished, Preview, TextPiece
from orthus_jax.paths import user_path

_OWN = ("id", "prompt", "images", "respond", "seed", "max_images")


@dataclasses.dataclass(frozen=True)
class Asked:
  """A line of the file: its request and a digest of what was asked, or why it holds none."""

  id: str
  request: Request | None
  error: str = ""
  digest: str = ""


def read(
    lines: Iterator[bytes], *, folder: Path, vision: VisionTokenizerConfig, base: SamplingConfig, respond: str, seed: int
) -> Iterator[Asked]:
  """The requests of a file's lines; blank ones are passed over.

  Args:
    lines: of the file.
    folder: that its pictures' paths start from.
    vision: pictures are held as the model sees them; a camera's is a thousand times larger.
    base: sampling, where a request has none of its own.
    respond, seed: likewise; the n-th request's seed is `seed` + n.
  """
  seen: set[str] = set()
  number = -1
  for at, line in enumerate(lines, 1):
    if not line.strip():
      continue
    number += 1
    identity = f"line-{at}"
    try:
      record = _record(line, at)
      _check_texts(record, at)
      identity = record.get("id", identity)
      if not isinstance(identity, str | int) or isinstance(identity, bool) or identity == "":
        identity, wrong = f"line-{at}", identity
        raise BadRequest(f"line {at}: id={wrong!r} must be a text or a whole number")
      identity = str(identity)
      if identity in seen:
        identity, twice = f"line-{at}", identity
        raise BadRequest(f"line {at}: another request has the id {twice!r} already")
      request = _request(record, at, folder, vision, base, respond, seed + number)
      yield Asked(identity, request, digest=_digest(record, request))
    except BadRequest as e:
      yield Asked(identity, None, str(e))
    seen.add(identity)


def _record(line: bytes, at: int) -> dict[str, Any]:
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as e:
    raise BadRequest(f"line {at} isn't UTF-8 (byte {e.start})") from e
  except ValueError as e:
    raise BadRequest(f"line {at} isn't JSON: {e}") from e
  except RecursionError as e:
    raise BadRequest(f"line {at} is nested too deeply") from e
  if not isinstance(record, dict):
    raise BadRequest(f"line {at} isn't a JSON object")
  return record


def _digest(record: Mapping[str, Any], request: Request) -> str:
  """Of what is asked, and how; not of a seed that nobody gave, which moves with the line."""
  asked = json.dumps([record, request.respond, dataclasses.asdict(request.sampling)], sort_keys=True)  # type: ignore[arg-type]
  return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _check_texts(record: Mapping[str, Any], at: int) -> None:
  """JSON can spell half a character, which is no text, no file's name and no id."""
  for name, value in record.items():
    try:
      json.dumps([name, value], ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
      raise BadRequest(f"line {at}: {name!r} isn't a text (a lone surrogate)") from e


def _request(
    record: Mapping[str, Any], at: int, folder: Path, vision: VisionTokenizerConfig, base: SamplingConfig, respond: Any,
    seed: int,
) -> Request:  # fmt: skip
  def field(name: str, kind: type, default: Any) -> Any:
    value = record.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
      raise BadRequest(f"line {at}: {name}={value!r} must be a {'whole number' if kind is int else kind.__name__}")
    return value

  prompt, files = field("prompt", str, "").strip(), field("images", list, [])
  how = with_fields(base, {k: v for k, v in record.items() if k not in _OWN}, where=f"line {at}")
  respond = field("respond", str, respond)
  if respond not in ("auto", "image", "text"):
    raise BadRequest(f"line {at}: respond={respond!r}: choose one of auto, image, text")
  seed = field("seed", int, seed)
  most = None if record.get("max_images") is None else field("max_images", int, 0)
  if not prompt and not files:
    raise BadRequest(f"line {at}: nothing to go by: give a prompt, images or both")
  try:
    pictures = [images_lib.load_image(folder / user_path(file)) for file in files]
    document = fit(interleaved(prompt if "<image>" in prompt else "<image>" * len(pictures) + prompt, pictures), vision)
  except TypeError as e:
    raise BadRequest(f"line {at}: images must be a list of files") from e
  except BadRequest as e:
    raise BadRequest(f"line {at}: {e}") from e
  return Request(document, respond=respond, seed=seed, sampling=how, max_images=most)


class Results:
  """DIR/results.jsonl and the pictures beside it."""

  def __init__(self, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder, self._file = folder, folder / "results.jsonl"
    self.done: dict[str, str] = {}  # digests of what was asked, by id; "" where an earlier version answered
    if self._file.exists():
      self._reopen()
    # Half a character, which an error's text may hold, becomes JSON's own escape for it.
    self._out = self._file.open("a", encoding="utf-8", errors="backslashreplace")

  def _reopen(self) -> None:
    """Finds what is answered; a last line that was cut off, and earlier failures, are dropped."""
    kept = []
    for line in self._file.read_text(encoding="utf-8", errors="replace").split("\n"):  # others than \n may stand in a text
      try:
        record = json.loads(line)
        identity = record["id"] if "error" not in record else None
      except (ValueError, KeyError, TypeError):
        continue
      if identity is not None:
        self.done[identity] = record.get("asked", "")
        kept.append(line)
    half = self._file.with_suffix(".half")
    half.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    half.replace(self._file)

  def failed(self, identity: str, reason: str) -> None:
    self._write({"id": identity, "error": reason})

  def finished(self, identity: str, response: tuple, **more: Any) -> None:
    """Saves a response's pictures, then its line."""
    n, said = itertools.count(), []
    for segment in response:
      if isinstance(segment, Text):
        said.append({"text": segment.text})
      else:
        file = self._folder / f"{_stem(identity)}-{next(n)}.png"
        images_lib.save_png(file, segment.pixels)
        said.append({"image": file.name})
    self.preview(identity, None)
    self._write({"id": identity, "response": said, **more})

  def preview(self, identity: str, pixels: Any) -> None:
    """Shows an unfinished picture, or takes it away."""
    file = self._folder / f"{_stem(identity)}.preview.png"
    if pixels is None:
      file.unlink(missing_ok=True)
    else:
      images_lib.save_png(file, pixels)

  def _write(self, record: dict[str, Any]) -> None:
    self._out.write(json.dumps(record, ensure_ascii=False) + "\n")
    self._out.flush()

  def close(self) -> None:
    self._out.flush()
    os.fsync(self._out.fileno())
    self._out.close()


def _stem(identity: str) -> str:
  """A file name of an id; ids that would share one get different ones."""
  plain = re.sub(r"[^\w.-]", "_", identity)
  plain = plain.encode()[:100].decode(errors="ignore")  # file systems count bytes
  changed = plain != identity or plain.startswith(".")
  return f"{plain.lstrip('.')}-{zlib.crc32(identity.encode()):08x}" if changed else plain


def serve(
    model: Model,
    file: str,
    out: Path,
    *,
    base: SamplingConfig,
    respond: str,
    seed: int,
    batch_size: int,
    preview_rows: int,
    quiet: bool = False,
) -> dict[str, Any]:
  """Answers a file of requests ("-" is standard input); returns counts.

  Raises:
    BadRequest: if the file can't be read or holds no request.
  """
  try:
    opened = io.BytesIO(sys.stdin.buffer.read()) if file == "-" else open(file, "rb")
  except OSError as e:
    raise BadRequest(f"{file} can't be read: {e.strerror}") from e
  with opened as lines:
    total = sum(1 for line in _lines(lines) if line.strip())
    if not total:
      raise BadRequest(f"{'standard input' if file == '-' else file} holds no request: give a JSON object a line")
    lines.seek(0)
    folder = Path() if file == "-" else Path(file).parent
    vision = model.config.model.vision_tokenizer
    asked = read(_lines(lines), folder=folder, vision=vision, base=base, respond=respond, seed=seed)
    return _answer(model, asked, total, Results(out), batch_size=batch_size, preview_rows=preview_rows, quiet=quiet)


def _lines(file: BinaryIO) -> Iterator[bytes]:
  """Without the mark at its beginning that Windows' editors write."""
  return (line if n else line.removeprefix(codecs.BOM_UTF8) for n, line in enumerate(file))


def _answer(
    model: Model, asked: Iterator[Asked], total: int, results: Results, *, batch_size: int, preview_rows: int, quiet: bool
) -> dict[str, Any]:
  counts = {"requests": total, "before": 0, "finished": 0, "failed": 0, "pictures": 0, "tokens": 0}
  begin = time.monotonic()
  todo: dict[int, Asked] = {}  # what is on the way, by its place among those that are asked
  with tqdm.tqdm(total=total, unit="request", disable=quiet or None, file=sys.stderr) as bar:

    def told(n: int = 1) -> None:
      seconds = max(time.monotonic() - begin, 1e-9)
      bar.set_postfix_str(f"{counts['pictures'] / seconds:.2f} pictures/s, {counts['tokens'] / seconds:.0f} tokens/s")
      bar.update(n)

    def requests() -> Iterator[Request]:
      places = itertools.count()
      for a in asked:
        if a.request is None:
          results.failed(a.id, a.error)
          counts["failed"] += 1
          told()
        elif results.done.get(a.id, a.digest) not in (a.digest, ""):
          results.failed(a.id, "--out has an answer to another request of this id: choose another --out, or another id")
          counts["failed"] += 1
          told()
        elif a.id in results.done:
          counts["before"] += 1
          told()
        else:
          todo[next(places)] = a
          yield a.request

    for event in model.stream(requests(), batch_size=batch_size, preview_rows=preview_rows):
      _take(event, todo, results, counts, model)
      if isinstance(event, Finished | Failed):
        del todo[event.index]
        told()
  results.close()
  return counts | {"seconds": time.monotonic() - begin}


def _take(event: Event, todo: dict[int, Asked], results: Results, counts: dict[str, Any], model: Model) -> None:
  asked = todo[event.index]
  identity, request = asked.id, asked.request
  assert request is not None
  if isinstance(event, TextPiece):
    counts["tokens"] += len(model.tokenizer.encode(event.text))
  elif isinstance(event, Preview):
    results.preview(identity, event.pixels)
  elif isinstance(event, Failed):
    results.failed(identity, event.reason)
    counts["failed"] += 1
  elif isinstance(event, Finished):
    response = response_of(event.document, request.document)
    results.finished(identity, response, seed=request.seed, asked=asked.digest)
    counts["finished"] += 1
    counts["pictures"] += sum(isinstance(s, Image) for s in response)


def response_of(answered: Document, prompt: Document) -> tuple:
  """The segments that were added to a prompt."""
  return answered.segments[len(prompt.segments) :]
