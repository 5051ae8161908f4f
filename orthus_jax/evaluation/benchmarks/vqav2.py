"""VQAv2: an answer counts by how many of ten people gave it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
import os
from pathlib import Path
import reprlib
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading, vqav2_normalise as normalise
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap

LAYOUT = """PATH is a result file, a JSON list of {"question_id": …, "answer": …} with an entry for each question, or the folder
that holds the one *_results.json. The ten people's answers are the one *_annotations.json beside it, VQAv2's own
v2_mscoco_SPLIT_annotations.json; its question file isn't needed."""
OPTIONS = {
    "annotations": "the annotation file, where it isn't the one *_annotations.json beside the results",
    "tool": "vqaeval (default), llava (LLaVA's rewriting of answers, then vqaeval), or lmms-eval",
    "ids": "question ids to score alone, as the tool's evaluate(ids) does: a list, or numbers that commas part",
}
_PROTOCOLS = {
    "vqaeval": "vqaEval.py of GT-Vision-Lab/VQA a013f004",
    "llava": "vqaEval.py of GT-Vision-Lab/VQA a013f004 behind m4c_evaluator.py of haotian-liu/LLaVA c121f043",
    "lmms-eval": "vqav2/utils.py of EvolvingLMMs-Lab/lmms-eval 75571cfe",
}
_RESULTS = 'VQAv2\'s results are a list of {"question_id": …, "answer": …}'
_ANNOTATIONS = "VQAv2's annotations have question_id, answer_type, question_type and answers of answer and answer_id"
_ALIKE = "answers to questions that all people answer alike, compared without normalisation (a straight reading normalises)"
_MARKS = "answers judged otherwise by a straight reading, in which a comma between digits takes no other marks along"


@reading.no_collection()
def score(
    path: str | Path, *, annotations: str | Path | None = None, tool: str = "vqaeval", ids: str | Iterable[int] | None = None
) -> Score:
  """VQAv2's accuracy, overall and by types of answers and questions, in per cent.

  Args:
    path: the result file, or its folder (LAYOUT).
    annotations: the annotation file.
    tool: whose figures: "vqaeval", "llava" or "lmms-eval".
    ids: of the questions to score; all by default.

  Raises:
    BadRequest: if a file is missing, is another, or the answers aren't one for each question.
  """
  if tool not in _PROTOCOLS:
    raise BadRequest(f"tool={tool}: it must be one of {', '.join(_PROTOCOLS)}")
  path = Path(path)
  if not os.path.isfile(path):
    path = reading.only(reading.existing(path, "VQAv2's results", folder=True), "*_results.json", "VQAv2's results")
  if annotations is None:
    annotations = reading.only(path.absolute().parent, "*_annotations.json", "VQAv2's annotations")
  notes = Notes()
  people_file = reading.existing(annotations, "VQAv2's annotations")
  people = reading.whole_json(people_file, dict, _ANNOTATIONS)
  people = reading.field(people, "annotations", list, _ANNOTATIONS, people_file, "", entry=True)
  given = _answers(path, people, people_file, notes)
  rows = []
  for number, annotation in enumerate(_chosen(people, people_file, ids, notes), 1):
    try:
      asked, people_N = annotation["question_id"], [normalise.outer(a["answer"]) for a in annotation["answers"]]
      answer_ids = {str(a.get("answer_id")) for a in annotation["answers"]}
      keys_N = None if len(answer_ids) == len(people_N) else [str(a) for a in annotation["answers"]]
      answer_type, question_type = annotation["answer_type"], annotation["question_type"]
    except (KeyError, TypeError, AttributeError):
      _explain(annotation, people_file, number)
      raise
    if not people_N:
      raise BadRequest(f"{people_file}: entry {number}: question {asked} has no answers: {_ANNOTATIONS}")
    rows.append({
        "question_id": asked, "image_id": annotation.get("image_id"), "answer_type": answer_type,
        "question_type": question_type, "answer": given[asked], **_judge(given[asked], people_N, keys_N, tool),
    })  # fmt: skip
    if rows[-1]["accuracy"] != rows[-1]["straight"]:
      why = _ALIKE if len(set(people_N)) == 1 else _MARKS
      notes.add(why, path, None, f"question {asked}: {reprlib.repr(given[asked])}")
  return _added_up(rows, tool, notes)


def _answers(path: Path, people: list[Any], people_file: Path, notes: Notes) -> dict[Any, str]:
  """By question; of two the last."""
  found: dict[Any, str] = {}
  for number, entry in enumerate(reading.whole_json(path, list, _RESULTS), 1):
    asked = reading.field(entry, "question_id", (int, str), _RESULTS, path, number, entry=True)
    if asked in found:
      notes.add("second answers to a question, of which the last counts", path, None, f"entry {number}, question {asked}")
    found[asked] = reading.field(entry, "answer", str, _RESULTS, path, number, entry=True)
  known = {
      reading.field(a, "question_id", (int, str), _ANNOTATIONS, people_file, n, entry=True) for n, a in enumerate(people, 1)
  }
  missing, unknown = len(known - found.keys()), len(found.keys() - known)
  if missing or unknown:
    example = next(iter(sorted(found.keys() - known, key=str) or sorted(known - found.keys(), key=str)))
    raise BadRequest(
        f"{path}: {len(found):,} answers to the {len(known):,} questions of {people_file.name}: {missing:,} are missing and"
        f" {unknown:,} answer none of them (such as {example!r}); VQAv2's tool takes an answer to each question and no other"
    )
  if not found:
    raise BadRequest(f"{path} holds no answer: {_RESULTS}")
  return found


