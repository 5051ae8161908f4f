"""MMMU: questions of 30 college subjects, most of them multiple choice; accuracy by subject, by discipline and over all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import mmmu_parse, reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap

LAYOUT = """PATH is a folder of SUBJECT/output.json, each a JSON list of {"id", "question_type", "answer", "response"} and, of
multiple choice, "all_choices" and "index2ans" (as main_parse_and_eval.py reads it), or a JSON file of question id and answer,
multiple choice as its letter, with answer_dict_val.json beside it (as main_eval_only.py reads it)."""
OPTIONS = {"answers": "of a PATH that is a file: the right answers, where they aren't answer_dict_val.json beside it"}
_PROTOCOL = "of MMMU-Benchmark/MMMU bb0b95a9"
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power", "Materials",
        "Mechanical_Engineering",
    ),
}  # fmt: skip
SUBJECTS = sorted(s for group in DISCIPLINES.values() for s in group)  # the order in which the tool reads them
_CHOICE = "multiple-choice"
_ITEMS = "MMMU's output.json is a list of id, question_type, answer, response, and of multiple choice all_choices and index2ans"
_OUTPUTS = "MMMU's outputs are an object of question id and answer"
_ANSWERS = "MMMU's answers are an object of question id and {question_type, ground_truth}"


def score(path: str | Path, *, answers: str | Path | None = None) -> Score:
  """MMMU's accuracies, from 0 to 1: rounded to three places as they are printed; SUBJECT/acc isn't rounded.

  Args:
    path: a folder of responses, or a file of answers (LAYOUT).
    answers: the right ones, where path is a file.

  Raises:
    BadRequest: if a file is missing or holds something else.
  """
  path = Path(path)
  notes = Notes()
  if os.path.isfile(path):
    program, rows = "main_eval_only.py", _given(path, answers, notes)
  elif answers is not None:
    raise BadRequest(f"answers={answers} goes with a file of answers, and {path} is none")
  else:
    program, rows = "main_parse_and_eval.py", _parsed(reading.existing(path, "MMMU's SUBJECT/output.json", folder=True), notes)
  by_subject = {s: here for s in SUBJECTS if (here := [r for r in rows if r["subject"] == s])}
  groups: dict[str, list[dict[str, Any]]] = {}
  for discipline, subjects in DISCIPLINES.items():
    its = {s: by_subject[s] for s in subjects if s in by_subject}
    groups |= {f"Overall-{discipline}": [r for of in its.values() for r in of]} | its
  groups["Overall"] = rows
  scores = {k: round(_accuracy(v) if k in by_subject else _weighted(v), 3) for k, v in groups.items()}
  straight = {k: round(sum(r["right"] and not r["drawn"] for r in v) / max(1, len(v)), 3) for k, v in groups.items()}
  intervals = {}
  for seed, (k, v) in enumerate(groups.items()):
    units_UK = np.array([(r["right"], 1) for r in v])
    if found := bootstrap(units_UK, lambda s_NK: {"acc": s_NK[:, 0] / s_NK[:, 1]}, seed=seed):
      intervals[k] = found["acc"]
  if n := sum(r["drawn"] for r in rows):
    right = sum(r["drawn"] and r["right"] for r in rows)
    notes.say(f"{n:,} of {len(rows):,} answers were drawn, as the tool read no option in the response; {right:,} of these"
              " are right (a straight reading counts them as wrong)")  # fmt: skip
  return Score(
      "mmmu", f"{program} {_PROTOCOL}", scores | {f"{s}/acc": _accuracy(v) for s, v in by_subject.items()},
      intervals=intervals, counts={k: len(v) for k, v in groups.items()},
      straight={k: v for k, v in straight.items() if v != scores[k]}, notes=notes.lines(), rows=tuple(rows),
  )  # fmt: skip


def _accuracy(rows: list[dict[str, Any]]) -> float:
  return sum(r["right"] for r in rows) / len(rows) if rows else 0.0


def _weighted(rows: list[dict[str, Any]]) -> float:
  """Of several subjects, added up as the tool does, so that what is rounded is the same to the last bit."""
  subjects: dict[str, list[dict[str, Any]]] = {}
  for r in rows:
    subjects.setdefault(r["subject"], []).append(r)
  return sum(_accuracy(v) * len(v) for v in subjects.values()) / len(rows) if rows else 0.0


def _chosen_right(gold: Any, chosen: str) -> bool:
  return chosen in gold if isinstance(gold, list) else chosen == gold


def _parsed(folder: Path, notes: Notes) -> list[dict[str, Any]]:
  """Responses of every subject that is there, in the tool's order, as the draws depend on it."""
  there = [s for s in SUBJECTS if (folder / s).is_dir()]
  if not there:
    raise BadRequest(f"{folder} holds no folder of an MMMU subject (Accounting, …): {_ITEMS}")
  if len(there) < len(SUBJECTS):
    missing = [s for s in SUBJECTS if s not in there]
    notes.say(f"{len(there)} of MMMU's {len(SUBJECTS)} subjects are there, and not {', '.join(missing[:3])}"
              f"{', …' if len(missing) > 3 else ''}: left out, by the tool too")  # fmt: skip
  for other in sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in SUBJECTS):
    notes.add("folders that are no subject of MMMU's, left out", folder / other)
  drawn = mmmu_parse.draws()
  rows = []
  for subject in there:
    file = reading.existing(folder / subject / "output.json", f"responses of {subject}")
    seen = set()
    for number, item in enumerate(reading.whole_json(file, list, _ITEMS), 1):
      def get(name: str, kind: Any, item=item, number=number, file=file) -> Any:
        return reading.field(item, name, kind, _ITEMS, file, number, entry=True)

      if get("id", str) in seen:
        notes.add("second responses to a question, each counted", file, None, f"{subject}, {item['id']}")
      seen.add(item["id"])
      response, gold, sort = get("response", str), _gold(item, "answer", file, number), get("question_type", str)
      row = {"subject": subject, "id": item["id"], "question_type": sort, "answer": gold, "response": response}
      if sort == _CHOICE:
        choices, options = get("all_choices", list), get("index2ans", dict)
        if not choices or not all(isinstance(c, str) for c in (*choices, *options.values())):
          raise BadRequest(f"{file}: entry {number}: all_choices and index2ans must hold texts, all_choices at least one")
        parsed, was_drawn = mmmu_parse.choice(response, choices, options, drawn)
        rows.append(row | {"parsed": parsed, "drawn": was_drawn, "right": _chosen_right(gold, parsed)})
      else:
        read = mmmu_parse.open_answer(response)
        rows.append(row | {"parsed": read, "drawn": False, "right": mmmu_parse.open_is_right(gold, read)})
  if not rows:
    raise BadRequest(f"{folder} holds no response in its {len(there)} subjects: {_ITEMS}")
  return rows


