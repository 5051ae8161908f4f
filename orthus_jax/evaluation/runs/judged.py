"""A run's answers as they were judged, one form for all benchmarks: what a page shows, and what two runs are compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from orthus_jax import files
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import Score
from orthus_jax.evaluation.runs.task import Task

FILE = "judged.jsonl"


@dataclasses.dataclass(frozen=True)
class Judged:
  """An answer.

  Attributes:
    id: of the item; the same in every run of the benchmark.
    unit: items of one unit are resampled together: pictures of a prompt, questions about a picture.
    tag: the benchmark's own finer name.
    points: from 0, wrong, to 1.
    prompt, answer, truth, reason: in words, "" where there are none.
    picture: the one drawn, as a path from the run's folder, or asked about, as an absolute one; "" where there is none.
  """

  id: str
  unit: str
  tag: str
  points: float
  prompt: str = ""
  answer: str = ""
  truth: str = ""
  reason: str = ""
  picture: str = ""


def _geneval(row: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
      unit=row["metadata"], tag=row["tag"], points=float(row["correct"]), prompt=row["prompt"], reason=row.get("reason", "")
  )  # fmt: skip


def _mme(row: Mapping[str, Any]) -> dict[str, Any]:
  return dict(unit=f"{row['subtask']}/{row['image']}", tag=row["subtask"], **_asked(row, row["truth"], row["answer"]))


def _pope(row: Mapping[str, Any]) -> dict[str, Any]:
  return dict(unit=str(row["image"]), tag=row["split"], **_asked(row, row["truth"], row["answer"]))


def _gqa(row: Mapping[str, Any]) -> dict[str, Any]:
  return dict(unit=str(row["image_id"]), tag=row["structural"], **_asked(row, row["answer"], row["prediction"]))


def _vqav2(row: Mapping[str, Any]) -> dict[str, Any]:
  return dict(unit=str(row["image_id"]), tag=str(row["answer_type"]), points=float(row["accuracy"]), answer=row["answer"])


def _asked(row: Mapping[str, Any], truth: str, answer: str) -> dict[str, Any]:
  return dict(points=float(row["right"]), prompt=str(row.get("question", "")), truth=truth, answer=answer.strip())


def _mmmu(row: Mapping[str, Any]) -> dict[str, Any]:
  return dict(unit=str(row["id"]), tag=row["subject"], **_asked(row, str(row["answer"]), row["response"]))


ROWS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "geneval": _geneval, "mme": _mme, "pope": _pope, "gqa": _gqa, "vqav2": _vqav2, "mmmu": _mmmu,
}  # fmt: skip


def judged(name: str, task: Task, out: Path, score: Score) -> list[Judged]:
  """A scorer's rows in this form, with the task's words and pictures."""
  items = {item.id: item for item in task.items}
  found = []
  for row in score.rows:
    id, values = task.id_of(row), ROWS[name](row)
    item = items.get(id)
    if task.respond == "image":
      picture = str(Path(*Path(row["filename"]).parts[-3:]))  # beside the page
    else:
      picture = "" if item is None or item.picture is None else str(item.picture.absolute())
    if item is not None and not values.get("prompt"):
      values["prompt"] = item.facts.get("question", "")
    found.append(Judged(id=id, picture=picture, **values))
  return found


def write(out: Path, found: Sequence[Judged]) -> None:
  """Writes OUT/judged.jsonl."""
  files.write_text(out / FILE, "".join(f"{json.dumps(dataclasses.asdict(j))}\n" for j in found))


def read(out: Path) -> list[Judged]:
  """Reads it back.

  Raises:
    BadRequest: if the run isn't scored, or the file holds something else.
  """
  path, what = out / FILE, "what `orthus evaluate` writes"
  if not path.exists():
    raise BadRequest(f"{out} has no {FILE}, as it wasn't scored by `orthus evaluate`: score it there first")
  rows, seen = reading.json_lines(path), set[str]()
  for number, row in enumerate(rows, 1):
    for name in ("id", "unit", "tag"):
      reading.field(row, name, str, what, path, number)
    points = reading.field(row, "points", (int, float), what, path, number)
    if not math.isfinite(points):
      raise BadRequest(f"{path}, row {number}: its points are {points}, and must be a number")
    if row["id"] in seen:
      raise BadRequest(f"{path}, row {number}: {row['id']!r} stands there twice; leave one of them out")
    seen.add(row["id"])
  names = {f.name for f in dataclasses.fields(Judged)}  # a later version may write more
  return [Judged(**{n: v for n, v in row.items() if n in names}) for row in rows]