def _chosen(people: list[Any], file: Path, ids: str | Iterable[int] | None, notes: Notes) -> list[Any]:
  """The annotations to score; of two of a question the last, as often as there are."""
  by_id = {}
  for a in people:
    if a["question_id"] in by_id:
      notes.add("second annotations of a question, of which the last counts twice", file, None, str(a["question_id"]))
    by_id[a["question_id"]] = a
  if ids is None:
    return [by_id[a["question_id"]] for a in people]
  try:
    wanted = [int(i) for i in (ids.split(",") if isinstance(ids, str) else ids)]
  except (TypeError, ValueError) as e:
    raise BadRequest(f"ids={ids}: question ids are whole numbers that commas part") from e
  if unknown := [i for i in wanted if i not in by_id]:
    raise BadRequest(f"ids: question {unknown[0]} isn't in {file.name}")
  if not wanted:
    raise BadRequest("ids: name at least one question")
  return [by_id[i] for i in wanted]


def _explain(annotation: Any, file: Path, number: int) -> None:
  """Says what an annotation lacks."""
  for name, kind in (("answer_type", str), ("question_type", str), ("answers", list)):
    reading.field(annotation, name, kind, _ANNOTATIONS, file, number, entry=True)
  for answer in annotation["answers"]:
    reading.field(answer, "answer", str, _ANNOTATIONS, file, number, entry=True)


def _agreed(answer: str, people_N: list[str], keys_N: list[str] | None) -> float:
  """The mean over people of min(1, others who say the same / 3).

  No other is who is equal in all: the person alone, or all of a key where keys are given.
  """
  same = people_N.count(answer)
  if not same:
    return 0.0
  if keys_N is None:
    if same > 3:
      return 1.0
    alone, other = min(1, float(same - 1) / 3), min(1, float(same) / 3)
    return sum([alone if p == answer else other for p in people_N]) / len(people_N)
  alike = Counter(zip(people_N, keys_N))
  return sum(min(1, (same - alike[p] * (p[0] == answer)) / 3) for p in zip(people_N, keys_N)) / len(people_N)


def _judge(answer: str, people_N: list[str], keys_N: list[str] | None, tool: str) -> dict[str, float]:
  """An answer's accuracy with a tool, and with a straight reading of its rules."""
  said = normalise.outer(answer) if tool == "vqaeval" else normalise.llava(answer)
  full = normalise.full_python3 if tool == "lmms-eval" else normalise.full
  alike = people_N.count(people_N[0]) == len(people_N)
  if alike:
    plain_N = [normalise.straight(people_N[0])] * len(people_N)
    people_N = [full(people_N[0])] * len(people_N) if tool == "lmms-eval" else people_N
  else:
    plain_N = [normalise.straight(p) for p in people_N]
    people_N = [full(p) for p in people_N]
  said = said if alike and tool != "lmms-eval" else full(said)
  plain = normalise.straight(answer)
  accuracy = _agreed(said, people_N, keys_N)
  same = plain == said and plain_N == people_N
  return {"accuracy": accuracy, "straight": accuracy if same else _agreed(plain, plain_N, keys_N)}


def _rounded(share: float) -> float:
  """Per cent with two decimals, halves away from zero, as Python 2 rounds."""
  return float(Decimal(100 * share).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _added_up(rows: list[dict[str, Any]], tool: str, notes: Notes) -> Score:
  groups: dict[str, list[dict[str, Any]]] = {"overall": rows}
  for group, field in (("perAnswerType", "answer_type"), ("perQuestionType", "question_type")):
    for r in rows:
      groups.setdefault(f"{group}/{r[field]}", []).append(r)
  figure = (lambda share: 100 * share) if tool == "lmms-eval" else _rounded
  scores = {k: figure(sum(r["accuracy"] for r in v) / len(v)) for k, v in groups.items()}
  straight = {k: figure(sum(r["straight"] for r in v) / len(v)) for k, v in groups.items()}
  return Score(
      "vqav2", _PROTOCOLS[tool], scores, unit="%", intervals=_intervals(rows), counts={k: len(v) for k, v in groups.items()},
      straight={k: v for k, v in straight.items() if abs(v - scores[k]) > 1e-9}, notes=notes.lines(), rows=tuple(rows),
  )  # fmt: skip


def _intervals(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
  """Of the whole and of answers' types, by pictures, whose questions are drawn together."""
  types = {t: 2 * i for i, t in enumerate(dict.fromkeys(str(r["answer_type"]) for r in rows))}
  unit: dict[str, int] = {}
  unit_R = [unit.setdefault(str(r["question_id"] if r["image_id"] is None else r["image_id"]), len(unit)) for r in rows]
  units_UK = np.zeros((len(unit), 2 * len(types)))
  column_R = np.array([types[str(r["answer_type"])] for r in rows])
  np.add.at(units_UK, (unit_R, column_R), [r["accuracy"] for r in rows])
  np.add.at(units_UK, (unit_R, column_R + 1), 1)

  def figures(sums_NK: np.ndarray) -> dict[str, np.ndarray]:
    found = {"overall": 100 * sums_NK[:, ::2].sum(1) / sums_NK[:, 1::2].sum(1)}
    return found | {f"perAnswerType/{t}": 100 * sums_NK[:, i] / sums_NK[:, i + 1] for t, i in types.items()}

  return bootstrap(units_UK, figures)