def _gold(item: Any, name: str, file: Path, number: int | str) -> str | list[str]:
  what = _ITEMS if name == "answer" else _ANSWERS
  gold = reading.field(item, name, (str, list), what, file, number, entry=True)
  if isinstance(gold, list) and not all(isinstance(g, str) for g in gold):
    raise BadRequest(f"{file}: entry {number}: {name!r} must be a text or a list of texts")
  return gold


def _given(file: Path, answers: str | Path | None, notes: Notes) -> list[dict[str, Any]]:
  """Answers as they are: letters, and open answers to parse."""
  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      for key in sorted({k for k, _ in pairs if sum(k == other for other, _ in pairs) > 1}):
        notes.add("second answers to a question, of which the last counts", file, None, key)
    return found

  outputs = reading.whole_json(file, dict, _OUTPUTS, object_pairs_hook=once)
  right_file = reading.existing(answers or file.parent / "answer_dict_val.json", "MMMU's answers, answer_dict_val.json,")
  gold = reading.whole_json(right_file, dict, _ANSWERS)
  answered = {"_".join(i.split("_")[1:-1]) for i in gold}
  rows = []
  for asked in outputs:
    subject = "_".join(asked.split("_")[1:-1])
    if subject not in SUBJECTS or subject not in answered:
      notes.add(f"answers to no subject of {right_file.name}, left out", file, None, asked)
      continue
    if asked not in gold:
      raise BadRequest(f"{file}: {asked} isn't in {right_file.name}: give the answers of the questions that it answers")
    said = reading.field(outputs, asked, str, _OUTPUTS, file, "", entry=True)
    sort = reading.field(gold[asked], "question_type", str, _ANSWERS, right_file, asked, entry=True)
    truth = _gold(gold[asked], "ground_truth", right_file, asked)
    row = {"subject": subject, "id": asked, "question_type": sort, "answer": truth, "response": said, "drawn": False}
    if sort == _CHOICE:
      rows.append(row | {"parsed": said, "right": _chosen_right(truth, said)})
      if not row["response"].strip() or said != said.strip() or len(said) > 1 or not said.isupper():
        notes.add("answers to multiple choice that aren't a capital letter alone: taken as they are", file, None, asked)
    else:
      read = mmmu_parse.open_answer(said)
      rows.append(row | {"parsed": read, "right": mmmu_parse.open_is_right(truth, read)})
  if not rows:
    raise BadRequest(f"{file} answers no question of {right_file.name}: {_OUTPUTS}")
  if len(rows) < len(gold):
    of = f"{len(rows):,} of the {len(gold):,} questions of {right_file.name}"
    notes.say(f"{file.name} answers {of}: the others are left out, by the tool too")
  order = {s: i for i, s in enumerate(SUBJECTS)}
  return sorted(rows, key=lambda r: order[r["subject"]])
