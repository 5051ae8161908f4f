"""A benchmark as something to do: what is asked of a model, and where the answers go in the benchmark's own layout."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal
import zlib

from orthus_jax import files
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document
from orthus_jax.errors import BadRequest

JOURNAL = "answers.jsonl"
METADATA = "evaluation_metadata.jsonl"  # GenEval's prompts


@dataclasses.dataclass(frozen=True)
class Item:
  """One thing that is asked of the model.

  Attributes:
    id: unique within the benchmark, and the same whatever else is asked.
    prompt: makes the prompt; called when its turn comes, as it may read a picture.
    facts: of the benchmark's data, what the answer is to be written with.
    picture: the one that is asked about.
  """

  id: str
  prompt: Callable[[], Document]
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  picture: Path | None = None

  def seed(self, base: int) -> int:
    """The item's own seed, which doesn't depend on its place."""
    return zlib.crc32(f"{base}/{self.id}".encode()) & 0x7FFFFFFF


class Task(abc.ABC):
  """What a benchmark asks.

  Attributes:
    respond: what an answer is.
    max_new_tokens: longest answer; 0 leaves it to the sampling.
    samples: answers to each prompt.
    sources: the files that the questions come from.
    protocol: what else of the benchmark answers depend on, and its template doesn't tell; stands in the run's protocol.
  """

  respond: Literal["image", "text"]
  max_new_tokens = 0
  samples = 1
  sources: Sequence[Path] = ()
  protocol: Mapping[str, str] = {}

  @property
  @abc.abstractmethod
  def items(self) -> Sequence[Item]:
    """All that is asked, in the benchmark's order."""

  @abc.abstractmethod
  def done(self, out: Path) -> Collection[str]:
    """Ids of the items that `out` has answers of."""

  @abc.abstractmethod
  def keep(self, out: Path, item: Item, answer: Document) -> None:
    """Writes one answer, so that a command that is killed goes on behind it."""

  @abc.abstractmethod
  def finish(self, out: Path) -> Path:
    """Once all is answered: completes the benchmark's layout, and returns what its scorer is given."""

  def lacking(self, out: Path) -> str:
    """What `out` has no answers of, in words; "" where nothing is."""
    lacking = len({i.id for i in self.items} - set(self.done(out)))
    return f"{lacking:,} questions have no answer" if lacking else ""

  def id_of(self, row: Mapping[str, Any]) -> str:
    """The item that a scorer's row is about."""
    return str(row["question_id"])


class Drawing(Task):
  """A benchmark of pictures: each has a file, which is there once it is whole."""

  respond = "image"

  @abc.abstractmethod
  def path(self, item: Item) -> Path:
    """Where an item's picture lies, below the output folder."""

  def done(self, out: Path) -> Collection[str]:
    return {item.id for item in self.items if (out / self.path(item)).is_file()}

  def keep(self, out: Path, item: Item, answer: Document) -> None:
    path = out / self.path(item)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(images_lib.png_bytes(answer.images[-1].pixels))
    part.replace(path)


class Asking(Task):
  """A benchmark of questions: answers gather in a journal, a line each, and become the benchmark's files at the end."""

  respond = "text"
  max_new_tokens = 16

  def done(self, out: Path) -> Collection[str]:
    return set(self.answers(out))

  def keep(self, out: Path, item: Item, answer: Document) -> None:
    text = " ".join(s.text for s in answer.response().texts)
    with (out / JOURNAL).open("ab") as file:
      file.write(json.dumps({"id": item.id, "answer": text}, ensure_ascii=False).encode() + b"\n")

  def answers(self, out: Path) -> dict[str, str]:
    """The answers so far, by id. What a killed command left of a line is cut off, so that the next one begins afresh.

    Raises:
      BadRequest: if the journal holds anything else.
    """
    path, found = out / JOURNAL, {}
    if not path.is_file():
      return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
      os.truncate(path, len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
      try:
        record = json.loads(line)
        found[str(record["id"])] = str(record["answer"])
      except (ValueError, KeyError, TypeError) as e:
        raise BadRequest(f"{path}:{number} is no answer of an earlier command: remove the line, or choose another --out") from e
    return found


class ByLine(Asking):
  """Questions whose answers the benchmark's tool takes by their line in a file: one with a hole would pair them with others'.

  Each item's `part` among its facts names its file.
  """

  @abc.abstractmethod
  def file(self, out: Path, part: str) -> Path:
    """Where a part's answers go."""

  @abc.abstractmethod
  def line(self, item: Item, answer: str) -> str:
    """An answer as its file has it, without the line's end."""

  def finish(self, out: Path) -> Path:
    """Writes the parts whose answers are all there; the others' stay in the journal alone."""
    answers = self.answers(out)
    for part, items in self._parts().items():
      path = self.file(out, part)
      path.parent.mkdir(exist_ok=True)
      if all(i.id in answers for i in items):
        files.write_text(path, "".join(f"{self.line(i, answers[i.id])}\n" for i in items))
      else:
        path.unlink(missing_ok=True)  # an earlier version wrote those that are there
    return path.parent

  def lacking(self, out: Path) -> str:
    told, done = super().lacking(out), set(self.done(out))
    if not told:
      return ""
    counts = {part: n for part, items in self._parts().items() if (n := sum(i.id not in done for i in items))}
    some = ", ".join(f"{n:,} of {part}" for part, n in list(counts.items())[:4])
    return f"{told} ({some}{', …' if len(counts) > 4 else ''}, which have no file yet, as the tool goes by its lines)"

  def _parts(self) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in self.items:
      found.setdefault(item.facts["part"], []).append(item)
    return found


def iterate(items: Sequence[Item], done: Collection[str], *, limit: int | None = None) -> Iterator[Item]:
  """Those of the first `limit` that have no answer yet."""
  return (item for item in items[:limit] if item.id not in done)
