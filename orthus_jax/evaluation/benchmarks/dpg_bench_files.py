"""DPG-Bench's files: the questions of dpg_bench.csv, and the answers to them that its tool writes down as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import dataclasses
import io
from pathlib import Path
import re

import numpy as np
import PIL.Image

from orthus_jax.data import images as images_lib
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import Notes, judging

Judge = Callable[[np.ndarray, str], str]
_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_LINE = re.compile(r"(.+?), (\(-?\d+, -?\d+, -?\d+, -?\d+\)), (.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Question:
  """A line of the CSV.

  Attributes:
    text: what is asked.
    parents: numbers of the item's questions without which this one is void; 0 is none.
    category: what its tuple begins with, such as "entity - whole".
  """

  text: str
  parents: tuple[int, ...]
  category: str


Items = dict[str, dict[int, Question]]  # by item, by the question's number


@dataclasses.dataclass
class Picture:
  """A picture and what was answered about it: of each quarter, in order, by the question's number."""

  name: str
  quarters: list[dict[int, str]]

  @property
  def item(self) -> str:
    return self.name.rsplit("/", 1)[-1].split(".")[0]


def read_csv(file: Path, notes: Notes) -> tuple[Items, Items]:
  """The items as the tool reads them, which is without the first line, and all of them.

  Raises:
    BadRequest: if a column is missing, or a line holds something else.
  """
  what = f"DPG-Bench's CSV has {', '.join(_COLUMNS)}"
  rows = csv.DictReader(io.StringIO("".join(reading.lines(file))), strict=True)
  tool: Items = {}
  plain: Items = {}
  before = None
  try:
    if missing := [c for c in _COLUMNS if c not in (rows.fieldnames or ())]:
      raise BadRequest(f"{file}:1: no column {', '.join(missing)}: {what}")
    for index, row in enumerate(rows):
      if None in row or not all(row[c] for c in _COLUMNS):
        odd = "more columns than the first line" if None in row else f"no {next(c for c in _COLUMNS if not row[c])}"
        raise BadRequest(f"{file}:{rows.line_num}: has {odd}: {what}")
      item = row["item_id"]
      try:
        number, parents = int(row["proposition_id"]), tuple(int(d) for d in row["dependency"].split(","))
      except ValueError as e:
        raise BadRequest(f"{file}:{rows.line_num}: proposition_id and dependency must be whole numbers") from e
      question = Question(row["question_natural_language"], parents, row["tuple"].split("(")[0].strip())
      plain.setdefault(item, {})[number] = question
      if not index:
        continue
      if item != before and item in tool:
        notes.add("items whose lines aren't together: the tool keeps their last block", file, rows.line_num, item)
      if item != before:
        tool[item] = {}
      questions = tool[item]
      if number in questions:
        notes.add("questions under a number that their item has already: the tool keeps the last", file, rows.line_num, item)
      questions[number] = question
      before = item
  except csv.Error as e:
    raise BadRequest(f"{file}:{rows.line_num}: broken CSV: {e}") from e
  if not plain:
    raise BadRequest(f"{file} holds no question: {what}")
  return tool, plain


