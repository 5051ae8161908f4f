"""A benchmark run: all that it asks in one running batch, kept as it comes, with the protocol recorded beside."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from orthus_jax import files, lock
from orthus_jax.config import SamplingConfig
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.runs.task import METADATA, Item, Task, iterate
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import Request, fit
from orthus_jax.inference.responses import Failed, Finished
from orthus_jax.training.checkpoints import agreement

PROTOCOL = "protocol.json"
_TOLD = ("versions", "limit", "wise_version")  # fields that answers don't depend on
_UNWRITTEN = 64  # answers that wait to be written, at most
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Outcome:
  """What a run came to.

  Attributes:
    files: what the benchmark's scorer is given.
    answered: items that have an answer now, of those that were asked for.
    failed: (id, reason) of those that can't be asked.
    beyond: items beyond the limit that an earlier command answered; what is scored holds them too.
    protocol: as it is written.
  """

  files: Path
  answered: int
  failed: list[tuple[str, str]]
  beyond: int = 0
  protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(
    model: Model, task: Task, out: Path, *, sampling: SamplingConfig, seed: int, protocol: dict[str, Any],
    batch_size: int = 64, limit: int | None = None, max_new_tokens: int | None = None,
    begin: Callable[[], object] | None = None, progress: Callable[[int, int], None] | None = None,
) -> Outcome:  # fmt: skip
  """Asks a model all that a benchmark asks.

  Args:
    model: which answers.
    task: the benchmark's.
    out: where the answers go; one that holds some of this protocol's is gone on with.
    sampling: how.
    seed: each item's own seed follows from it and from the item's id.
    protocol: what the answers depend on; written to `out`.
    batch_size: rows at once.
    limit: the first so many items alone.
    max_new_tokens: longest answer; by default `longest` of the task and the sampling.
    begin: called once `out` is known to be free, or of this protocol, before anything else is written there.
    progress: called with (done, in all).

  Raises:
    BadRequest: if `out` holds another protocol's answers, or there is no item, or two have one id, or another
      command works in it, or nothing can be asked.
  """
  _check_ids(task.items)
  sampling = dataclasses.replace(sampling, max_new_tokens=max_new_tokens or longest(task, sampling))
  with lock.hold(out):
    protocol = _agreed(out, protocol, task)
    with files.writing(out):
      if begin:
        begin()
      files.write_text(out / PROTOCOL, json.dumps(protocol, indent=2) + "\n")
    return dataclasses.replace(_run(model, task, out, sampling, seed, batch_size, limit, progress), protocol=protocol)


def _run(
    model: Model, task: Task, out: Path, sampling: SamplingConfig, seed: int, batch_size: int, limit: int | None,
    progress: Callable[[int, int], None] | None,
) -> Outcome:  # fmt: skip
  items, done = task.items, task.done(out)
  wanted = list(iterate(items, done, limit=limit))
  total = len(items[:limit])
  count, failed = total - len(wanted), []

  def written(future: concurrent.futures.Future[None]) -> None:
    nonlocal count
    with files.writing(out):
      future.result()
    count += 1
    if progress:
      progress(count, total)

  # Files are written on a thread of their own, one after the other, while the engine goes on.
  with concurrent.futures.ThreadPoolExecutor(1) as writer:
    kept: collections.deque[concurrent.futures.Future[None]] = collections.deque()
    for item, event in _answers(model, task, wanted, sampling, seed, batch_size):
      if isinstance(event, str):
        failed.append((item.id, event))
        continue
      kept.append(writer.submit(task.keep, out, item, event))
      while kept and (kept[0].done() or len(kept) > _UNWRITTEN):
        written(kept.popleft())
    for future in kept:
      written(future)
  if failed and len(failed) == total:
    raise BadRequest(f"none of {total:,} can be asked: {_some(failed[:1])}")
  if failed:
    _log.warning("%d of %d can't be asked, and have no answer: %s", len(failed), total, _some(failed))
  beyond = 0 if limit is None else sum(item.id in done for item in items[limit:])
  with files.writing(out):
    return Outcome(task.finish(out), count, failed, beyond)


def longest(task: Task, sampling: SamplingConfig) -> int:
  """How many tokens an answer may have where nobody says: what the benchmark's are of, or the sampling's, if that is less."""
  return min(sampling.max_new_tokens, task.max_new_tokens or sampling.max_new_tokens)


def _answers(
    model: Model, task: Task, items: Sequence[Item], sampling: SamplingConfig, seed: int, batch_size: int
) -> Iterator[tuple[Item, Any]]:
  """(item, document, or why there is none), as they come."""
  asked: list[Item] = []
  unread: list[tuple[Item, str]] = []

  def requests() -> Iterator[Request]:
    for item in items:
      try:
        prompt = fit(item.prompt(), model.config.model.vision_tokenizer)  # a camera's picture is a thousand times larger
      except BadRequest as e:
        unread.append((item, str(e)))
        continue
      asked.append(item)
      yield Request(prompt, respond=task.respond, seed=item.seed(seed), sampling=sampling)

  for event in model.stream(requests(), batch_size=batch_size):
    if isinstance(event, Finished):
      yield asked[event.index], event.document
    elif isinstance(event, Failed):
      yield asked[event.index], event.reason
  yield from unread


def _check_ids(items: Sequence[Item]) -> None:
  """There must be some; two items of one id would share an answer, and a seed follows from an id's letters."""
  if not items:
    raise BadRequest("the benchmark's data holds nothing to ask")
  seen: set[str] = set()
  for item in items:
    if item.id in seen:
      raise BadRequest(f"the benchmark's data has {item.id!r} twice: an answer is kept by its id, so remove one")
    if any("\ud800" <= c <= "\udfff" for c in item.id):
      raise BadRequest(f"the benchmark's data has a name that isn't UTF-8, {item.id!r}: rename it")
    seen.add(item.id)


