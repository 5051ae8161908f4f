"""GQA: questions composed of steps; accuracy, and whether answers are valid, plausible, consistent, grounded, well spread."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import gqa_grounding, reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap, refuse
from orthus_jax.evaluation.benchmarks.gqa_entries import Choices, Prediction, Question

LAYOUT = """PATH is a prediction file, a JSON list of {"questionId": …, "prediction": …}, or LLaVA's answers, JSON lines of
question_id and text in a file *.jsonl, which are converted first (full stops at the end go, lower case), or the folder that
holds TIER_predictions.json. Beside it lie GQA's own files of the tier, such as testdev_balanced or val:
  TIER_questions.json (or TIER_all_questions.json), TIER_choices.json (for validity and plausibility; may be absent),
  with --grounding also TIER_sceneGraphs.json and TIER_attentions.json"""
OPTIONS = {
    "questions": "the question file, where it isn't the one *_questions.json beside the predictions; its name says the TIER",
    "choices": "the choices file, where it isn't TIER_choices.json; none: validity and plausibility are 0, as in the tool",
    "consistency": "score consistency too, for which unbalanced questions need predictions as well",
    "grounding": "score attention maps too",
    "scenes": "the scene graphs, where they aren't TIER_sceneGraphs.json",
    "attentions": 'the attention maps, {"questionId", "attention"} each, where they aren\'t TIER_attentions.json',
    "map_size": "rows and columns of an attention map; default 7",
}
PROTOCOL = "eval.py of the GQA site with LLaVA's edit for testdev, as kept in SHI-Labs/VCoder 4e85acef"
_PREDICTIONS = 'GQA\'s predictions are a list of {"questionId": …, "prediction": …}'
_QUESTIONS = "GQA's questions are an object of question id and question"
_CHOICES = "GQA's choices are an object of question id and {\"valid\": […], \"plausible\": […]}"
_MAIN = ("accuracy", "binary", "open", "validity", "plausibility", "consistency", "grounding")
_DETAILS = {
    "structural": "accuracyPerStructuralType", "semantic": "accuracyPerSemanticType", "words": "accuracyPerLength",
    "steps": "accuracyPerSteps",
}  # fmt: skip
_COMMON = ("color", "material", "shape")  # what is valid of questions whose type has Common in its name


@dataclasses.dataclass
class _Files:
  """Where a tier's files lie."""

  predictions: Path
  questions: Path
  choices: Path | None
  scenes: Path
  attentions: Path


def convert(text: str) -> str:
  """LLaVA's conversion of an answer to a prediction."""
  return text.rstrip(".").lower()


@reading.no_collection()
def score(
    path: str | Path, *, questions: str | Path | None = None, choices: str | Path | None = None, consistency: bool = False,
    grounding: bool = False, scenes: str | Path | None = None, attentions: str | Path | None = None, map_size: int = 7,
) -> Score:  # fmt: skip
  """GQA's figures in per cent; of the distribution, a chi-square by a hundred, lower is better.

  Args:
    path: the predictions (LAYOUT); what the others are OPTIONS says.
    questions: the question file.
    choices: the choices file; "none" for none.
    consistency: whether to score it.
    grounding: whether to score it.
    scenes: the scene graphs.
    attentions: the attention maps.
    map_size: rows and columns of an attention map.

  Raises:
    BadRequest: if files are missing, hold something else, or lack a prediction that the tool needs, or what grounding alone
      needs is given without it.
  """
  if not grounding:
    refuse(score, "grounding", scenes=scenes, attentions=attentions, map_size=map_size)
  files = _find(Path(path), questions, choices, scenes, attentions)
  notes = Notes()
  asked = reading.entries(files.questions, Question, _QUESTIONS)
  given = _predictions(files.predictions, notes)
  _check(asked, given, files, notes, consistency=consistency)
  valid = reading.entries(files.choices, Choices, _CHOICES) if files.choices else {}
  maps = gqa_grounding.Maps.read(files.scenes, files.attentions, map_size) if grounding else None
  rows = []
  gold: defaultdict[str, Counter] = defaultdict(Counter)
  said: defaultdict[str, Counter] = defaultdict(Counter)
  for asked_id, question in asked.items():
    try:
      if not _balanced(question):
        continue
      if type(question) is not Question:
        msgspec.convert(question, Question)  # says what it lacks
      row = _judge(asked_id, question, given[asked_id], valid.get(asked_id), files, notes)
      if consistency and row["right"] and (entailed := [e for e in question.entailed if e != asked_id]):
        row["consistency"] = sum(given[e] == asked[e].answer for e in entailed) / len(entailed)
      if maps is not None:
        row["grounding"], row["grounding_straight"] = maps.score(asked_id, question, notes)
      if (group := question.groups.all) is not None:
        gold[group][question.answer] += 1
        said[group][row["prediction"]] += 1
      rows.append(row)
    except msgspec.ValidationError as e:
      why = str(e).split(" - at")[0].replace("Object missing required field", "lacks")
      raise BadRequest(f"{files.questions}: question {asked_id}: {why}: {_QUESTIONS}") from e
    except (KeyError, TypeError, AttributeError, IndexError) as e:
      raise BadRequest(f"{files.questions}: question {asked_id} lacks {e}, or has it in another form: {_QUESTIONS}") from e
  if not gold:
    raise BadRequest(f"{files.questions} has no balanced question of a global group: GQA's tool can't score its distribution")
  return _added_up(rows, _chi_square(gold, said) / 100, notes, files)