def read_detail(file: Path, items: Items, notes: Notes) -> list[Picture]:
  """The pictures of a *_detail.txt: `picture, (x0, y0, x1, y1), question, answer` in each line; quarters in their order.

  Raises:
    BadRequest: if a line is something else, or asks what the item's questions don't.
  """
  lines = reading.lines(file)
  said: dict[str, dict[str, list[tuple[int, str]]]] = {}
  for number, line in enumerate(lines, 1):
    found = _LINE.fullmatch(line.rstrip("\n"))
    if not line.endswith("\n") and not (found and ", " in found[3]):
      notes.say(f"{file.name}:{number}: the last line is broken off, and left out")
      continue
    if not found:
      raise BadRequest(f"{file}:{number}: isn't a picture, its quarter's box, a question and the answer, as in DPG-Bench's"
                       " *_detail.txt")  # fmt: skip
    said.setdefault(found[1], {}).setdefault(found[2], []).append((number, found[3]))
  pictures = []
  for name, quarters in said.items():
    picture = Picture(name, [])
    if (questions := list(items.get(picture.item, {}).values())) and len(set(map(len, quarters.values()))) == 1:
      if (times := len(next(iter(quarters.values()))) // len(questions)) > 1:
        first = next(iter(quarters.values()))[0][0]
        notes.add("pictures answered more than once, whose last answers count", file, first, f"{name}, {times} times")
        quarters = {box: answers[-len(questions):] for box, answers in quarters.items()}
    for answers in quarters.values():
      numbers = items.get(picture.item, {})
      said_in_it = [_answer(text, questions, k, file, n) for k, (n, text) in enumerate(answers)]
      picture.quarters.append(dict(zip(numbers, said_in_it)))
    pictures.append(picture)
  return pictures


def _answer(text: str, questions: Sequence[Question], k: int, file: Path, number: int) -> str:
  """The answer of a line whose question is its item's k-th; questions and answers may hold commas."""
  if not questions:
    return ""
  if k >= len(questions):
    raise BadRequest(f"{file}:{number}: is answer {k + 1} of this quarter, and the CSV has {len(questions)} questions of it")
  asked = questions[k].text
  if not text.startswith(f"{asked}, "):
    raise BadRequest(f"{file}:{number}: {text[:60]!r} doesn't begin with the item's question {k + 1}, {asked[:60]!r}: give the"
                     " CSV that was asked from")  # fmt: skip
  return text[len(asked) + 2 :]


def ask(folder: Path, items: Items, judge: Judge, size: int, quarters: int, notes: Notes) -> Iterator[Picture]:
  """The pictures of a folder with a judge's answers to the items' questions.

  Args:
    folder: of pictures, each named by its item.
    items: the questions.
    judge: from a quarter's pixels (uint8 [height, width, 3]) and a question to the answer.
    size: of a quarter; 0 for half the picture's width (of one quarter, all of it).
    quarters: how many are asked about, from the upper left.
    notes: where pictures that fail in the tool are told.
  """
  guarded = judging(judge)
  for file in sorted(folder.iterdir()):
    picture = Picture(file.name, [])
    if picture.item not in items or not file.is_file():
      notes.add("pictures fail in the tool and are left out, as the CSV has no such item", folder, name=file.name)
      continue
    try:
      image = PIL.Image.fromarray(images_lib.load_image(file))
    except (OSError, ValueError, BadRequest):
      notes.add("files fail in the tool and are left out, as they are no pictures", folder, name=file.name)
      continue
    s = size or (image.width if quarters == 1 else image.width // 2)
    for x, y in ((0, 0), (s, 0), (0, s), (s, s))[:quarters]:
      pixels_HWC = np.asarray(image.crop((x, y, x + s, y + s)))
      picture.quarters.append({n: str(guarded(file.name, pixels_HWC, q.text)) for n, q in items[picture.item].items()})
    yield picture


def after_parents(questions: Mapping[int, Question], answers: Mapping[int, str]) -> dict[int, float]:
  """The tool's scores of a quarter by the question's number: 0 where a parent has 0 by then, in the file's order.

  Raises:
    KeyError: of a parent that the item doesn't have, if it is looked at.
  """
  scores = {number: float(answers[number] == "yes") for number in questions}
  for number, question in questions.items():
    if any(parent and scores[parent] == 0 for parent in question.parents):
      scores[number] = 0.0
  return scores


def straight_after_parents(questions: Mapping[int, Question], answers: Mapping[int, str]) -> dict[int, float]:
  """The same with all of a question's ancestors heeded, wherever they stand; parents that aren't there are none."""
  scores = {number: float(answers[number] == "yes") for number in questions}
  while void := [n for n, q in questions.items() if scores[n] and any(scores.get(p) == 0 for p in q.parents)]:
    scores.update(dict.fromkeys(void, 0.0))
  return scores