def _some(failed: Sequence[tuple[str, str]]) -> str:
  shown = "; ".join(f"{name}: {reason}" for name, reason in failed[:3])
  return shown + (" …" if len(failed) > 3 else "")


def _agreed(out: Path, protocol: dict[str, Any], task: Task) -> dict[str, Any]:
  """The protocol as it is to be written, once what `out` holds is found to be of it."""
  path = out / PROTOCOL
  protocol = json.loads(json.dumps(protocol))
  if path.is_file() and _has_answers(out):
    try:
      there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
      raise BadRequest(f"{path} can't be read ({files.first_line(e)}): choose another --out") from e
    # What sampling had no field for was as its default is; the libraries' versions may change on the way, and WISE's version
    # was no field, but its data's digest was.
    if isinstance(there, dict) and isinstance(there.get("sampling"), dict):
      there["sampling"] = json.loads(json.dumps(dataclasses.asdict(SamplingConfig()))) | there["sampling"]
    found = [d for d in agreement.between(there, protocol) if not agreement.within(d.field, _TOLD)]
    if found:
      name, old, new = found[0]
      raise BadRequest(f"{out} has answers of another protocol ({name} was {old}, and is {new}): choose another --out")
    if protocol.get("limit") is not None:  # the larger one: all that is there is scored, however little is asked now
      before = there.get("limit")
      protocol["limit"] = max(before, protocol["limit"]) if isinstance(before, int) else None
  elif task.done(out):
    raise BadRequest(f"{out} has answers and no {PROTOCOL}, which says whose they are: choose another --out")
  return protocol


def _has_answers(out: Path) -> bool:
  """Whether there is more than what a command writes before its first answer; another benchmark's count too."""
  ours = {out / name for name in (PROTOCOL, lock.NAME, METADATA)}
  return any(p not in ours and p.is_file() and p.stat().st_size for p in out.rglob("*"))


def digest(paths: Sequence[Path]) -> dict[str, Any]:
  """How many files there are, and one SHA-256 of them all: MMMU's 30 tables have one name, and MME has a thousand files."""
  whole = hashlib.sha256()
  top = os.path.commonpath([p.absolute().parent for p in paths])
  for path in paths:
    with path.open("rb") as file:
      content = hashlib.file_digest(file, "sha256").hexdigest()
    whole.update(os.fsencode(f"{os.path.relpath(path.absolute(), top)}\0{content}\n"))
  return {"files": len(paths), "sha256": whole.hexdigest()}
