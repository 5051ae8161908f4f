"""MMMU asked: Parquet tables of questions with up to seven pictures, which stand where the question names them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
import functools
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Segment, Text, document
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks.mmmu import SUBJECTS
from orthus_jax.evaluation.runs import prompts
from orthus_jax.evaluation.runs.prompts import Template
from orthus_jax.evaluation.runs.task import Asking, Item

_PICTURES = 7
_MARK = re.compile(r"<image (\d)>")
_COLUMNS = ("id", "question", "options", "question_type", "answer", *(f"image_{n}" for n in range(1, _PICTURES + 1)))


def _subject(path: Path) -> str:
  return path.absolute().parent.name


class Mmmu(Asking):
  """SUBJECT/output.json, a list of id, question_type, answer, response and, of multiple choice, all_choices and index2ans.

  The data is the release's: SUBJECT/validation-….parquet. Its pictures are read when their question's turn comes.
  """

  max_new_tokens = 64  # answers to open questions may be reasoned

  def __init__(self, data: Path, template: Template, images: Path | None = None):
    if images is not None:
      raise BadRequest("MMMU's pictures lie in its tables: leave --images out")
    self._template = template
    self.sources = [data] if data.is_file() else sorted(data.rglob("validation-*.parquet"))
    if not self.sources:
      raise BadRequest(f"{data} has no SUBJECT/validation-….parquet: name MMMU's folder")
    if not any(_subject(path) in SUBJECTS for path in self.sources):  # or that would be found out once all is answered
      raise BadRequest(f"{self.sources[0]} lies in no folder of an MMMU subject (Accounting, …), which says what it asks about")

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    return [item for path in self.sources for item in self._of(path)]

  def _of(self, path: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
      table = pq.ParquetFile(path)
      if missing := [c for c in _COLUMNS[:6] if c not in table.schema_arrow.names]:
        raise BadRequest(f"{path} has no column {', '.join(missing)}: it isn't a table of MMMU's")
      rows = table.read([c for c in _COLUMNS[:5]]).to_pylist()
    except (pa.ArrowException, OSError) as e:
      raise BadRequest(f"{path} can't be read as Parquet: {files.first_line(e)}") from e
    for number, row in enumerate(rows):
      if lacking := [c for c in ("id", "question", "question_type", "answer") if not isinstance(row[c], str)]:
        raise BadRequest(f"{path}: row {number + 1} has no {lacking[0]} in words: it isn't a table of MMMU's validation split")
      options = self._options(row, path)
      facts = {**row, "options": options, "subject": _subject(path)}
      yield Item(str(row["id"]), functools.partial(self._prompt, path, number, row, options), facts)

  @staticmethod
  def _options(row: Mapping[str, Any], path: Path) -> list[str]:
    try:
      options = ast.literal_eval(row["options"] or "[]")  # a Python literal in a text
      if not isinstance(options, list):
        raise ValueError("it is no list")
    except (ValueError, SyntaxError, TypeError) as e:
      raise BadRequest(f"{path}: the options of {row['id']} can't be read: {files.first_line(e)}") from e
    return [str(o) for o in options]

  def _prompt(self, path: Path, number: int, row: Mapping[str, Any], options: Sequence[str]) -> Document:
    text = row["question"]
    if row["question_type"] == "multiple-choice":
      text += "\n\n" + "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(options))
    text = prompts.question(self._template, text, end="choice" if row["question_type"] == "multiple-choice" else "open")
    return interleaved(text, functools.partial(_picture, path, number), str(row["id"]))

  def finish(self, out: Path) -> Path:
    answers, by_subject = self.answers(out), dict[str, list[dict[str, Any]]]()
    for item in self.items:
      if item.id not in answers:
        continue
      facts, answer = item.facts, item.facts["answer"]
      record = {"id": item.id, "question_type": facts["question_type"], "answer": _gold(answer), "response": answers[item.id]}
      if facts["question_type"] == "multiple-choice":
        letters = [chr(65 + i) for i in range(len(facts["options"]))]
        record |= {"all_choices": letters, "index2ans": dict(zip(letters, facts["options"]))}
      by_subject.setdefault(facts["subject"], []).append(record)
    folder = out / "answers"
    for subject, records in by_subject.items():
      (folder / subject).mkdir(parents=True, exist_ok=True)
      files.write_text(folder / subject / "output.json", json.dumps(records, indent=1, ensure_ascii=False))
    return folder

  def id_of(self, row: Mapping[str, Any]) -> str:
    return str(row["id"])


def _gold(answer: str) -> Any:
  """Several right answers come as a Python list in a text."""
  if answer.startswith("["):
    try:
      return [str(a) for a in ast.literal_eval(answer)]
    except (ValueError, SyntaxError):
      pass
  return answer


def interleaved(text: str, picture: Any, name: str) -> Document:
  """A question with its pictures where it names them; those that it doesn't name aren't shown.

  Args:
    text: with `<image N>` marks.
    picture: from N, counted from 1, to pixels.
    name: of the question, for the message.

  Raises:
    BadRequest: if it names a picture that it hasn't got.
  """
  segments: list[Segment | np.ndarray] = []
  for place, part in enumerate(_MARK.split(text)):
    if place % 2:
      segments.append(picture(int(part)))
    elif part:
      segments.append(Text(part))
  if not any(isinstance(s, np.ndarray) for s in segments):
    raise BadRequest(f"question {name} names no picture")
  return document(*segments)


@functools.lru_cache(maxsize=2)
def _pictures(path: Path) -> list[dict[str, Any]]:
  """A table's pictures; a subject has 30 questions."""
  import pyarrow.parquet as pq

  table = pq.ParquetFile(path)
  names = [c for c in _COLUMNS[5:] if c in table.schema_arrow.names]
  return table.read(names).to_pylist()


def _picture(path: Path, number: int, n: int) -> np.ndarray:
  value = _pictures(path)[number].get(f"image_{n}")
  data = value.get("bytes") if isinstance(value, dict) else value
  if not data:
    raise BadRequest(f"{path.name}, question {number}: image_{n} is named and isn't there")
  return images_lib.load_image(data)