def tier(questions: Path) -> str:
  """What the names of GQA's files of a tier begin with: "testdev_balanced" of testdev_balanced_questions.json."""
  return questions.name.removesuffix(".json").removesuffix("_questions").removesuffix("_all")


def _find(path: Path, questions: Any, choices: Any, scenes: Any, attentions: Any) -> _Files:
  if not os.path.isfile(path):
    reading.existing(path, "GQA's predictions", folder=True)
  folder = path.absolute().parent if os.path.isfile(path) else path
  what = "GQA's questions"
  asked = reading.existing(questions, what) if questions is not None else reading.only(folder, "*_questions.json", what)
  start = tier(asked)
  if os.path.isdir(path):
    path = reading.existing(path / f"{start}_predictions.json", f"GQA's predictions to {asked.name}")
  if choices is None:
    choices = folder / f"{start}_choices.json"
    choices = choices if choices.is_file() else "none"
  options = None if str(choices) == "none" else reading.existing(choices, "GQA's choices")
  return _Files(
      path, asked, options, Path(scenes or folder / f"{start}_sceneGraphs.json"),
      Path(attentions or folder / f"{start}_attentions.json"),
  )  # fmt: skip


def _predictions(path: Path, notes: Notes) -> dict[Any, str]:
  """By question; of two the last."""
  if path.suffix == ".jsonl":
    what = "LLaVA's answers are JSON lines of question_id and text"
    pairs = [
        (reading.field(row, "question_id", (str, int), what, path, n), convert(reading.field(row, "text", str, what, path, n)))
        for n, row in enumerate(reading.json_lines(path), 1)
    ]
  else:
    pairs = []
    for number, entry in enumerate(reading.listed(path, Prediction, _PREDICTIONS), 1):
      if type(entry) is not Prediction:
        reading.field(entry, "questionId", (str, int), _PREDICTIONS, path, number, entry=True)
        reading.field(entry, "prediction", str, _PREDICTIONS, path, number, entry=True)
      pairs.append((entry.questionId, entry.prediction))
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[Any] = set()
    for number, (asked_id, _) in enumerate(pairs, 1):
      if asked_id in seen:
        notes.add("second predictions for a question, of which the last counts", path, None, f"entry {number}: {asked_id}")
      seen.add(asked_id)
  return found


def _check(asked: dict[str, Any], given: dict[Any, str], files: _Files, notes: Notes, *, consistency: bool) -> None:
  """Sees that each question that counts has a prediction."""
  needed = [i for i, q in asked.items() if consistency or _balanced(q)]
  if missing := [i for i in needed if i not in given]:
    why = " (all questions, for the consistency)" if consistency else ""
    raise BadRequest(
        f"{files.predictions} lacks predictions for {len(missing):,} of the {len(needed):,} questions of {files.questions.name}"
        f"{why} that need one, such as {missing[0]}: GQA's tool scores no part of them"
    )
  for unknown in given.keys() - asked.keys():
    notes.add(f"predictions for no question of {files.questions.name}, left out", files.predictions, None, str(unknown))


def _balanced(question: Any) -> Any:
  """Whether it counts; one in another form does where it says nothing of it, so that it is told of."""
  if type(question) is Question:
    return question.isBalanced
  return question.get("isBalanced", True) if isinstance(question, dict) else True


def _judge(asked_id: str, question: Question, predicted: str, choices: Any, files: _Files, notes: Notes) -> dict[str, Any]:
  gold, types = question.answer, question.types
  texts = [f"{s.operation}: {s.argument}" for s in question.semantic]
  steps = sum("exist" not in t and "query: name" not in t and "choose name" not in t for t in texts)
  valid = plausible = common = False
  if files.choices:
    if type(choices) is not Choices:
      _no_choices(asked_id, choices, files)
    valid, plausible, common = predicted in choices.valid, predicted in choices.plausible, "Common" in types.detailed
  row = {
      "question_id": asked_id, "image_id": question.imageId, "answer": gold, "prediction": predicted,
      "right": predicted == gold, "structural": str(types.structural), "semantic": str(types.semantic),
      "words": len(question.question.split()), "steps": steps,
      "validity": valid, "validity_straight": valid, "plausibility": plausible, "plausibility_straight": plausible,
  }  # fmt: skip
  if common and not (valid == plausible == (predicted in _COMMON)):
    row["validity"] = row["plausibility"] = predicted in _COMMON
    notes.add("answers to questions whose type has Common in its name: color, material and shape alone are valid and plausible,"
              " whatever the choices say (a straight reading takes these)", files.questions, None, asked_id)  # fmt: skip
  if predicted != gold and convert(predicted).strip() == gold:
    notes.add("answers that are wrong by case, blanks or full stops alone, as the tool compares exactly (LLaVA converts answers"
              " ahead)", files.predictions, None, asked_id)  # fmt: skip
  return row


def _no_choices(asked_id: str, found: Any, files: _Files) -> NoReturn:
  """Says what is the matter with a question's choices."""
  assert files.choices
  if found is None:
    raise BadRequest(f"{files.choices} lacks question {asked_id}: give the choices of {files.questions.name}, or choices=none")
  for key in ("valid", "plausible"):
    reading.field(found, key, list, _CHOICES, files.choices, asked_id, entry=True)
  raise AssertionError("choices that fit")


def _chi_square(gold: dict[str, Counter], predicted: dict[str, Counter]) -> float:
  """Mean over groups, weighted by their size."""
  total = size = 0.0
  for group, answers in gold.items():
    distance = sum((float(predicted[group].get(a, 0) - e) ** 2) / e for a, e in answers.items())
    total += distance * answers.total()
    size += answers.total()
  return total / size


def _mean(values: Sequence[float]) -> float:
  return 100 * (float(sum(values)) / len(values)) if values else 0.0


def _added_up(rows: list[dict[str, Any]], distribution: float, notes: Notes, files: _Files) -> Score:
  right = [r["right"] for r in rows]
  query = [r["structural"] == "query" for r in rows]
  of: dict[str, Sequence[float]] = {
      "accuracy": right, "binary": [r for r, q in zip(right, query) if not q], "open": [*itertools.compress(right, query)],
  } | {k: [r[k] for r in rows if k in r] for k in _MAIN[3:]}  # fmt: skip
  scores = {k: _mean(v) for k, v in of.items()} | {"distribution": distribution}
  counts = {k: len(v) for k, v in of.items()}
  straight = {k: _mean([r[f"{k}_straight"] for r in rows if f"{k}_straight" in r]) for k in _MAIN[3:5] + _MAIN[6:]}
  if not files.choices:
    notes.say("without a choices file validity and plausibility are 0 in the tool; a straight reading has none (nan)")
    straight |= dict.fromkeys(("validity", "plausibility"), float("nan"))
  for field, name in _DETAILS.items():
    values = [r[field] for r in rows]
    n, good = Counter(values), Counter(itertools.compress(values, right))
    scores |= {f"{name}/{k}": 100 * (good[k] / n[k]) for k in n}
    counts |= {f"{name}/{k}": n[k] for k in n}
  return Score(
      "gqa", PROTOCOL, scores, unit="%", units={"distribution": "lower is better"}, intervals=_intervals(rows), counts=counts,
      straight={k: v for k, v in straight.items() if not abs(v - scores[k]) <= 1e-9}, notes=notes.lines(), rows=tuple(rows),
  )  # fmt: skip


def _intervals(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
  """By pictures, whose questions are drawn together; none of the distribution, which resampling moves away."""
  unit: dict[str, int] = {}
  unit_R = np.array([unit.setdefault(str(r["image_id"] or r["question_id"]), len(unit)) for r in rows])
  right_R = np.array([r["right"] for r in rows], float)
  query_R = np.array([r["structural"] == "query" for r in rows])
  columns = {"accuracy": (right_R, np.ones(len(rows), bool)), "binary": (right_R, ~query_R), "open": (right_R, query_R)}
  for name in _MAIN[3:]:
    columns[name] = (np.array([r.get(name, 0) for r in rows], float), np.array([name in r for r in rows]))
  columns = {name: pair for name, pair in columns.items() if pair[1].any()}
  sums = [np.bincount(unit_R, v * there) for value_R, there in columns.values() for v in (value_R, np.ones(len(rows)))]
  return bootstrap(
      np.stack(sums, 1), lambda s_NK: {name: 100 * s_NK[:, 2 * i] / s_NK[:, 2 * i + 1] for i, name in enumerate(columns)}
  )
